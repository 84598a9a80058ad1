# Snakemake looks here first. A bare include would leave no default target; a module keeps it.
module ipdiff:
    snakefile:
        "workflow/Snakefile"


use rule * from ipdiff


# What was made is recorded in dvc.lock and DVC's cache, by one process on this node.
onsuccess:
    shell("ipdiff sync --record-only")


onerror:
    shell("ipdiff sync --record-only")
