"""The server that forks for each stage: real processes, real signals."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE_S, wait_until
from unit import params_factory

from ipdiff.pipeline.engines import fork_server
from ipdiff.pipeline.stages import STAGES
from ipdiff.pipeline.store.code_digests import code_files

TRAIN = ["train", "--dataset", "tiny", "--model", "adm", "--seed", "0", "--step"]


@pytest.fixture(scope="module")
def served() -> Iterator[None]:
    """A server, with the settings that a stage's command has."""
    with pytest.MonkeyPatch.context() as patch:
        for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            patch.setenv(pool, "1")
        with fork_server.server():
            yield


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose last checkpoint takes long."""
    raw = params_factory.put(params_factory.small(), "datasets.tiny.checkpoints", [4, 8, 1_000_000])
    raw["work"] = {"save_every": 20}
    params_factory.write(tmp_path, params_factory.put(raw, "datasets.tiny.final_step", {"default": 8}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ipdiff(*argv: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ipdiff", *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def training_for_long() -> Iterator[subprocess.Popen[str]]:
    """Let the server make what comes before the last checkpoint, and begin with that; end it at the latest behind."""
    assert fork_server.run(["prepare", "--dataset", "tiny"]) == 0
    for step in ("4", "8"):
        assert fork_server.run([*TRAIN, step]) == 0
    with ipdiff(*TRAIN, "1000000") as client:
        try:
            yield client
        finally:
            client.kill()


def workers(project: Path) -> list[int]:
    """Processes of the server that work in the project."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            serving = b"--serve" in (process / "cmdline").read_bytes()
            if serving and (process / "cwd").resolve() == project.resolve():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.usefixtures("served")
