rule sample:
    input:
        W.inputs("sample"),
    output:
        **W.outputs("sample"),
    log:
        W.log("sample"),
    params:
        values=W.params("sample"),
        code=W.code("sample"),
    shell:
        W.command("sample")
