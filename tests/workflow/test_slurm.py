"""The mini study on a real one-node Slurm, through both profiles, with jobs killed, warned, timed out and preempted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from patience import PATIENCE_S, wait_until
from workflow.conftest import make_project
from workflow.engines import MINI, environment, outputs, planned, run

SCRIPT = Path(__file__).with_name("slurm.sh")
NOTHING_TO_START = 69
QUICK = ["--seconds-between-status-checks", "1", "--latency-wait", "10"]

pytestmark = [pytest.mark.workflow, pytest.mark.slow]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Slurm of our own with one node, two cores and the partitions main and scavenge."""
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([SCRIPT, "start", folder], capture_output=True, text=True)
    if started.returncode == NOTHING_TO_START:
        pytest.skip(started.stderr.strip())
    assert started.returncode == 0, started.stderr
    try:
        yield
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True)


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose mini study trains for some seconds a segment, saving often; without data."""
    project = make_project(tmp_path_factory.mktemp("longer"))
    params = project / "studies/mini/params.yaml"
    text = params.read_text().replace("    - 4\n    - 8\n", "    - 600\n    - 700\n", 1)
    text = text.replace("default: 8\n", "default: 700\n", 1)
    params.write_text(f"{text}\nwork: {{save_every: 10}}\n")
    run(project, "ipdiff", "grid", "--write")
    run(project, "git", "commit", "--quiet", "--all", "-m", "longer training")
    return project


def cloned(project: Path, where: Path) -> Path:
    run(project, "git", "clone", "--quiet", str(project), str(where))
    return where


@pytest.fixture(scope="module")
def undisturbed(longer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the study's outputs, made here in one go."""
    project = cloned(longer, tmp_path_factory.mktemp("undisturbed") / "project")
    run(project, "snakemake", "--cores", "2", "mini")
    return outputs(project)


@dataclass(frozen=True)
class NodeJob:
    """A job's ipdiff process on the node, stopped after it has saved a state."""

    project: Path
    pid: int
    slurm_id: str
    log: Path

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """What a crash of the node leaves of the job's processes: nothing."""
        for pid in (_parent(self.pid), self.pid):
            os.kill(pid, signal.SIGKILL)

    def ended(self) -> str:
        """Wait for the end of the process; return what it had said."""
        wait_until(lambda: not Path(f"/proc/{self.pid}").exists())
        return self.log.read_text()


def _parent(pid: int) -> int:
    return int(_status(pid)["PPid"])


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def catch(project: Path, model: str, step: int, driver: subprocess.Popen[str]) -> NodeJob:
    """Wait until a training has saved a state, and stop its process."""
    wanted = ["train", "--dataset", "digits_mini", "--model", model, "--seed", "0", "--step", str(step)]
    log = project / f"logs/runs/digits_mini/{model}/s0/{step}.log"
    end = time.monotonic() + PATIENCE_S
    before: dict[int, set[Path]] = {}
    while time.monotonic() < end and driver.poll() is None:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_text().split("\0")[:-1]
                if command[-len(wanted) :] != wanted or not Path(command[-len(wanted) - 1]).name == "ipdiff":
                    continue
                pid = int(process.name)
                if (process / "cwd").resolve() != project.resolve():
                    continue
                if states_of(project, model) <= before.setdefault(pid, states_of(project, model)):
                    continue
                os.kill(pid, signal.SIGSTOP)
                variables = dict(part.partition("=")[::2] for part in (process / "environ").read_text().split("\0"))
            except OSError:  # it ended meanwhile
                continue
            return NodeJob(project, pid, variables["SLURM_JOB_ID"], log)
        time.sleep(0.02)
    raise AssertionError(f"no training of {model} to step {step} was seen; snakemake: {driver.poll()}")


def states_of(project: Path, model: str) -> set[Path]:
    """Train states in work/ of a model's run."""
    return set((project / "work/states/digits_mini" / model / "s0").glob("*/[0-9]*.safetensors"))


def start_again(project: Path, slurm_id: str) -> None:
    """Let a requeued job start: Slurm itself would wait for two minutes."""

    def state() -> str:
        return run(project, "squeue", "--noheader", f"--jobs={slurm_id}", "--format=%T").stdout.strip()

    wait_until(lambda: state() == "PENDING", state)
    run(project, "scontrol", "update", f"JobId={slurm_id}", "StartTime=now")


def snakemake(project: Path, disturb: Callable[[subprocess.Popen[str]], None], *options: str, **more: str) -> str:
    """Run the mini study on Slurm while `disturb` does its worst; return what Snakemake said."""
    said = project / "snakemake.out"
    with said.open("w") as stream:
        driver = subprocess.Popen(
            ["snakemake", *options, "mini"],
            cwd=project, env=environment(project) | more, stdout=stream, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            disturb(driver)
            code = driver.wait(timeout=PATIENCE_S)
        finally:
            driver.kill()
            driver.wait()
    text = said.read_text()
    said.unlink()
    assert code == 0, text[-6000:]
    assert text.count("cells with DVC") == 1
    return text


def check(project: Path, undisturbed: dict[str, str]) -> None:
    """The bytes are those of the undisturbed run, and both engines know that all is done."""
    assert outputs(project) == undisturbed
    assert "up to date" in run(project, "dvc", "status", MINI).stdout
    assert planned(project) == set()
    assert run(project, "git", "status", "--short").stdout.split() == ["??", "studies/mini/dvc.lock"]
    said_on_nodes = [path.read_text() for path in (project / "logs").rglob("*.log")]
    assert said_on_nodes
    assert not any("cells with DVC" in text for text in said_on_nodes), "a node job has recorded"


def test_the_slurm_profile_with_a_kill_a_warning_and_a_time_limit(
    slurm: None, longer: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    project = cloned(longer, tmp_path / "project")

    def disturb(driver: subprocess.Popen[str]) -> None:
        killed = catch(project, "adm", 600, driver)
        killed.kill()
        warned = catch(project, "adm-ip", 600, driver)
        run(project, "scancel", "--signal=TERM", warned.slurm_id)  # what --signal=TERM@120 does
        warned.go_on()
        assert "saved, run me again to go on" in warned.ended()
        timed_out = catch(project, "adm", 700, driver)
        run(project, "scontrol", "update", f"JobId={timed_out.slurm_id}", "EndTime=now")
        assert "saved, run me again to go on" in timed_out.ended()

    said = snakemake(
        project, disturb, "--profile", "profiles/slurm", "--slurm-status-command", "squeue",
        "--slurm-init-seconds-before-status-checks", "1", *QUICK,
    )  # fmt: skip
    assert len(re.findall("Trying to restart job", said)) == 3
    check(project, undisturbed)


def test_the_sbatch_profile_with_a_kill_and_a_preemption(
    slurm: None, longer: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    project = cloned(longer, tmp_path / "project")

    def disturb(driver: subprocess.Popen[str]) -> None:
        killed = catch(project, "adm", 600, driver)
        killed.kill()
        preempted = catch(project, "adm", 700, driver)
        other = ["--partition=main", "--ntasks=2", "--mem=10", "--output=/dev/null", "--wrap=sleep 3"]
        run(project, "sbatch", *other)
        assert "saved, run me again to go on" in preempted.ended()
        start_again(project, preempted.slurm_id)

    said = snakemake(
        project, disturb, "--profile", "profiles/cluster-generic-slurm", *QUICK, SBATCH_PARTITION="scavenge"
    )  # fmt: skip
    assert len(re.findall("Trying to restart job", said)) == 1, "the killed one; Slurm itself requeues the other"
    check(project, undisturbed)
