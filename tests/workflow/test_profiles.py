"""Cluster profiles without a cluster: what is submitted for a job, what its status means, what a warning does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from patience import PATIENCE_S
from workflow.conftest import ROOT
from workflow.engines import environment, run

from ipdiff.pipeline import grid
from ipdiff.pipeline.engines.workflow import memory_mb

PROFILES = ROOT / "profiles"
SUBMIT = {"slurm": "sbatch", "cluster-generic-slurm": "sbatch", "sge": "qsub", "pbs": "qsub", "lsf": "bsub"}
WANTED = {
    "slurm": "--mem {mem} |-t 720 |--gpus=2|--cpus-per-task=2|--signal=TERM@120|--requeue",
    "cluster-generic-slurm": "--mem={mem} |--time=720 |--gpus=2 |--cpus-per-task=2 |--signal=B:TERM@120 |--requeue",
    "sge": "-pe smp 2 |h_rt=43200,s_rt=43080 |h_vmem={half}M |-l gpu=2 |-N ipdiff-train ",
    "pbs": "-l walltime=43200 |-l select=1:ncpus=2:mem={mem}mb:ngpus=2 |-N ipdiff-train ",
    "lsf": "-n 2 |-R rusage[mem={mem}MB] |-W 720 |-wt 2 -wa TERM |-gpu num=2 |-J ipdiff-train ",
}

QUICK = ["--seconds-between-status-checks", "1", "--latency-wait", "1"]

pytestmark = pytest.mark.workflow


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A directory for programs of a scheduler that is not here."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def put(folder: Path, name: str, script: str) -> None:
    """Write a program."""
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


def found_first(folder: Path) -> dict[str, str]:
    """An environment in which these programs are found before others."""
    return {"PATH": f"{folder}{os.pathsep}{environment(ROOT)['PATH']}"}


@pytest.mark.parametrize(
    "profile", [pytest.param(name, marks=[] if name in ("slurm", "sge") else pytest.mark.slow) for name in SUBMIT]
)
def test_a_training_on_two_gpus_is_submitted_with_more_memory_each_time(
    profile: str, project: Path, programs: Path
) -> None:
    params = project / "studies/mini/params.yaml"
    params.write_text(params.read_text().replace("device: cpu", "device: cuda", 1))
    run(project, "ipdiff", "prepare", "--dataset", "digits_mini")
    put(programs, "sinfo", "echo 'main*'")  # the Slurm plugin asks for the default partition
    for asked_first in ("squeue", "sacct", "sacctmgr"):  # and does not even load where it finds none of these
        put(programs, asked_first, "exit 0")
    put(programs, SUBMIT[profile], f'echo "$@ " >> {programs}/asked; exit 1')
    quick = [*QUICK, *(["--slurm-init-seconds-before-status-checks", "1"] if profile == "slurm" else [])]
    said = run(
        project, "snakemake", "--profile", f"profiles/{profile}", *quick, "--preemptible-retries", "1", "--cores", "2",
        "runs/digits_mini/adm/s0/4/ema.safetensors", code=1,
        IPDIFF_PROCESSES="2", **found_first(programs),
    )  # fmt: skip
    asked = (programs / "asked").read_text().splitlines()
    assert len(asked) == 2, said.stderr
    spec = grid.load(project).studies.load("mini").run_spec("digits_mini", "adm", 0)
    one = 2 * memory_mb(spec, trains=True)
    for line, mem in zip(asked, (one, 2 * one), strict=True):
        for part in WANTED[profile].format(mem=mem, half=mem // 2).split("|"):
            assert part in line


def test_a_job_without_a_network_asks_for_no_gpu_and_runs_from_the_jobscript(project: Path, programs: Path) -> None:
    put(
        programs,
        "qsub",
        f'echo "$@ " >> {programs}/asked; "${{@: -1}}" > {programs}/said 2>&1; echo $? > {programs}/code; echo 7',
    )
    put(programs, "qstat", "exit 0")
    put(programs, "qacct", f'echo "failed 0"; echo "exit_status $(cat {programs}/code)"')
    run(project, "snakemake", "--profile", "profiles/sge", "data/digits_mini/images.npy", **found_first(programs))
    asked = (programs / "asked").read_text().splitlines()
    assert [re.findall("-N ipdiff-([a-z]+)", line) for line in asked] == [["prepare"]]
    assert all("gpu" not in line for line in asked)
    assert (project / "data/digits_mini/recipe.json").exists()


KUBECTL = """
case $1 in
create)
  cat > {0}/manifest.yaml
  bash -c "$(grep -o 'bash, .*' {0}/manifest.yaml | tr -d ',]')" > {0}/said 2>&1
  echo $? > {0}/code
  echo job.batch/ipdiff-prepare-x7k2z ;;
