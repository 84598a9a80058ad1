"""Kills, a full disk, two at once, a torn dvc.lock: the next run repairs it, and nothing is damaged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from workflow.engines import MINI, damaged, environment, outputs, planned, run, stale
from workflow.test_stale import edit

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

METRICS = "metrics/digits_mini/adm/s0/8/ancestral-5"

KILLED_WHILE_PUBLISHING = """
import os, signal, sys
from ipdiff import artifact, cli

def flush(path):
    if path.name == "recipe.json" and {"evaluate", "adm", "ancestral-5"} <= set(sys.argv):
        os.kill(os.getpid(), signal.SIGKILL)
    real(path)

real, artifact._flush = artifact._flush, flush
raise SystemExit(cli.main())
"""

HEAD_KILLED = """
import os, signal, sys, time
from pathlib import Path
from ipdiff import cli

code = 0 if sys.argv[1] == "sync" else cli.main()
if {when}:
    os.kill(int(os.environ["HEAD"]), signal.SIGKILL)
    time.sleep(1)
raise SystemExit(code)
"""

SHELL_WITH_PID = 'export HEAD=$$; exec snakemake "$@"'


@pytest.fixture
def remeasured(by_snakemake: Path, copy: Callable[[Path], Path]) -> Path:
    """The mini study with other code of the metrics: three metrics and what is below them are due."""
    project = copy(by_snakemake)
    edit(project / "ipdiff/evaluate.py", "DIGITS = 10", "DIGITS = 9")
    return project


@pytest.fixture
def unrecorded(by_dvc: Path, copy: Callable[[Path], Path]) -> Path:
    """The mini study, made, and nothing of it in dvc.lock or the cache."""
    project = copy(by_dvc)
    (project / "workflow/mini/dvc.lock").unlink()
    shutil.rmtree(project / ".dvc/cache")
    return project


def snakemake(project: Path, ipdiff: str, *, code: int) -> None:
    """Make the mini study with another `ipdiff` in front of the real one."""
    shim = project / "work/shim/ipdiff"
    shim.parent.mkdir(parents=True)
    shim.write_text(f"#!{sys.executable}\n{ipdiff}")
    shim.chmod(0o755)
    env = environment(project)
    env["PATH"] = f"{shim.parent}{os.pathsep}{env['PATH']}"
    command = ["bash", "-c", SHELL_WITH_PID, "snakemake", "--cores", "2", "mini"]
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True)
    assert done.returncode == code, done.stderr[-3000:]


def whole(project: Path) -> None:
    """Assert that all is made and recorded, and nothing damaged."""
    assert stale(project) == {}
    assert planned(project) == set()
    assert "up to date" in run(project, "dvc", "status", MINI).stdout
    assert damaged(project) == []


def test_a_job_killed_while_it_publishes(remeasured: Path) -> None:
    snakemake(remeasured, KILLED_WHILE_PUBLISHING, code=1)
    assert damaged(remeasured) == []
    assert stale(remeasured)[METRICS] == "missing"
    done = {name for name in stale(remeasured) if name.startswith("metrics/")}
    assert done == {METRICS}  # the others were kept, and recorded
    assert (
        "up to date" in run(remeasured, "dvc", "status", f"{MINI}:evaluate@digits_mini-adm-ip-s0-8-exposure-10").stdout
    )
    run(remeasured, "snakemake", "--cores", "2", "mini")
    whole(remeasured)


@pytest.mark.parametrize(
    "when", ['sys.argv[1] == "sync"', 'sys.argv[1] == "table"'], ids=["while it records", "when a job ends"]
)
def test_the_head_process_is_killed(remeasured: Path, when: str) -> None:
    snakemake(remeasured, HEAD_KILLED.format(when=when), code=-9)
    assert damaged(remeasured) == []
    assert "up to date" not in run(remeasured, "dvc", "status", MINI).stdout
    made = {path: (remeasured / path).stat().st_mtime_ns for path in (f"{METRICS}/metrics.json",)}
    run(remeasured, "snakemake", "--unlock")
    run(remeasured, "snakemake", "--cores", "2", "mini")
    assert made == {path: (remeasured / path).stat().st_mtime_ns for path in made}  # not made twice
    whole(remeasured)


@pytest.fixture
def full_disk(unrecorded: Path) -> Iterator[Path]:
    """The same project with a cache that holds 64 KiB."""
    cache = unrecorded / ".dvc/cache"
    cache.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(cache)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here (not root?)")
    yield unrecorded
    subprocess.run(["umount", str(cache)], check=False)


def test_a_full_disk_while_recording(full_disk: Path) -> None:
    done = run(full_disk, "ipdiff", "sync", code=2)
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (full_disk / "workflow/mini/dvc.lock").exists()
    assert damaged(full_disk) == []
    run(full_disk, "umount", str(full_disk / ".dvc/cache"))
    assert "recorded 20 cells" in run(full_disk, "ipdiff", "sync").stdout
    whole(full_disk)


def test_two_syncs_at_once(unrecorded: Path) -> None:
    both = [
        subprocess.Popen(
            ["ipdiff", "sync"], cwd=unrecorded, env=environment(unrecorded), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    whole(unrecorded)


@pytest.mark.parametrize("part", [0.0, 0.31, 0.62, 0.99])
def test_a_torn_lock_is_written_anew(by_snakemake: Path, copy: Callable[[Path], Path], part: float) -> None:
    project = copy(by_snakemake)
    lock = project / "workflow/mini/dvc.lock"
    before = lock.read_text()
    lock.write_text(before[: int(len(before) * part)])
    done = run(project, "ipdiff", "sync")
    assert "Traceback" not in done.stderr
    assert sorted(lock.read_text().splitlines()) == sorted(before.splitlines())
    whole(project)


def test_a_tampered_output_is_not_recorded(unrecorded: Path) -> None:
    metrics = unrecorded / f"{METRICS}/metrics.json"
    before = outputs(unrecorded)
    text = metrics.read_text()
    metrics.write_text(text.replace('"n": 64', '"n": 65'))
    done = run(unrecorded, "ipdiff", "sync", code=3)
    assert f"{METRICS}/metrics.json" in done.stderr
    assert damaged(unrecorded) == []
    metrics.write_text(text)
    run(unrecorded, "ipdiff", "sync")
    whole(unrecorded)
    assert outputs(unrecorded) == before
