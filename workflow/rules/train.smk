rule train:
    input:
        W.inputs("train"),
    output:
        **W.outputs("train"),
    log:
        W.log("train"),
    wildcard_constraints:
        dataset=W.trained,
    # The longest chains first: a training that begins last leaves the other cores idle.
    priority: 1
    conda:
        "../envs/ipdiff.yaml"
    threads: W.threads("train")
    resources:
        attempt=W.attempt,
        mem_mb=W.memory("train"),
        gpu=W.gpus("train"),
    params:
        values=W.params("train"),
        code=W.code("train"),
    shell:
        W.command("train")


rule resume:
    input:
        W.inputs("resume"),
    output:
        **W.outputs("resume"),
    log:
        W.log("resume"),
    wildcard_constraints:
        dataset=W.trained,
    conda:
        "../envs/ipdiff.yaml"
    threads: W.threads("resume")
    resources:
        attempt=W.attempt,
        mem_mb=W.memory("resume"),
        gpu=W.gpus("resume"),
    params:
        values=W.params("resume"),
        code=W.code("resume"),
    shell:
        W.command("resume")
