"""What work tells of its progress, kept for a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ipdiff.work import progress


class Told:
    """A listener of `ipdiff.work.progress` that keeps what it hears.

    Attributes:
        begun: (unit, total, done) of each piece of work.
        done: how many were done, at each word.
        numbers: those of each word.
    """

    def __init__(self, react: Callable[[int], None]) -> None:
        self.begun: list[tuple[str, int | None, int]] = []
        self.done: list[int] = []
        self.numbers: list[dict[str, float]] = []
        self._react = react

    def begin(self, unit: str, total: int | None, done: int) -> None:
        self.begun.append((unit, total, done))

    def tell(self, done: int, numbers: Mapping[str, float]) -> None:
        self.done.append(done)
        self.numbers.append(dict(numbers))
        self._react(done)


@contextmanager
def heard(react: Callable[[int], None] = lambda done: None) -> Iterator[Told]:
    """What is told in the block; `react` is called with each number."""
    told = Told(react)
    with progress.listening(told):
        yield told
