"""What a running job leaves on the disk for others to see: one small file in work/progress, gone when it is done.

It is written whole, every few seconds, by the job itself, with its host, process and time. So a reader on another node
knows it by the shared disk alone, and what stops being written has fallen silent.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

FOLDER = Path("work/progress")
EVERY_S = 10.0
"""Seconds after which a job writes its file again."""
SILENT_S = 120.0
"""Age from which a file means that nothing is known: its job, its node or the disk may be gone, or only slow."""

State = Literal["running", "stopped", "failed"]


@dataclass(frozen=True)
class Status:
    """A job that makes a cell, or has tried.

    Attributes:
        cell: directory of the cell.
        state: running; stopped: by a signal, to be run again; failed.
        host: where it runs.
        pid: its process there.
        processes: processes that share the work.
        started: when it began, in seconds since 1970 by the clock of its host.
        time: when this was written, likewise.
        unit: what is counted.
        done: how many are done; None: nothing is counted yet.
        total: how many there are; None: unknown.
        rate: units a second, of late.
        left: seconds until the end of what is counted.
        numbers: of the last unit by name, such as its loss; finite.
        reason: why it stopped or failed, one line.
    """

    cell: str
    state: State = "running"
    host: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)
    processes: int = 1
    started: float = field(default_factory=time.time)
    time: float = field(default_factory=time.time)
    unit: str = ""
    done: int | None = None
    total: int | None = None
    rate: float | None = None
    left: float | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    reason: str = ""

    def standing(self, now: float) -> tuple[Literal["running", "stopped", "failed", "silent"], str]:
        """How the job stands at `now`, and why where it does not run."""
        if self.state != "running":
            return self.state, self.reason
        if self.host == platform.node() and not _alive(self.pid):
            return "failed", f"process {self.pid} ended without a word (killed, or out of memory?)"
        if now - self.time > SILENT_S:
            return "silent", f"process {self.pid} on {self.host} has written nothing since"
        return "running", ""


def path_of(cell: str) -> Path:
    """The file of a cell's job."""
    return FOLDER / f"{cell.replace('/', '@')}.json"


def write(status: Status) -> None:
    """Replace a cell's file. Raises OSError where that cannot be done."""
    path = path_of(status.cell)
    part = path.with_name(f".{path.stem}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = {name: value for name, value in status.numbers.items() if math.isfinite(value)}
    part.write_text(json.dumps(asdict(replace(status, numbers=numbers)), allow_nan=False) + "\n")
    part.replace(path)


def remove(cell: str) -> None:
    """The cell is made: there is nothing to be said of it any more."""
    path_of(cell).unlink(missing_ok=True)


def ended(cell: str, state: State, reason: str) -> None:
    """Say how a job ended that can say no more itself; nothing where it has."""
    told = read(cell)
    if told is not None and told.state == "running":
        with suppress(OSError):
            write(replace(told, state=state, reason=reason, time=time.time()))


def read(cell: str) -> Status | None:
    """A cell's file; None where there is none, or none that can be read."""
    return _parse(path_of(cell))


def read_all() -> Iterator[Status]:
    """Every file that can be read."""
    for path in sorted(FOLDER.glob("*.json")):
        if (status := _parse(path)) is not None:
            yield status


_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("cell", "host", "unit", "reason"), str),
    **dict.fromkeys(("pid", "processes"), int),
    **dict.fromkeys(("started", "time"), (int, float)),
    **dict.fromkeys(("done", "total"), (int, type(None))),
    **dict.fromkeys(("rate", "left"), (int, float, type(None))),
    "numbers": dict,
}


def _parse(path: Path) -> Status | None:
    try:
        raw: Any = json.loads(path.read_text())
        status = Status(**raw)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    good = all(isinstance(getattr(status, name), types) for name, types in _TYPES.items())
    numbers = good and all(isinstance(value, int | float) for value in status.numbers.values())
    return status if numbers and status.state in ("running", "stopped", "failed") and status.pid > 0 else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
