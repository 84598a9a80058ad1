rule table:
    input:
        W.inputs("table"),
    output:
        **W.outputs("table"),
    log:
        W.log("table"),
    localrule: True
    resources:
        attempt=W.attempt,
    params:
        values=W.params("table"),
        code=W.code("table"),
    shell:
        W.command("table")


rule summary:
    input:
        W.inputs("summary"),
    output:
        **W.outputs("summary"),
    log:
        W.log("summary"),
    localrule: True
    resources:
        attempt=W.attempt,
    params:
        values=W.params("summary"),
        code=W.code("summary"),
    shell:
        W.command("summary")


rule figure:
    input:
        W.inputs("figure"),
    output:
        **W.outputs("figure"),
    log:
        W.log("figure"),
    localrule: True
    resources:
        attempt=W.attempt,
    params:
        values=W.params("figure"),
        code=W.code("figure"),
    shell:
        W.command("figure")


rule html:
    input:
        W.inputs("report"),
    output:
        **W.outputs("report"),
    log:
        W.log("report"),
    localrule: True
    resources:
        attempt=W.attempt,
    params:
        values=W.params("report"),
        code=W.code("report"),
    shell:
        W.command("report")