def test_a_stage_is_run_by_the_server_with_the_callers_directory_and_files(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert fork_server.run(["prepare", "--dataset", "tiny"]) == 0
    assert capfd.readouterr().out == "data/tiny\n"
    assert (project / "data/tiny/recipe.json").exists()
    assert fork_server.run(["prepare", "--dataset", "tinny"]) == 2
    assert capfd.readouterr().err.startswith(
        "ipdiff: dataset 'tinny' is in no study's params.yaml; did you mean 'tiny'?"
    )


IMPORTED = """
import sys
from ipdiff import cli
from ipdiff.pipeline.engines import fork_server
from ipdiff.pipeline.stages import STAGES
from ipdiff.pipeline.store.code_digests import code_files
fork_server._preload()
for command in sys.argv[1:]:
    known = set(sys.modules)
    assert cli.main(command.split()) == 0
    new = {name.partition(".")[0] for name in set(sys.modules) - known}
    print("IMPORTED", command, *sorted(new - sys.stdlib_module_names - {"ipdiff"}))
"""


@pytest.mark.usefixtures("project")
def test_a_forked_stage_has_everything_imported_already() -> None:
    """What the server lacks is imported by every fork anew; a data set's own library is (once) by `prepare`."""
    run = "--dataset tiny --model adm --seed 0 --step 4"
    subprocess.run([sys.executable, "-m", "ipdiff", "prepare", "--dataset", "tiny"], check=True)
    stages = [
        f"train {run}",
        "classifier --dataset tiny",
        "reference --dataset tiny",
        "halves --dataset tiny --samples 64",
        f"sample {run} --sampler ancestral-5",
        f"evaluate {run} --sampler ancestral-5",
    ]
    done = subprocess.run([sys.executable, "-c", IMPORTED, *stages], capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if "IMPORTED" in line] == [f"IMPORTED {each}" for each in stages]


@pytest.mark.usefixtures("served", "project")
@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID"])
def test_a_server_with_other_settings_or_outside_the_job_is_not_used(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "2")
    assert fork_server.run(["prepare", "--dataset", "tiny"]) is None


@pytest.mark.usefixtures("served", "project")
def test_a_server_with_other_code_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    known = fork_server._identity()
    monkeypatch.setattr(fork_server, "_identity", lambda: {**known, "files": known["files"][1:]})
    assert fork_server.run(["prepare", "--dataset", "tiny"]) is None


def test_bytecode_that_python_writes_is_no_other_code() -> None:
    names = {name for name, _, _ in fork_server._identity()["files"]}
    assert {Path(name).suffix for name in names} == set(fork_server.SOURCES)
    assert str(fork_server.PACKAGE / "training/segment.py") in names


@pytest.mark.parametrize("verb", STAGES)
def test_whatever_counts_for_a_stage_is_watched(verb: str) -> None:
    names = {name for name, _, _ in fork_server._identity()["files"]}
    assert {str(path) for path in code_files(STAGES[verb].module, (), STAGES[verb].runs)} <= names


def test_without_a_server_the_command_does_the_work(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fork_server.VARIABLE, str(project / "nothing"))
    assert fork_server.run(["prepare", "--dataset", "tiny"]) is None


@pytest.mark.usefixtures("served")
def test_a_signal_reaches_the_stage_and_its_exit_code_comes_back(project: Path) -> None:
    with training_for_long() as client:
        # a state of its own: the handlers are in place
        wait_until(lambda: any("20" in path.name for path in project.glob("work/states/**/0*")))
        client.send_signal(signal.SIGTERM)
        out, err = client.communicate(timeout=PATIENCE_S)
    assert client.returncode == 75, (out, err)
    assert "run me again" in err


@pytest.mark.slow
@pytest.mark.usefixtures("served")
def test_what_a_stage_says_of_itself_arrives_while_it_runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IPDIFF_QUIET")
    params = project / "studies/small/params.yaml"
    params.write_text(params.read_text().replace("default: 8", "default: 1000000"))  # the study needs that checkpoint
    with training_for_long() as client:
        assert client.stderr is not None
        assert " runs/tiny/adm/s0/1000000: " in (line := client.stderr.readline())
        assert "/1000000 updates, loss 0." in line
        wait_until(lambda: (watched()["running"][0]["done"] or 0) > 8)  # its status is written every few seconds
        (running,) = watched()["running"]
        assert running["cell"] == "runs/tiny/adm/s0/1000000"
        assert running["pid"] in workers(project)
        client.send_signal(signal.SIGTERM)
        client.communicate(timeout=PATIENCE_S)
    (stopped,) = watched()["stopped"]
    assert "run me again" in stopped["reason"]


def watched() -> dict[str, Any]:
    command = [sys.executable, "-m", "ipdiff", "watch", "small", "--json"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


@pytest.mark.usefixtures("served")
def test_a_killed_client_takes_its_stage_with_it(project: Path) -> None:
    with training_for_long() as client:
        wait_until(lambda: workers(project))
        os.kill(client.pid, signal.SIGKILL)
        client.communicate()
    wait_until(lambda: not workers(project))
    assert not (project / "runs/tiny/adm/s0/1000000").exists()


def test_the_server_ends_with_the_command_it_was_started_for(tmp_path: Path) -> None:
    script = "import os; print(os.environ['IPDIFF_WARM'])"
    said = subprocess.run(
        [sys.executable, "-m", "ipdiff", "warm", sys.executable, "-c", script],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not Path(said.stdout.strip()).exists()
    wrong = subprocess.run(
        [sys.executable, "-m", "ipdiff", "warm", str(tmp_path / "none")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert wrong.returncode == 2
    assert "cannot be run" in wrong.stderr


def test_a_long_path_for_temporary_files_is_no_obstacle(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    command = [sys.executable, "-m", "ipdiff", "warm", "sh", "-c", 'test -S "$IPDIFF_WARM"']
    done = subprocess.run(command, env={**os.environ, "TMPDIR": str(deep)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_where_there_is_no_place_for_a_server_it_is_said_and_done_without(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(fork_server.VARIABLE, raising=False)
    with ExitStack() as stack:
        with monkeypatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(project / "gone"))
            stack.enter_context(fork_server.server())
        assert fork_server.run(["prepare", "--dataset", "tiny"]) is None
        command = [sys.executable, "-m", "ipdiff", "prepare", "--dataset", "tiny"]
        assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    said = capfd.readouterr().err
    assert "each imports it itself (No such file or directory)" in said
    assert said.count("\n") == 1


@pytest.mark.usefixtures("served")
def test_a_server_that_died_is_done_without(project: Path) -> None:
    with fork_server.server():
        wait_until(lambda: fork_server.run(["prepare", "--dataset", "tiny"]) == 0)
        (server,) = [pid for pid in workers(Path.cwd()) if parent(pid) == os.getpid()]
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: state(server) == "Z")
        assert fork_server.run(["prepare", "--dataset", "tiny"]) is None


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# Signals to the command that `ipdiff warm` runs

TALLY = """
import signal, sys, time
got = []
for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"):
    signal.signal(getattr(signal, name), lambda number, frame: got.append(number))
print("ready", flush=True)
while not got:
    time.sleep(0.01)
time.sleep(0.5)  # a second one would come meanwhile
print(len(got), got[0], flush=True)
sys.exit(7)
"""
WAIT = "print('ready', flush=True); import time; time.sleep(3600)"


def warm(script: str, **options: Any) -> subprocess.Popen[bytes]:
    """`ipdiff warm` of a script that has said that it is ready."""
    command = [sys.executable, "-m", "ipdiff", "warm", sys.executable, "-c", script]
    process = subprocess.Popen(command, **{"stdout": subprocess.PIPE, "start_new_session": True, **options})
    if process.stdout is not None:
        assert process.stdout.readline() == b"ready\n"
    return process


def with_terminal(terminal: int) -> None:
    """Make a terminal the one that the process is run from."""
    os.setsid()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_a_signal_to_warm_reaches_its_command_once_and_the_command_says_how_it_ends(name: str) -> None:
    number = getattr(signal, name)
    process = warm(TALLY)
    process.send_signal(number)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert out.split() == [b"1", str(int(number)).encode()]
    assert process.returncode == 7


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_command_that_a_signal_ends_leaves_nothing_behind(name: str) -> None:
    number = getattr(signal, name)
    process = warm(WAIT)
    (command,) = [pid for pid in children(process.pid) if b"--serve" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
    process.send_signal(number)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + number
    assert not Path(f"/proc/{command}").exists()


def test_ctrl_c_is_said_to_the_command_once() -> None:
    ours, terminal = pty.openpty()
    try:
        process = warm(
            TALLY, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=False,
            preexec_fn=lambda: with_terminal(terminal),
        )  # fmt: skip
        os.close(terminal)
        said = b""
        while b"ready" not in said:
            said += os.read(ours, 1000)
        os.write(ours, b"\x03")
        process.wait(timeout=PATIENCE_S)
        said = os.read(ours, 1000)
    finally:
        os.close(ours)
    assert said.replace(b"^C", b"").split() == [b"1", b"2"], said
    assert process.returncode == 7


def children(pid: int) -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if _parent_or_none(int(path.name)) == pid]


def _parent_or_none(pid: int) -> int | None:
    try:
        return parent(pid)
    except OSError:
        return None
