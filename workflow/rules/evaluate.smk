rule evaluate:
    input:
        W.inputs("evaluate"),
    output:
        **W.outputs("evaluate"),
    log:
        W.log("evaluate"),
    conda:
        "../envs/ipdiff.yaml"
    threads: W.threads("evaluate")
    resources:
        attempt=W.attempt,
        gpu=W.gpus("evaluate"),
    params:
        values=W.params("evaluate"),
        code=W.code("evaluate"),
    shell:
        W.command("evaluate")


rule analyse:
    input:
        W.inputs("analyse"),
    output:
        **W.outputs("analyse"),
    log:
        W.log("analyse"),
    conda:
        "../envs/ipdiff.yaml"
    threads: W.threads("analyse")
    resources:
        attempt=W.attempt,
        mem_mb=W.memory("analyse"),
        gpu=W.gpus("analyse"),
    params:
        values=W.params("analyse"),
        code=W.code("analyse"),
    shell:
        W.command("analyse")


rule drift:
    input:
        W.inputs("drift"),
    output:
        **W.outputs("drift"),
    log:
        W.log("drift"),
    conda:
        "../envs/ipdiff.yaml"
    threads: W.threads("drift")
    resources:
        attempt=W.attempt,
        mem_mb=W.memory("drift"),
        gpu=W.gpus("drift"),
    params:
        values=W.params("drift"),
        code=W.code("drift"),
    shell:
        W.command("drift")