get) test $(cat {0}/code) = 0 && echo Complete || echo Failed ;;
esac
"""
"""A cluster that runs a Job where it is created."""


def test_kubernetes_is_given_a_job_on_the_shared_volume(project: Path, programs: Path) -> None:
    put(programs, "kubectl", KUBECTL.format(programs))
    run(
        project, "snakemake", "--profile", "profiles/kubernetes", *QUICK, "data/digits_mini/images.npy",
        **found_first(programs),
    )  # fmt: skip
    assert (project / "data/digits_mini/recipe.json").exists()
    text = (programs / "manifest.yaml").read_text()
    job = yaml.safe_load(text)
    assert (job["kind"], job["metadata"]["generateName"]) == ("Job", "ipdiff-prepare-")
    assert (job["spec"]["backoffLimit"], job["spec"]["activeDeadlineSeconds"]) == (0, 1800)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["workingDir"] == str(project)
    assert container["resources"] == {"requests": {"cpu": "1"}, "limits": {"memory": "4000M"}}
    assert Path(container["command"][1]).is_relative_to(project)
    assert {entry["name"]: entry["value"] for entry in container["env"]}["PYTHONPATH"] == str(project)
    assert [mount["name"] for mount in container["volumeMounts"]] == [volume["name"] for volume in pod["volumes"]]


def test_kubernetes_is_asked_for_gpus_where_a_job_needs_them(programs: Path) -> None:
    put(programs, "kubectl", f"cat > {programs}/manifest.yaml; echo job.batch/ipdiff-train-1")
    submit = [str(PROFILES / "kubernetes/submit.sh"), "train", "4", "16000", "720", "2", "/project/a & b/job.sh"]
    assert run(ROOT, *submit, **found_first(programs)).stdout == "job.batch/ipdiff-train-1\n"
    job = yaml.safe_load((programs / "manifest.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "16000M", "nvidia.com/gpu": "2"}
    assert container["command"] == ["bash", "/project/a & b/job.sh"]
    assert job["spec"]["activeDeadlineSeconds"] == 43200


STATUS = [
    ("cluster-generic-slurm", {"squeue": "echo RUNNING"}, "running"),
    ("cluster-generic-slurm", {"squeue": "echo PENDING"}, "running"),
    ("cluster-generic-slurm", {"squeue": "echo COMPLETED"}, "success"),
    ("cluster-generic-slurm", {"squeue": "echo TIMEOUT"}, "failed"),
    ("cluster-generic-slurm", {"squeue": "echo NODE_FAIL"}, "failed"),
    ("cluster-generic-slurm", {"squeue": "echo 'Unable to contact slurm controller' >&2; exit 1"}, "running"),
    ("cluster-generic-slurm", {"squeue": "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1",
                               "sacct": "echo COMPLETED"}, "success"),
    ("cluster-generic-slurm", {"squeue": "", "sacct": "echo 'CANCELLED by 0'"}, "failed"),
    ("cluster-generic-slurm", {"squeue": "", "sacct": "exit 1"}, "failed"),
    ("sge", {"qstat": "echo ' 7 0.5 ipdiff-train me r 11/23/2026 12:00:00 all.q@n1 1'"}, "running"),
    ("sge", {"qstat": "echo ' 7 0.5 ipdiff-train me Eqw 11/23/2026 12:00:00 1'"}, "failed"),
    ("sge", {"qstat": "echo ' 17 0.5 other me r 11/23/2026 12:00:00 1'",
             "qacct": "echo 'failed 0'; echo 'exit_status 0'"}, "success"),
    ("sge", {"qstat": "", "qacct": "echo 'failed 0'; echo 'exit_status 1'"}, "failed"),
    ("sge", {"qstat": "", "qacct": "echo 'failed 100 : assumedly after job'; echo 'exit_status 137'"}, "failed"),
    ("sge", {"qstat": "exit 1"}, "running"),
    ("pbs", {"qstat": "echo '    job_state = R'"}, "running"),
    ("pbs", {"qstat": "echo '    job_state = F'; echo '    Exit_status = 0'"}, "success"),
    ("pbs", {"qstat": "echo '    job_state = F'; echo '    Exit_status = 271'"}, "failed"),
    ("pbs", {"qstat": "echo 'qstat: Unknown Job Id 7' >&2; exit 153"}, "failed"),
    ("pbs", {"qstat": "echo 'cannot connect to server' >&2; exit 1"}, "running"),
    ("kubernetes", {"kubectl": "echo Complete SuccessCriteriaMet"}, "success"),
    ("kubernetes", {"kubectl": "echo FailureTarget Failed"}, "failed"),
    ("kubernetes", {"kubectl": "echo FailureTarget"}, "running"),
    ("kubernetes", {"kubectl": "echo"}, "running"),
    ("kubernetes", {"kubectl": "echo 'Error from server (NotFound): jobs.batch 7 not found' >&2; exit 1"}, "failed"),
    ("kubernetes", {"kubectl": "echo 'Unable to connect to the server' >&2; exit 1"}, "running"),
    ("lsf", {"bjobs": "echo RUN"}, "running"),
    ("lsf", {"bjobs": "echo PEND"}, "running"),
    ("lsf", {"bjobs": "echo DONE"}, "success"),
    ("lsf", {"bjobs": "echo EXIT"}, "failed"),
    ("lsf", {"bjobs": "echo 'Job <7> is not found' >&2; exit 255"}, "failed"),
    ("lsf", {"bjobs": "echo 'LSF is down' >&2; exit 255"}, "running"),
]  # fmt: skip


@pytest.mark.parametrize(("profile", "scheduler", "status"), STATUS)
def test_what_a_scheduler_says_of_a_job(profile: str, scheduler: dict[str, str], status: str, programs: Path) -> None:
    for name, script in scheduler.items():
        put(programs, name, script)
    said = run(ROOT, str(PROFILES / profile / "status.sh"), "7", **found_first(programs))
    assert said.stdout == f"{status}\n"


def test_lsf_gives_the_number_of_the_job_alone(programs: Path) -> None:
    put(programs, "bsub", "echo 'Job <4711> is submitted to default queue <normal>.'")
    assert run(ROOT, str(PROFILES / "lsf/submit.sh"), "job.sh", **found_first(programs)).stdout == "4711\n"
    put(programs, "bsub", "echo 'Request aborted by esub.' >&2; exit 255")
    run(ROOT, str(PROFILES / "lsf/submit.sh"), "job.sh", code=255, **found_first(programs))


JOB = f"""
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("ready", flush=True)
time.sleep({PATIENCE_S})
"""


@pytest.mark.parametrize("warning", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU])
@pytest.mark.parametrize("job", ["python -c '{code}' && exit 0 || exit $?", "cd / && exit 3 || exit 1"])
def test_a_warning_to_the_jobscript_reaches_the_job_and_its_exit_code_comes_back(
    warning: signal.Signals, job: str, tmp_path: Path
) -> None:
    script = tmp_path / "job.sh"
    text = (PROFILES / "jobscript.sh").read_text()
    script.write_text(text.format(properties="{}", exec_job=job.replace("{code}", JOB.replace("'", '"'))))
    with subprocess.Popen(["bash", str(script)], stdout=subprocess.PIPE, text=True, env=environment(ROOT)) as process:
        assert process.stdout is not None
        if "python" in job:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(warning)
            assert process.wait(timeout=PATIENCE_S) == 75
        else:
            assert process.wait(timeout=PATIENCE_S) == 3


def test_the_container_definition_is_one() -> None:
    sections = re.split(r"^%(\w+)\n", (ROOT / "workflow/envs/ipdiff.def").read_text(), flags=re.MULTILINE)
    body = dict(zip(sections[1::2], sections[2::2], strict=True))
    for line in body["files"].split("\n"):
        assert (ROOT / line.split()[0]).exists() if line.strip() else True
    for name in ("post", "environment", "test"):
        assert subprocess.run(["bash", "-n"], input=body[name], text=True).returncode == 0
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"'\.\[(.*)\]'", body["post"])[0].split(",")) <= extras.keys()
