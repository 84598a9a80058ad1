rule table:
    input:
        W.inputs("table"),
    output:
        **W.outputs("table", "../report/table.rst"),
    log:
        W.log("table"),
    localrule: True
    conda:
        "../envs/ipdiff.yaml"
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
    conda:
        "../envs/ipdiff.yaml"
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
        **W.outputs("figure", "../report/figure.rst"),
    log:
        W.log("figure"),
    localrule: True
    conda:
        "../envs/ipdiff.yaml"
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
        **W.outputs("report", "../report/page.rst"),
    log:
        W.log("report"),
    localrule: True
    conda:
        "../envs/ipdiff.yaml"
    resources:
        attempt=W.attempt,
    params:
        values=W.params("report"),
        code=W.code("report"),
    shell:
        W.command("report")
