"""A process that has torch imported already, and forks for each stage: a stage's start then costs 0.1 s, not 2.

Snakemake starts one beside itself for the jobs on its own machine (workflow/Snakefile); `ipdiff warm COMMAND` gives one
to any command, such as `dvc repro`. A stage's command finds it by the environment variable IPDIFF_WARM, hands over its
arguments, working directory, environment and standard files, and ends with the exit code that comes back. Where
something is not as it was when the server started (code, interpreter, settings that libraries read when they are
imported), or no server answers, the command does the work itself. The fork computes what the command would have.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, NoReturn

from ipdiff.errors import UserError
from ipdiff.pipeline.store.dvc_log import line
from ipdiff.work import signals

VARIABLE = "IPDIFF_WARM"
PACKAGE = Path(__file__).parents[2]
SOURCES = (".py", ".yaml", ".jinja", ".css", ".js")
"""Endings of the package's files that a stage's bytes may hang on."""
READ_AT_IMPORT = ("OMP_", "MKL_", "ONEDNN_", "DNNL_", "ATEN_", "NPY_", "OPENBLAS_", "PYTHON", "LD_", "TORCH", "GOMP_")
"""Beginnings of environment variables that libraries read once: they must be those of the server."""
JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
"""Schedulers' names for a job: what runs in one must not do its work outside, beyond its limits and its devices."""
FORWARDED = (*signals.WARNINGS, signal.SIGINT)
FROM_TERMINAL = (signal.SIGINT, signal.SIGHUP)
"""What a terminal sends to every process in its foreground."""
_LONGEST = 80
"""Bytes of a directory in which a socket's path fits: the kernel takes 107, of which the names in it need 23."""
_WITHOUT = "there is no process with torch imported for all stages, so each imports it itself"
Main = Callable[[Sequence[str]], int]
"""What the command line does with its arguments."""


def run(argv: Sequence[str]) -> int | None:
    """Let the server run `ipdiff ARGV`; its exit code, or None where there is no server that could."""
    path = os.environ.get(VARIABLE)
    if not path:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)
            socket.send_fds(connection, [b"\0"], [0, 1, 2])
            request = {"argv": list(argv), "cwd": str(Path.cwd()), "environment": dict(os.environ), **_identity()}
            connection.sendall(json.dumps(request).encode() + b"\n")
            answers = connection.makefile("rb")
            accepted = _receive(answers)
        except OSError:
            return None
        if accepted is None:
            return None
        with _forwarding(accepted["pid"]):
            done = _receive(answers)
    return 1 if done is None else done["code"]  # None: the stage's process was killed with its monitor


@contextmanager
def _forwarding(pid: int) -> Iterator[None]:
    """Hand signals on to the process that does the work."""

    def forward(number: int, frame: FrameType | None) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass

    with signals.handled_by(forward, FORWARDED):
        yield


def _receive(stream: BinaryIO) -> dict[str, Any] | None:
    """One line of JSON, or None at the end of the connection."""
    text = stream.readline()
    return json.loads(text) if text.endswith(b"\n") else None


def _identity() -> dict[str, Any]:
    """What client and server must have in common."""
    settings = {key: value for key, value in os.environ.items() if key.startswith(READ_AT_IMPORT) or key in JOBS}
    sources = sorted(path for path in PACKAGE.rglob("*") if path.suffix in SOURCES)
    files = [[str(path), path.stat().st_mtime_ns, path.stat().st_size] for path in sources]
    return {"python": sys.executable, "settings": settings, "files": files}


# The server -----------------------------------------------------------------------------------------------


@contextmanager
def server() -> Iterator[None]:
    """A server for as long as the block runs: IPDIFF_WARM names its socket meanwhile.

    None on systems without fork. Where one cannot be started that is said in a line, and stages do without.
    """
    if not hasattr(os, "pidfd_open"):
        yield
        return
    with ExitStack() as stack:
        try:
            short = len(os.fsencode(tempfile.gettempdir())) <= _LONGEST
            where = tempfile.TemporaryDirectory(
                prefix="ipdiff-", dir=None if short else "/tmp", ignore_cleanup_errors=True
            )
            folder = stack.enter_context(where)  # a private one
            process = _launch(path := f"{folder}/socket")
        except OSError as error:
            print(f"ipdiff: {_WITHOUT} ({error.strerror or error})", file=sys.stderr)
            yield
            return
        before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = path
        try:
            yield
        finally:
            os.environ.pop(VARIABLE)
            if before is not None:
                os.environ[VARIABLE] = before
            process.terminate()
            process.wait()


