"""How far a piece of work is, how fast it goes and how long it still takes: in numbers and in words."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

_KEPT = 30
"""Points that the rate is taken over: half a minute of small pieces, thirty pieces of large ones."""
_APART_S = 1.0


@dataclass
class Pace:
    """A piece of work between its beginning and its end. Times are seconds of one clock.

    Attributes:
        unit: what is counted, in the plural.
        total: how many there are; None: nobody knows.
        done: how many are done.
        started: when it began.
        first: how many were done by then.
        numbers: of the last one, by name.
    """

    unit: str
    total: int | None
    done: int
    started: float
    first: int = field(init=False)
    numbers: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.first = self.done
        self._points = deque([(self.started, self.done)], maxlen=_KEPT)

    def tell(self, done: int, numbers: Mapping[str, float], now: float) -> None:
        """So many are done."""
        self.done = done
        self.numbers.update(numbers)
        if now - self._points[-1][0] >= _APART_S or done == self.total:
            self._points.append((now, done))

    @property
    def rate(self) -> float | None:
        """Units a second, of late; None where nothing was done yet."""
        (start, before), (end, after) = self._points[0], self._points[-1]
        return (after - before) / (end - start) if end > start and after > before else None

    @property
    def left(self) -> float | None:
        """Seconds until the end; None where that cannot be said."""
        rate = self.rate
        return None if rate is None or self.total is None else max(0, self.total - self.done) / rate

    def __str__(self) -> str:
        """`1200/4000 updates, loss 0.0512, 118/s, 24 s left`."""
        return words(self.unit, self.done, self.total, self.numbers, self.rate, self.left)

    def totals(self, now: float) -> str:
        """`4000 updates in 34 s, 118/s, loss 0.0487`, of this process alone."""
        took, made = now - self.started, self.done - self.first
        average = [speed(made / took, self.unit)] if took > 0 and made > 0 else []
        went_on = [f"the first {amount(self.first, self.unit)} were there"] if self.first else []
        return ", ".join(
            [f"{amount(self.done, self.unit)} in {duration(took)}", *average, *_loss(self.numbers), *went_on]
        )


def words(
    unit: str,
    done: int,
    total: int | None,
    numbers: Mapping[str, float],
    rate: float | None,
    left: float | None,
) -> str:
    """How far it is: see `Pace`."""
    counted = amount(done, unit, bare=total is not None)
    parts = [counted if total is None else f"{counted}/{amount(total, unit)}", *_loss(numbers)]
    if rate is not None:
        parts.append(speed(rate, unit))
    if left is not None:
        parts.append(f"{duration(left)} left")
    return ", ".join(parts)


def _loss(numbers: Mapping[str, float]) -> list[str]:
    return [f"loss {numbers['loss']:.4g}"] if "loss" in numbers else []


def amount(count: int, unit: str, *, bare: bool = False) -> str:
    """`1200 updates`, `35.2 MB`; `bare`: without the unit where it is a word."""
    if unit == "bytes":
        scale = min(int(math.log10(count) // 3), 4) if count else 0
        return f"{count / 1000**scale:.{1 if scale else 0}f} {('B', 'kB', 'MB', 'GB', 'TB')[scale]}"
    return str(count) if bare else f"{count} {unit}"


def speed(rate: float, unit: str) -> str:
    """`118/s`, `0.25/s`, `3.1 MB/s`."""
    return f"{amount(round(rate), unit)}/s" if unit == "bytes" else f"{rate:.0f}/s" if rate >= 100 else f"{rate:.3g}/s"


def duration(seconds: float) -> str:
    """`34 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
