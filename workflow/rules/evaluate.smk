rule evaluate:
    input:
        W.inputs("evaluate"),
    output:
        **W.outputs("evaluate"),
    log:
        W.log("evaluate"),
    params:
        values=W.params("evaluate"),
        code=W.code("evaluate"),
    shell:
        W.command("evaluate")