def _launch(path: str) -> subprocess.Popen[bytes]:
    """Start a server that listens at a path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:  # who comes early waits, and is served
        listener.bind(path)
        listener.listen(128)
        return subprocess.Popen(
            [sys.executable, "-m", "ipdiff", "warm", "--serve", str(listener.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C reaches the clients, which hand it on: not twice, and never the server
        )


def command(argv: Sequence[str]) -> int:
    """Run a command beside a server; its exit code, 128 + n where signal n ended it.

    Signals that come to this process alone are handed on to it, so that it is not left behind. What a terminal sends
    (Ctrl-C, its end) has reached the command as well, and is not said twice.

    Raises:
        UserError: there is no such command, or it is none.
    """
    with server():
        early: list[int] = []
        started: list[subprocess.Popen[bytes]] = []

        def forward(number: int, frame: FrameType | None) -> None:
            if number in FROM_TERMINAL and _in_foreground():
                return
            if not started:
                early.append(number)
            elif started[0].poll() is None:
                started[0].send_signal(number)

        with signals.handled_by(forward, (*signals.WARNINGS, *FROM_TERMINAL)):
            try:
                started.append(subprocess.Popen(argv))
            except OSError as error:
                raise UserError(f"{argv[0]}: cannot be run: {error.strerror}") from None
            for number in early:
                started[0].send_signal(number)
            code = started[0].wait()
    return code if code >= 0 else 128 - code


def _in_foreground() -> bool:
    """Whether a terminal's signals go to this process and what it has started."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:  # there is none
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def start() -> None:
    """A server until this process ends: torch is imported once for all stages that it starts on its own machine.

    None where IPDIFF_WARM is there and empty: each stage is a process of its own then.
    """
    if os.environ.get(VARIABLE) == "":
        return
    stack = ExitStack()
    stack.enter_context(server())
    atexit.register(stack.close)


def serve(descriptor: int, main: Main) -> None:
    """Answer requests at a listening socket until the process that started this one is gone; `main` does them."""
    parent = os.getppid()
    try:
        identity = _identity()
        _preload()
    except Exception as error:  # whatever is wrong, it is for the stages to say what of it concerns them
        print(f"ipdiff: {_WITHOUT} ({type(error).__name__}: {line(str(error))})", file=sys.stderr)
        return
    with socket.socket(fileno=descriptor) as listener:
        listener.settimeout(1.0)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the monitors
        while os.getppid() == parent:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:  # where there is no room for another process, its end tells the client to do the work
                with suppress(OSError):
                    if os.fork() == 0:
                        listener.close()
                        _monitor(connection, identity, main)
        with suppress(OSError):  # who started this one was killed, and could not clear up
            path = Path(listener.getsockname())
            path.unlink()
            path.parent.rmdir()


def _preload() -> None:
    """Import what stages need, and what every one of them reads: the parameters, its code's digest.

    Starts no thread and no device: a fork would lose the one and break the other.
    """
    from ipdiff.pipeline import config, jobs  # noqa: F401
    from ipdiff.pipeline.stages import STAGES
    from ipdiff.pipeline.store.code_digests import code_digest

    for stage in STAGES.values():
        import_module(stage.module)
        code_digest(stage.module, (), stage.runs)
    with suppress(UserError):  # the stage says what is wrong; a params.yaml that was edited is read anew
        config.Studies().broken()


def _monitor(connection: socket.socket, identity: dict[str, Any], main: Main) -> NoReturn:
    """Check one request, fork the process that does it, and tell its exit code; kill it if the client is gone."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
        with connection.makefile("rb") as stream:
            request = _receive(stream)
        if request is None or not _identity() == identity == {key: request[key] for key in identity}:
            os._exit(0)  # the end of the connection tells the client to do the work
        worker = os.fork()
        if worker == 0:
            connection.close()
            _work(request, descriptors, main)
        for descriptor in descriptors:
            os.close(descriptor)
        connection.sendall(json.dumps({"pid": worker}).encode() + b"\n")
        code = _watch(worker, connection)
        connection.sendall(json.dumps({"code": code}).encode() + b"\n")
    except (OSError, ValueError, KeyError):
        pass
    os._exit(0)


def _watch(worker: int, connection: socket.socket) -> int:
    """The worker's exit code, as a shell would say it."""
    descriptor = os.pidfd_open(worker)
    ready, _, _ = select.select([descriptor, connection], [], [])
    if descriptor not in ready:  # the client is gone: it was killed
        os.kill(worker, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    return code if code >= 0 else 128 - code


def _work(request: dict[str, Any], descriptors: Sequence[int], main: Main) -> NoReturn:
    """Become the command."""
    code = 1
    try:
        for place, descriptor in enumerate(descriptors):
            os.dup2(descriptor, place)
            os.close(descriptor)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        os.environ.pop(VARIABLE, None)
        code = main(request["argv"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
