"""Several processes for one stage: `IPDIFF_PROCESSES=2 ipdiff train ...` starts two of itself and looks after them.

The number of processes is no part of a command or of a parameter: it decides no byte where training.reduction is exact,
and how a sum is rounded where it is fast. Under torchrun, which says by RANK and WORLD_SIZE who is who, nothing is
started.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from ipdiff.errors import Preempted, UserError
from ipdiff.work import signals

WANTED = "IPDIFF_PROCESSES"
RENDEZVOUS = "IPDIFF_RENDEZVOUS"
"""File in which process 0 of those started here says where the others find it."""
LIFELINE = "IPDIFF_LIFELINE"
"""Read end of a pipe that closes when the starter ends."""

GRACE_S = 10.0
"""Time the others have to leave by themselves after one has failed, or after process 0 has published."""

SAVING_S = 300.0
"""Time they have after one was preempted: a large train state may be on its way to the disk."""

SAID = (1, 2, 3)
"""Exit codes of a process that has said itself what was wrong."""

PREEMPTED = 75


def place() -> tuple[int, int]:
    """Which process this is, and of how many: (rank, count), (0, 1) where it was started alone.

    Raises:
        UserError: RANK and WORLD_SIZE are no such numbers.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return 0, 1
    try:
        rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except ValueError:
        rank, count = -1, 0
    if not 0 <= rank < count:
        raise UserError(
            f"RANK is {os.environ['RANK']!r} and WORLD_SIZE {os.environ['WORLD_SIZE']!r}; "
            "expected whole numbers with 0 <= RANK < WORLD_SIZE, as torchrun sets them"
        )
    return rank, count


def started_here() -> bool:
    """Whether this process was started by `run` (whose lock it holds as well)."""
    return RENDEZVOUS in os.environ


def wanted(*, shared: bool) -> int:
    """Processes to start for a stage that several can share: 1 means that this one does the work.

    Raises:
        UserError: IPDIFF_PROCESSES is not a whole number from 1 on.
    """
    text = os.environ.get(WANTED, "1")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{WANTED} is {text!r}; expected a number of processes, 1 or more")
    return int(text) if shared and "RANK" not in os.environ else 1


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    said: IO[bytes] | None
    """Where its stderr goes; None: to ours."""


def run(argv: Sequence[str], count: int, keep: Sequence[int] = ()) -> int:
    """Run `ipdiff argv` as `count` processes and return the exit code of the whole.

    Process 0 speaks; what the others say is shown only where it explains the end. When one fails the others
    are ended after `GRACE_S` at most, and all end when this process does, even by SIGKILL.

    Args:
        argv: arguments of ipdiff.
        count: processes, 2 or more.
        keep: open files that they inherit (the lock of the cell).
    """
    with tempfile.TemporaryDirectory() as scratch, _lifeline() as alive:
        environment = {
            **os.environ,
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            RENDEZVOUS: str(Path(scratch) / "rendezvous"),
            LIFELINE: str(alive),
        }
        if sys.platform == "linux":
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # they are all here; a host name may not resolve
        children: list[_Child] = []

        def forward(got: int, frame: FrameType | None) -> None:
            for child in children:
                child.process.send_signal(got)

        with signals.handled_by(forward):
            try:
                for rank in range(count):
                    children.append(_start(argv, rank, environment, (alive, *keep)))
                return _verdict(children, _outcome(children))
            finally:
                _end(children)


def _start(argv: Sequence[str], rank: int, environment: dict[str, str], keep: Sequence[int]) -> _Child:
    said = tempfile.TemporaryFile() if rank else None
    process = subprocess.Popen(
        [sys.executable, "-m", "ipdiff", *argv],
        env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if rank else None,
        stderr=said,
        pass_fds=keep,
    )
    return _Child(process, said)


def _outcome(children: list[_Child]) -> list[int]:
    """Exit codes (-n where signal n ended it) when all have ended, or one has and the others had their time.

    0 stands for those still running: they are not to blame.
    """
    deadline = math.inf
    while True:
        codes = [child.process.poll() for child in children]
        if any(code not in (None, 0, PREEMPTED) for code in codes) or codes[0] == 0:
            deadline = min(deadline, time.monotonic() + GRACE_S)
        elif PREEMPTED in codes:
            deadline = min(deadline, time.monotonic() + SAVING_S)
        if None not in codes or time.monotonic() > deadline:
            return [code or 0 for code in codes]
        time.sleep(0.05)


def _verdict(children: list[_Child], codes: list[int]) -> int:
    for child, code in zip(children, codes, strict=True):
        if code in SAID:
            if child.said is not None:
                child.said.seek(0)
                sys.stderr.write(child.said.read().decode(errors="replace"))
            return code
    for rank, code in enumerate(codes):
        if code not in (0, PREEMPTED):
            end = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise Preempted(f"process {rank} of {len(codes)} was {end}; run me again to go on from what is saved")
    return PREEMPTED if codes[0] == PREEMPTED or children[0].process.poll() is None else 0


def _end(children: list[_Child]) -> None:
    for child in children:
        if child.process.poll() is None:
            child.process.kill()
        child.process.wait()
        if child.said is not None:
            child.said.close()


@contextmanager
def _lifeline() -> Iterator[int]:
    read, write = os.pipe()  # the children inherit the read end alone, so the kernel closes the pipe with us
    try:
        yield read
    finally:
        os.close(read)
        os.close(write)


def follow_starter() -> None:
    """Make this process end when the one that started it does."""
    if LIFELINE not in os.environ:
        return
    handle = int(os.environ[LIFELINE])

    def watch() -> None:
        os.read(handle, 1)
        os._exit(PREEMPTED)

    threading.Thread(target=watch, daemon=True).start()
