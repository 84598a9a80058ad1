"""How far long work is, told to whoever listens: the pipeline's reporter, a test, a caller's own bar; else to nobody.

What is told decides no byte, and nothing waits for it: the numbers are those that the work has at hand. Who shows them,
and how, is no part of the science (`ipdiff.pipeline.progress`), so a change of that makes no artifact stale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol


class Listener(Protocol):
    """Who is told. Called between two pieces of work, so it must be quick and must not raise."""

    def begin(self, unit: str, total: int | None, done: int) -> None:
        """Work of `total` units begins (None: nobody knows how many), of which `done` were there before."""
        ...

    def tell(self, done: int, numbers: Mapping[str, float]) -> None:
        """So many are done now; `numbers` of the last one by name, such as its loss; they need not be finite."""
        ...


_listeners: list[Listener] = []
_certain = 0


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """`listener` is told of the work of this process, for the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def begin(unit: str, total: int | None = None, done: int = 0) -> None:
    """Work begins; see `Listener`."""
    global _certain
    _certain = done
    for listener in _listeners:
        listener.begin(unit, total, done)


def tell(done: int, **numbers: float) -> None:
    """So many units are done since the work was begun first, in whatever process."""
    global _certain
    _certain = done
    for listener in _listeners:
        listener.tell(done, numbers)


def more(count: int) -> None:
    """So many are done beyond what was told: a part of what will be told when it is finished and saved."""
    for listener in _listeners:
        listener.tell(_certain + count, {})
