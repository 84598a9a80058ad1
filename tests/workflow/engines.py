"""What both engines say and do, as plain data."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from ipdiff.pipeline import grid
from ipdiff.pipeline.engines import dvc_files
from ipdiff.pipeline.store.artifact import file_digest

MINI = "studies/mini/dvc.yaml"


def environment(project: Path) -> dict[str, str]:
    """Commands of this Python, the package of the project, and DVC's state inside it."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(project),
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(project / ".dvc/tmp/site"),
        "GIT_AUTHOR_NAME": "test", "GIT_AUTHOR_EMAIL": "test@example.org",
        "GIT_COMMITTER_NAME": "test", "GIT_COMMITTER_EMAIL": "test@example.org",
    }  # fmt: skip


def run(project: Path, *command: str, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the project; fail with its output if it ends with another exit code. `more`: environment."""
    done = subprocess.run(command, cwd=project, env=environment(project) | more, capture_output=True, text=True)
    assert done.returncode == code, f"{command}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done


def cells(project: Path, study: str = "mini") -> dict[str, grid.Cell]:
    """A study's cells by their directory, with the parameters the project has now."""
    return {cell.directory: cell for cell in grid.load(project).study(study)}


def planned(project: Path, *targets: str, study: str = "mini") -> set[str]:
    """Directories of the study's cells that Snakemake would make (for the whole study, if there are no targets)."""
    said = run(project, "snakemake", "--cores", "2", "--dry-run", "--printshellcmds", *(targets or [study]))
    commands = set(re.findall(r"ipdiff [a-z]+ --[^>\n]*?(?= > )", said.stdout + said.stderr))
    return {cell.directory for cell in cells(project, study).values() if cell.command in commands}


def stale(project: Path, study: str = "mini") -> dict[str, str]:
    """The grid's prediction for a study: directory -> why it is stale."""
    lines = run(project, "ipdiff", "grid", "--stale", "--study", study).stdout.splitlines()
    return {directory: state for state, _, directory in (line.split("\t") for line in lines)}


def changed(project: Path, study: str = "mini") -> set[str]:
    """Directories of the study's cells that DVC calls changed, and of all that DVC would make from those."""
    names = {name.rpartition(":")[2] for name in _run(DVC_CHANGED, project, str(dvc_files.path_of(study)))}
    return {cell.directory for cell in cells(project, study).values() if dvc_files.address(cell) in names}


def outputs(project: Path) -> dict[str, str]:
    """Digests of all outputs of the mini study."""
    return {path: file_digest(project / path) for cell in cells(project).values() for path in cell.outputs}


def damaged(project: Path) -> list[str]:
    """Objects of DVC's cache whose bytes are not those of their name."""
    files = [path for path in (project / ".dvc/cache/files/md5").glob("??/[0-9a-f]*") if path.is_file()]
    return [str(path) for path in files if file_digest(path) != path.parent.name + path.name]


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
        {"command": job.shellcmd.partition("ATTEMPT=1 ")[2].partition(" > ")[0],
         "inputs": sorted(map(str, job.input)), "outputs": sorted(map(str, job.output)),
         "params": json.loads(job.params.values), "code": job.params.code}
        for job in dag.jobs if job.output
    ]
print("GRAPH" + json.dumps(jobs))
"""

DVC_CHANGED = """
import json, sys
import networkx
from dvc.repo import Repo

repo = Repo(".")
repo.reproduce(targets=[f"{sys.argv[1]}:settings"])  # what a changed parameter or line of code is to the cells
repo = Repo(".")
changed = set(repo.status(targets=[sys.argv[1]]))
graph = repo.index.graph  # edges point from users to makers
below = {user.addressing for stage in graph if stage.addressing in changed for user in networkx.ancestors(graph, stage)}
print("GRAPH" + json.dumps(sorted(changed | below)))
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


def _run(code: str, project: Path, *args: str) -> Any:
    return json.loads(run(project, sys.executable, "-c", code, *args).stdout.rpartition("GRAPH")[2])


def snakemake_graph(project: Path, *targets: str) -> list[dict]:
    """Every job of these targets, as if nothing existed."""
    return _run(SNAKEMAKE_GRAPH, project, *targets)


def dvc_graph(project: Path) -> list[dict]:
    """Every stage of every dvc.yaml."""
    return _run(DVC_GRAPH, project)
