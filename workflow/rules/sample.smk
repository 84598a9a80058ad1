rule sample:
    input:
        W.inputs("sample"),
    output:
        **W.outputs("sample"),
    log:
        W.log("sample"),
    conda:
        "../envs/ipdiff.yaml"
    threads: W.threads("sample")
    resources:
        attempt=W.attempt,
        mem_mb=W.memory("sample"),
        gpu=W.gpus("sample"),
    params:
        values=W.params("sample"),
        code=W.code("sample"),
    shell:
        W.command("sample")
