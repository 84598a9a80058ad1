"""What every parameter record and registry is made with."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

FORBID: dict[str, Any] = {"extra": "forbid"}
"""Read by pydantic when it meets one of these classes: an unknown key is an error."""


def check(condition: bool, message: str) -> None:
    """Raise ValueError with a message about a field; configuration errors name its key."""
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class Range:
    """The numbers that a field may hold, finite ones always; it stands in the field's annotation."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    values: tuple[int, ...] = ()

    def holds(self, value: float) -> bool:
        """Whether a number is within; whole numbers without an upper end must fit into 64 bits."""
        if isinstance(value, float) and not math.isfinite(value):
            return False
        if isinstance(value, int) and self.most is None and value >= 2**63:
            return False
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (not self.values or value in self.values)
        )

    def text(self) -> str:
        """In words, e.g. `1 or more`, `0..1`, `more than 0 and less than 1`."""
        if self.values:
            return " or ".join(map(str, self.values))
        if self.least is not None and self.most is not None:
            return f"{self.least}..{'2**64-1' if self.most == 2**64 - 1 else self.most}"
        ends = [
            text.format(end)
            for text, end in (
                ("{} or more", self.least),
                ("more than {}", self.above),
                ("{} or less", self.most),
                ("less than {}", self.below),
            )
            if end is not None
        ]
        return " and ".join(ends)


SEED = Range(0, 2**64 - 1)


class Record:
    """A record whose numbers are all held against the ranges that its annotations state."""

    def __post_init__(self) -> None:
        """Raise ValueError for the first number out of its range."""
        for name, (allowed, optional) in _ranges(type(self)).items():
            held = getattr(self, name)
            for value in _numbers(held):
                digits = str(value)
                number = digits if len(digits) < 30 else f"{digits[:20]}..."
                check(
                    allowed.holds(value),
                    f"{name} {'is' if held is value else 'has'} {number}; use {allowed.text()}"
                    + (" and less than 2**63" if value >= 2**63 and allowed.most is None else "")
                    + (", or leave it out" if optional else ""),
                )


@cache
def _ranges(kind: type[Record]) -> dict[str, tuple[Range, bool]]:
    """Of a record's fields that have one: the range, and whether the field may be empty."""
    found: dict[str, tuple[Range, bool]] = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        for part in getattr(hint, "__metadata__", ()):
            if isinstance(part, Range):
                found[name] = part, type(None) in typing.get_args(hint.__origin__)
    return found


def _numbers(held: Any) -> Iterator[float]:
    """The numbers of a field: itself, or what its lists and mappings hold."""
    if isinstance(held, int | float) and not isinstance(held, bool):
        yield held
    elif isinstance(held, list | dict):
        for item in held.values() if isinstance(held, dict) else held:
            yield from _numbers(item)


def resolve(text: str) -> Any:
    """What a row of a registry names as `module:name`, imported now."""
    module, _, name = text.partition(":")
    return getattr(import_module(module), name)
