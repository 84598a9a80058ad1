"""SIGTERM and SIGUSR1, a scheduler's warnings: work is saved and the command ends with exit code 75."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from ipdiff.errors import Preempted

WARNINGS = (signal.SIGTERM, signal.SIGUSR1)
Handler = Callable[[int, FrameType | None], None]


class Stop:
    """Whether a warning has come."""

    def __init__(self) -> None:
        self.came = False

    def check(self) -> None:
        """Raise Preempted if a warning has come: for work that loses nothing by being left here."""
        if self.came:
            raise Preempted("stopped by a signal; what was finished is saved, run me again to go on")


@contextmanager
def deferred() -> Iterator[Stop]:
    """Warnings are taken note of, for the block to look at where it can stop."""
    stop = Stop()

    def note(got: int, frame: FrameType | None) -> None:
        stop.came = True

    with handled_by(note):
        yield stop


@contextmanager
def immediate() -> Iterator[None]:
    """Warnings end the block with Preempted, wherever it is: for work that is published whole or not at all."""

    def leave(got: int, frame: FrameType | None) -> None:
        raise Preempted("stopped by a signal; nothing was published, run me again")

    with handled_by(leave):
        yield


@contextmanager
def handled_by(handler: Handler, which: Iterable[signal.Signals] = WARNINGS) -> Iterator[None]:
    """Signals (a scheduler's warnings, if not said otherwise) go to `handler` inside the block."""
    before = {name: signal.signal(name, handler) for name in which}
    try:
        yield
    finally:
        for name, old in before.items():
            signal.signal(name, old)
