"""Kills, a full disk, jobs that end together, a torn dvc.lock: the next run repairs it, and nothing is damaged."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from patience import PATIENCE_S
from workflow.engines import cells, changed, damaged, environment, outputs, planned, run, stale
from workflow.test_stale import edit

pytestmark = pytest.mark.workflow

KILLED_WHILE_PUBLISHING = """
import os, signal, sys
from ipdiff import cli
from ipdiff.pipeline.store import artifact

def move(path, final):
    if path.name == "recipe.json" and "table3" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
    real(path, final)

real, artifact._move = artifact._move, move
os.environ.pop("IPDIFF_WARM", None)  # this process does the work, not one that has torch imported
raise SystemExit(cli.main())
"""

HEAD_KILLED = """
import os, signal, sys, time
from ipdiff import cli

code = 0 if sys.argv[1] == "sync" else cli.main()
if sys.argv[1] == "{verb}":
    os.kill(int(os.environ["HEAD"]), signal.SIGKILL)
    time.sleep(1)
raise SystemExit(code)
"""

ENDING_TOGETHER = """
import sys, time
from pathlib import Path
from ipdiff import cli

code = cli.main()
if sys.argv[1] in ("table", "figure"):
    Path("work/done-" + sys.argv[-1]).touch()
    patience = time.monotonic() + {patience_s}
    while len(list(Path("work").glob("done-*"))) < {views}:
        if time.monotonic() > patience:
            raise SystemExit("the others did not come")
        time.sleep(0.01)
raise SystemExit(code)
"""

BUSY = """
import time
from pathlib import Path

Path("work/busy").touch()
time.sleep(600)
"""

SHELL_WITH_PID = 'export HEAD=$$; exec snakemake "$@"'


def shimmed(project: Path, ipdiff: str) -> dict[str, str]:
    """An environment with another `ipdiff` in front of the real one."""
    shim = project / "work/shim/ipdiff"
    shim.parent.mkdir(parents=True, exist_ok=True)
    shim.write_text(f"#!{sys.executable}\n{ipdiff}")
    shim.chmod(0o755)
    env = environment(project)
    env["PATH"] = f"{shim.parent}{os.pathsep}{env['PATH']}"
    return env


def snakemake(project: Path, ipdiff: str, *, code: int) -> None:
    """Make the mini study with another `ipdiff` in front of the real one; $HEAD is Snakemake's process."""
    command = ["bash", "-c", SHELL_WITH_PID, "snakemake", "--cores", "8", "mini"]
    done = subprocess.run(command, cwd=project, env=shimmed(project, ipdiff), capture_output=True, text=True)
    assert done.returncode == code, done.stderr[-3000:]


@pytest.fixture
def redrawn(by_snakemake: Path, copy: Callable[[Path], Path]) -> Path:
    """The mini study with other code of its tables and figures: their jobs and the report's are due."""
    project = copy(by_snakemake)
    edit(project / "ipdiff/report/results.py", lambda text: f"{text}\n_REDRAWN = True\n")
    due = {name for name, cell in cells(project).items() if cell.stage.verb in ("table", "summary", "figure", "report")}
    assert stale(project).keys() == due
    return project


@pytest.fixture
def unrecorded(by_snakemake: Path, copy: Callable[[Path], Path]) -> Path:
    """The mini study, made, and nothing of it in dvc.lock or the cache."""
    project = copy(by_snakemake)
    (project / "studies/mini/dvc.lock").unlink()
    shutil.rmtree(project / ".dvc/cache")
    return project


def receipts(project: Path) -> dict[str, bytes]:
    """What says when an artifact was made; recording gives its files other times."""
    return {str(path): path.read_bytes() for path in (project / "receipts").rglob("*.json")}


def assert_whole(project: Path) -> None:
    """All is made and recorded, nothing is damaged, and no unfinished file lies about."""
    assert stale(project) == {}
    assert planned(project) == set()
    assert changed(project) == set()
    assert damaged(project) == []
    assert list((project / "work/staging").iterdir()) == []


def test_a_job_killed_while_it_publishes(redrawn: Path) -> None:
    snakemake(redrawn, KILLED_WHILE_PUBLISHING, code=1)
    assert damaged(redrawn) == []
    assert len(list((redrawn / "work/staging").iterdir())) <= 1  # a job that started later has swept what is left
    assert stale(redrawn) == {"tables/mini/table3": "missing", "tables/mini": "changed", "report/mini": "changed"}
    assert changed(redrawn) == stale(redrawn).keys()  # the others were kept, and recorded
    run(redrawn, "snakemake", "--cores", "2", "mini")
    assert_whole(redrawn)


@pytest.mark.parametrize("verb", ["sync", "report"], ids=["while it records", "when the last job ends"])
def test_the_head_process_is_killed(redrawn: Path, verb: str) -> None:
    snakemake(redrawn, HEAD_KILLED.format(verb=verb), code=-9)
    assert damaged(redrawn) == []
    assert changed(redrawn) != set()
    made = receipts(redrawn)
    run(redrawn, "snakemake", "--cores", "2", "mini")
    assert receipts(redrawn) == made  # nothing was made twice
    assert_whole(redrawn)


