"""ipdiff commands in processes forked from one that holds torch already: they start in milliseconds and can be killed.

A worker writes what it says to `said` and, a line each, what it does to `log`: `update 3`, `draw 0-16`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from patience import PATIENCE_S

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "ipdiff.pipeline.jobs",
        "ipdiff.training.segment",
        "ipdiff.sample_sets.sample",
        "ipdiff.metrics.evaluate",
        "ipdiff.pipeline.grid",
        "torch._inductor",
    ]
)


@dataclass
class Worker:
    """A command that runs."""

    process: BaseProcess
    said_at: Path
    log_at: Path

    def end(self) -> int:
        """Wait for its end; the exit code, -n where signal n ended it."""
        self.process.join(PATIENCE_S)
        assert self.process.exitcode is not None, f"still running: {self.said()}"
        return self.process.exitcode

    def said(self) -> str:
        return self.said_at.read_text() if self.said_at.exists() else ""

    def did(self, what: str) -> list[str]:
        """What it did of one kind, in order."""
        lines = self.log_at.read_text().splitlines() if self.log_at.exists() else []
        return [line.partition(" ")[2] for line in lines if line.startswith(f"{what} ")]


@dataclass
class Crew:
    """Workers of one project; those still running at the end are killed."""

    project: Path
    scratch: Path
    workers: list[Worker] = field(default_factory=list)

    def start(
        self,
        command: str | Callable[[], object],
        *,
        at: Mapping[str, int] | None = None,
        fault: int | None = None,
        error: bool = False,
        **env: object,
    ) -> Worker:
        """Start a command.

        Args:
            command: arguments of ipdiff, or a function.
            at: what it does -> signal it sends itself just before, e.g. {"update 3": SIGKILL}.
            fault: the number of the file operation (of those that change something) at which it is killed.
            error: at that operation an OSError is raised instead.
            env: environment variables.
        """
        number = len(self.workers)
        said, log = self.scratch / f"{number}.said", self.scratch / f"{number}.log"
        variables = {name: str(value) for name, value in env.items()}
        process = CONTEXT.Process(
            target=_main, args=(command, str(self.project), said, log, dict(at or {}), fault, error, variables)
        )
        process.start()
        self.workers.append(Worker(process, said, log))
        return self.workers[-1]

    def do(self, command: str | Callable[[], object], **options: Any) -> Worker:
        """Run a command to its good end."""
        worker = self.start(command, **options)
        assert worker.end() == 0, worker.said()
        return worker

    def team(self, command: str, count: int, at: Mapping[int, Mapping[str, int]] | None = None) -> list[Worker]:
        """Start a command as `count` processes that share its work, as `ipdiff.work.launch` does."""
        rendezvous = self.scratch / f"{len(self.workers)}.rendezvous"
        return [
            self.start(
                command,
                at=(at or {}).get(rank),
                RANK=rank,
                WORLD_SIZE=count,
                IPDIFF_RENDEZVOUS=rendezvous,
                GLOO_SOCKET_IFNAME="lo",
            )
            for rank in range(count)
        ]

    def kill(self) -> None:
        for worker in self.workers:
            if worker.process.is_alive():
                worker.process.kill()
            worker.process.join()


@contextmanager
def crew(project: Path, scratch: Path) -> Iterator[Crew]:
    made = Crew(project, scratch)
    try:
        yield made
    finally:
        made.kill()


def _main(
    command: str | Callable[[], object],
    project: str,
    said: Path,
    log: Path,
    at: dict[str, int],
    fault: int | None,
    error: bool,
    env: dict[str, str],
) -> None:
    os.chdir(project)
    os.environ.update(env)
    handle = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.setpgid(0, 0)
    _write_down(log, at)
    if fault is not None:
        _fail_at(fault, error, log)
    from ipdiff import cli

    code = cli.main(command.split()) if isinstance(command, str) else command()
    sys.stdout.flush()
    sys.exit(int(code or 0))


def _write_down(log: Path, at: dict[str, int]) -> None:
    """Note every update and every network call of sampling just before it, and send signals where asked to."""
    from ipdiff.sample_sets.sample import ImageSampler
    from ipdiff.training import segment
    from ipdiff.training.host_feeder import HostFeeder

    segment.PAUSE = 0  # updates of tiny networks are so quick that a state would seldom be due
    handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    advance, draw = HostFeeder.advance, ImageSampler.draw

    def note(what: str) -> None:
        os.write(handle, f"{what}\n".encode())
        if what in at:
            os.kill(os.getpid(), at[what])

    def noted_advance(self: HostFeeder, *more: Any) -> None:
        note(f"update {self.step + 1}")
        advance(self, *more)

    def noted_draw(self: ImageSampler, index: range, *more: Any) -> Any:
        note(f"draw {index.start}-{index.stop}")
        return draw(self, index, *more)

    HostFeeder.advance, ImageSampler.draw = noted_advance, noted_draw  # type: ignore[method-assign]


CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "shutil.copyfile"}
"""Names that Python gives to what changes files; fsync has none, and is wrapped."""


def _fail_at(number: int, error: bool, log: Path) -> None:
    """Be killed, or get an OSError, at operation `number` on files; write down all before it."""
    done, real = 0, os.fsync
    handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def operation(what: str) -> None:
        nonlocal done
        done += 1
        os.write(handle, f"operation {what}\n".encode())
        if done == number:
            if error:
                raise OSError(5, "injected")
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (event in CHANGES or writes) and "__pycache__" not in str(args[0]):
            operation(f"{event} {args[0]}")

    def fsync(target: int) -> None:
        operation("fsync")
        real(target)

    os.fsync = fsync
    sys.addaudithook(audit)


# What workers can be told to do besides ipdiff commands


def warned_while_reading(command: str) -> int:
    """Run a command that is sent SIGTERM when it looks at the sample set."""
    from ipdiff import cli
    from ipdiff.metrics import evaluate

    real = evaluate.load_npz

    def read(path: Path):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(path)

    evaluate.load_npz = read
    return cli.main(command.split())


def publish_two_files() -> None:
    from ipdiff.pipeline.store import artifact

    with artifact.publishing(Path("runs/x/8"), ("a.npy", "b.csv"), {"stage": "train", "inputs": {}}) as made:
        (made.staging / "a.npy").write_bytes(b"first file")
        (made.staging / "b.csv").write_bytes(b"second file")


def save_a_state() -> None:
    from ipdiff.work.train_states import States

    States(Path("work/states/x"), keep=2).save(8, {"x": np.arange(5.0)})


def save_a_unit() -> None:
    from ipdiff.work.shards import Shards

    Shards(Path("work/samples/x")).complete([range(3)], lambda unit: {"images": np.arange(3)})
