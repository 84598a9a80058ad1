"""Both engines' view of the graph, as plain data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SNAKEMAKE_GRAPH = """
import json, sys
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, Quietness, ResourceSettings

with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
    workflow = api.workflow(resource_settings=ResourceSettings(cores=1), config_settings=ConfigSettings(),
                            snakefile=Path("Snakefile"))
    dag_api = workflow.dag(DAGSettings(targets=set(sys.argv[1:]), forceall=True))
    dag_api.execute_workflow(executor="dryrun")
    dag = workflow._workflow.dag
    jobs = [
        {"command": job.shellcmd, "inputs": sorted(map(str, job.input)), "outputs": sorted(map(str, job.output)),
         "params": json.loads(job.params.values), "code": job.params.code}
        for job in dag.jobs if job.output
    ]
print("GRAPH" + json.dumps(jobs))
"""

DVC_GRAPH = """
import json, sys
from dvc.repo import Repo

stages = []
for stage in Repo(".").index.stages:
    params, deps = [], []
    for dep in stage.deps:
        if hasattr(dep, "params"):
            params += dep.params
        else:
            deps.append(dep.def_path)
    stages.append({"address": stage.addressing, "cmd": stage.cmd, "wdir": stage.wdir, "deps": deps,
                   "params": sorted(set(params)), "outs": [out.fs_path for out in stage.outs]})
print("GRAPH" + json.dumps(stages))
"""


def _run(code: str, project: Path, *args: str) -> list[dict]:
    done = subprocess.run([sys.executable, "-c", code, *args], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("GRAPH")[2])


def snakemake_graph(project: Path, *targets: str) -> list[dict]:
    """Every job of these targets, as if nothing existed."""
    return _run(SNAKEMAKE_GRAPH, project, *targets)


def dvc_graph(project: Path) -> list[dict]:
    """Every stage of every dvc.yaml."""
    return _run(DVC_GRAPH, project)
