# Snakemake looks here first. A bare include would leave no default target; a module keeps it.
module ipdiff:
    snakefile:
        "workflow/Snakefile"


use rule * from ipdiff