@contextmanager
def busy(project: Path, *targets: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Snakemake, in a process group of its own, whose first job goes on for ever; killed with all it started."""
    (project / "work/busy").unlink(missing_ok=True)
    command = ["snakemake", "--cores", "1", *targets]
    process = subprocess.Popen(
        command, cwd=project, env=shimmed(project, BUSY), start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        while not (project / "work/busy").exists():
            assert process.poll() is None
            time.sleep(0.05)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


IMAGES = "data/digits_mini/images.npy"


def locks(project: Path) -> set[str]:
    return {path.name for path in (project / ".snakemake/locks").glob("*")}


def test_a_lock_is_respected_while_it_is_held_and_taken_off_when_its_holder_was_killed(project: Path) -> None:
    with busy(project, IMAGES) as process:
        held = locks(project)
        assert held
        refused = run(project, "snakemake", "--cores", "1", IMAGES, code=1)
        assert "Directory cannot be locked" in refused.stderr
        run(project, "snakemake", "--cores", "1", "--dry-run", IMAGES)
        assert locks(project) == held
        assert process.poll() is None
    assert locks(project) == held
    said = run(project, "snakemake", "--cores", "1", IMAGES).stderr
    assert "took off the lock of a Snakemake that was killed" in said
    assert (project / IMAGES).exists()
    assert locks(project) == set()


def test_without_git_everything_is_made_and_nothing_recorded_as_is_said_before(project: Path) -> None:
    shutil.rmtree(project / ".git")
    said = run(project, "snakemake", "--cores", "1", IMAGES).stderr
    assert (project / IMAGES).exists()
    assert said.count("what is made will not be recorded: DVC needs a git repository: git init") == 1
    for command in ("sync", "pull"):
        line = run(project, "ipdiff", command, code=2).stderr
        assert line.count("\n") == 1
        assert "DVC needs a git repository: git init" in line
    run(project, "git", "init", "--quiet")
    assert "recorded 1 cells" in run(project, "ipdiff", "sync").stdout


@pytest.fixture
def read_only(project: Path) -> Iterator[Path]:
    """The same project on a file system that takes no writes."""
    for command in (["mount", "--bind", str(project), str(project)], ["mount", "-o", "remount,bind,ro", str(project)]):
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("nothing can be mounted here (not root?)")
    yield project
    subprocess.run(["umount", str(project)], check=False, capture_output=True)


def test_a_project_that_takes_no_writes_is_one_line(read_only: Path) -> None:
    said = run(read_only, "snakemake", "--cores", "1", IMAGES, code=2).stderr
    assert "Traceback" not in said
    assert "Read-only file system; use a copy of the project that you may write" in said
    line = run(read_only, "ipdiff", "prepare", "--dataset", "digits_mini", code=2).stderr
    assert line == "ipdiff: work: Read-only file system; use a copy of the project that you may write\n"


@pytest.mark.slow
def test_the_same_command_again_after_every_kill(project: Path) -> None:
    """The whole group is killed again and again, each time a little later."""
    for delay in (1, 2, 4, 7, 11, 16):
        process = subprocess.Popen(
            ["snakemake", "--cores", "2", "mini"], cwd=project, env=environment(project), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(delay)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert damaged(project) == []
    run(project, "snakemake", "--cores", "2", "mini")
    assert_whole(project)


@pytest.mark.slow
def test_two_snakemakes_of_different_targets_run_side_by_side(
    project: Path,
) -> None:
    with busy(project, IMAGES):
        other = "data/digits/images.npy"
        run(project, "snakemake", "--cores", "1", other)
        assert (project / other).exists()


def test_jobs_that_end_together_are_all_recorded(redrawn: Path) -> None:
    views = [name for name, cell in cells(redrawn).items() if cell.stage.verb in ("table", "figure")]
    snakemake(redrawn, ENDING_TOGETHER.format(views=len(views), patience_s=PATIENCE_S), code=0)
    assert_whole(redrawn)


@pytest.fixture
def full_disk(unrecorded: Path) -> Iterator[Path]:
    """The same project with a cache that holds 64 KiB."""
    cache = unrecorded / ".dvc/cache"
    cache.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(cache)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here (not root?)")
    yield unrecorded
    subprocess.run(["umount", str(cache)], check=False, capture_output=True)


def test_a_full_disk_while_recording(full_disk: Path) -> None:
    done = run(full_disk, "ipdiff", "sync", code=2)
    assert "No space left on device" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (full_disk / "studies/mini/dvc.lock").exists()
    assert damaged(full_disk) == []
    run(full_disk, "umount", str(full_disk / ".dvc/cache"))
    assert f"recorded {len(cells(full_disk))} cells" in run(full_disk, "ipdiff", "sync").stdout
    assert_whole(full_disk)


@pytest.mark.slow
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
    assert_whole(unrecorded)


@pytest.mark.slow
@pytest.mark.parametrize("part", [0.0, 0.31, 0.62, 0.99])
def test_a_torn_lock_is_written_anew(by_snakemake: Path, copy: Callable[[Path], Path], part: float) -> None:
    project = copy(by_snakemake)
    lock = project / "studies/mini/dvc.lock"
    before = lock.read_text()
    lock.write_text(before[: int(len(before) * part)])
    done = run(project, "ipdiff", "sync")
    assert "Traceback" not in done.stderr
    assert sorted(lock.read_text().splitlines()) == sorted(before.splitlines())
    assert_whole(project)


@pytest.mark.slow
def test_a_tampered_output_is_not_recorded(unrecorded: Path) -> None:
    metrics = unrecorded / "metrics/digits_mini/adm/s0/8/ancestral-5/metrics.json"
    before = outputs(unrecorded)
    text = metrics.read_text()
    metrics.write_text(text.replace('"n": 64', '"n": 65'))
    done = run(unrecorded, "ipdiff", "sync", code=3)
    assert str(metrics.relative_to(unrecorded)) in done.stderr
    assert damaged(unrecorded) == []
    metrics.write_text(text)
    run(unrecorded, "ipdiff", "sync")
    assert_whole(unrecorded)
    assert outputs(unrecorded) == before
