rule prepare:
    input:
        W.inputs("prepare"),
    output:
        **W.outputs("prepare"),
    log:
        W.log("prepare"),
    conda:
        "../envs/ipdiff.yaml"
    resources:
        attempt=W.attempt,
    params:
        values=W.params("prepare"),
        code=W.code("prepare"),
    shell:
        W.command("prepare")


rule classifier:
    input:
        W.inputs("classifier"),
    output:
        **W.outputs("classifier"),
    log:
        W.log("classifier"),
    conda:
        "../envs/ipdiff.yaml"
    threads: W.threads("classifier")
    resources:
        attempt=W.attempt,
        gpu=W.gpus("classifier"),
    params:
        values=W.params("classifier"),
        code=W.code("classifier"),
    shell:
        W.command("classifier")


rule reference:
    input:
        W.inputs("reference"),
    output:
        **W.outputs("reference"),
    log:
        W.log("reference"),
    conda:
        "../envs/ipdiff.yaml"
    threads: W.threads("reference")
    resources:
        attempt=W.attempt,
        gpu=W.gpus("reference"),
    params:
        values=W.params("reference"),
        code=W.code("reference"),
    shell:
        W.command("reference")


rule neighbours:
    input:
        W.inputs("neighbours"),
    output:
        **W.outputs("neighbours"),
    log:
        W.log("neighbours"),
    conda:
        "../envs/ipdiff.yaml"
    threads: W.threads("neighbours")
    resources:
        attempt=W.attempt,
        gpu=W.gpus("neighbours"),
    params:
        values=W.params("neighbours"),
        code=W.code("neighbours"),
    shell:
        W.command("neighbours")


rule halves:
    input:
        W.inputs("halves"),
    output:
        **W.outputs("halves"),
    log:
        W.log("halves"),
    conda:
        "../envs/ipdiff.yaml"
    threads: W.threads("halves")
    resources:
        attempt=W.attempt,
        gpu=W.gpus("halves"),
    params:
        values=W.params("halves"),
        code=W.code("halves"),
    shell:
        W.command("halves")
