import os

# Snakemake looks here first. A bare include would leave no default target; a module keeps it.
if os.path.exists("config/config.yaml"):

    configfile: "config/config.yaml"


module ipdiff:
    snakefile:
        "workflow/Snakefile"
    config:
        config


use rule * from ipdiff


# Torch is imported once, for all jobs that run on this machine. A cluster's jobs have to do their work themselves.
onstart:
    if workflow.local_exec:
        from ipdiff.pipeline.engines import fork_server

        fork_server.start()


# What was made is recorded in dvc.lock and DVC's cache, by one process on this node.
onsuccess:
    shell("ipdiff sync --record-only")


onerror:
    shell("ipdiff sync --record-only")
