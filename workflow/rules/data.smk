rule prepare:
    input:
        W.inputs("prepare"),
    output:
        **W.outputs("prepare"),
    log:
        W.log("prepare"),
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
    params:
        values=W.params("reference"),
        code=W.code("reference"),
    shell:
        W.command("reference")
