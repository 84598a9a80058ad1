"""A row of a table: what, ours, the limit or goal it is held against, and their ratio."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

STAGE = {pool: "1" for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
"""Environment of a stage's process (`ipdiff.cli` sets it): numpy computes with one thread."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured figure.

    Attributes:
        what: what was measured.
        ours: in `unit`.
        limit: the same work's limit, measured in the same run, or a goal; in `unit`.
        unit: s or MiB (less is better), or something a second (more is better).
        held_against: what the limit is.
    """

    what: str
    ours: float
    limit: float
    unit: str
    held_against: str

    @property
    def ratio(self) -> float:
        """How near ours comes to the limit: 1 is at the limit, more is better than it."""
        return self.ours / self.limit if self.unit.endswith("/s") else self.limit / self.ours


def describe(rows: Iterable[Row]) -> str:
    """The rows as text, with a heading."""
    lines = [f"{'what':62} {'ours':>10} {'limit':>10} {'unit':>8} {'ratio':>6}  held against"]
    for row in rows:
        figures = f"{row.ours:10.4g} {row.limit:10.4g} {row.unit:>8} {100 * row.ratio:5.0f}%"
        lines.append(f"{row.what:62} {figures}  {row.held_against}")
    return "\n".join(lines)


def as_json(rows: Iterable[Row]) -> list[dict[str, float | str]]:
    """The rows as plain data, each with its ratio."""
    return [{**dataclasses.asdict(row), "ratio": row.ratio} for row in rows]


def in_process(module: str, name: str, *arguments: float | str) -> dict[str, Any]:
    """What a function of a module returns, called in a new process with a stage's environment.

    Args:
        module: one whose `main` is `answer(FUNCTIONS)`.
        name: key of its FUNCTIONS.
        arguments: text, or numbers written as text.
    """
    environment = {**os.environ, **STAGE, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module, name, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def answer(functions: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """Be the process of `in_process`."""
    print(json.dumps(functions[sys.argv[1]](*sys.argv[2:])))


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def quickest(calls: Mapping[str, Callable[[], object]], budget: float, rounds: int = 2) -> dict[str, float]:
    """Seconds of the quickest call of each, called in turns so that all meet the same other processes.

    Args:
        calls: what is measured; the first call of each does not count.
        budget: seconds to spend; `rounds` turns are taken at least.
        rounds: see `budget`.
    """
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    start, done = time.perf_counter(), 0
    while done < rounds or time.perf_counter() - start < budget:
        for name, call in calls.items():
            times[name].append(seconds(call))
        done += 1
    return {name: min(found) for name, found in times.items()}
