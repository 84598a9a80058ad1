"""How a study stands, from files alone: recipes say what is done, status files what runs, stopped or failed.

So it can be asked on any node that sees the project's disk, while any engine works.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ipdiff.metrics.spec import METRICS
from ipdiff.pipeline.grid import Cell, Grid
from ipdiff.pipeline.grid.freshness import Freshness, State
from ipdiff.pipeline.progress import status
from ipdiff.pipeline.progress.pace import duration, words
from ipdiff.pipeline.progress.status import Status

KINDS = ("done", "running", "failed", "silent", "stopped", "waiting")
"""How a cell can stand. Silent: its job has written nothing for long; stopped: by a signal, to be run again."""
AGAIN = "to be made again: its code, parameters or inputs are others now"
"""Why a cell that is there waits."""
NEWEST = 5
"""Results that are shown."""
LONGEST = 12
"""Cells of a kind that are listed for people."""
REFRESH_S = 2.0


@dataclass(frozen=True)
class Standing:
    """A cell of a study now.

    Attributes:
        cell: its directory.
        kind: one of KINDS.
        job: what its job has written last, if it is not done.
        reason: why it does not run, where that is known.
        log: its log, where it failed or fell silent and there is one.
    """

    cell: str
    kind: str
    job: Status | None = None
    reason: str = ""
    log: str = ""


@dataclass(frozen=True)
class Snapshot:
    """A study at a time.

    Attributes:
        study: its name.
        time: seconds since 1970.
        cells: all it needs, makers before users.
        results: the newest measured cells: (directory, time, what was measured: metrics by name, `n`, `features`).
    """

    study: str
    time: float
    cells: list[Standing]
    results: list[tuple[str, float, dict[str, Any]]]

    def of(self, kind: str) -> list[Standing]:
        """The cells that stand so."""
        return [standing for standing in self.cells if standing.kind == kind]


def look(known: Grid, study: str) -> Snapshot:
    """How a study stands now.

    Raises:
        UserError: there is no such study, or its params.yaml is wrong.
    """
    now, fresh = time.time(), Freshness(known)
    cells = known.study(study)
    jobs = {told.cell: told for told in status.read_all()}
    standings = [_standing(cell, fresh, jobs.get(cell.directory), now) for cell in cells]
    return Snapshot(study, now, standings, _results(cells, standings, fresh))


def _standing(cell: Cell, fresh: Freshness, job: Status | None, now: float) -> Standing:
    name = cell.directory
    kind, reason = ("waiting", "") if job is None else job.standing(now)
    if kind == "running":
        return Standing(name, kind, job)
    if (state := fresh.state(cell)) is State.HOLDS:
        return Standing(name, "done")
    if kind == "waiting":
        return Standing(name, kind, reason="" if state is State.MISSING else AGAIN)
    log = cell.fill(cell.stage.log) if kind in ("failed", "silent") else ""
    return Standing(name, kind, job, reason, log if log and Path(log).exists() else "")


def _results(cells: list[Cell], standings: list[Standing], fresh: Freshness) -> list[tuple[str, float, dict[str, Any]]]:
    done = {standing.cell for standing in standings if standing.kind == "done"}
    measured = {Path(cell.directory, "metrics.json"): cell for cell in cells if "metrics.json" in cell.stage.files}
    there = [path for path, cell in measured.items() if cell.directory in done and path.exists()]
    found = [(path.stat().st_mtime, path) for path in there]
    newest = sorted(found, reverse=True)[:NEWEST]
    return [(str(path.parent), at, _metrics(path, fresh.recipe(measured[path]) or {})) for at, path in newest]


def _metrics(path: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    try:
        measured = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):  # `verify` will say so
        return {}
    numbers = {name: measured[name] for name in METRICS if isinstance(measured.get(name), int | float)}
    return {**numbers, "n": measured.get("n"), "features": recipe.get("measured", {}).get("features")}


def as_json(snapshot: Snapshot) -> dict[str, Any]:
    """The snapshot as plain data: how many cells of each kind, and each that is not done."""
    return {
        "study": snapshot.study,
        "time": snapshot.time,
        "cells": {kind: len(snapshot.of(kind)) for kind in KINDS},
        **{kind: [_plain(standing) for standing in snapshot.of(kind)] for kind in KINDS if kind != "done"},
        "results": [{"cell": cell, "time": at, "metrics": metrics} for cell, at, metrics in snapshot.results],
    }


def _plain(standing: Standing) -> dict[str, Any]:
    job = {} if standing.job is None else {key: value for key, value in vars(standing.job).items() if key != "state"}
    return {**job, "cell": standing.cell, "reason": standing.reason, "log": standing.log or None}


def describe(snapshot: Snapshot) -> str:
    """The snapshot for people."""
    counts = ", ".join(f"{len(snapshot.of(kind))} {kind}" for kind in KINDS if snapshot.of(kind))
    again = sum(standing.reason == AGAIN for standing in snapshot.of("waiting"))
    lines = [
        f"{_clock(snapshot.time)}  {snapshot.study}: {len(snapshot.cells)} cells: {counts}"
        + (f" ({again} of them to be made again)" if again else "")
    ]
    for kind in ("running", "failed", "silent", "stopped"):
        found = snapshot.of(kind)
        lines += ["", f"{kind}:"] if found else []
        lines += [f"  {_line(standing, snapshot.time)}" for standing in found[:LONGEST]]
        lines += [f"  and {len(found) - LONGEST} more"] if len(found) > LONGEST else []
    if snapshot.results:
        lines += ["", "newest results:"]
    for cell, at, metrics in snapshot.results:
        shown = [f"{kind.label} {metrics[name]:.{kind.decimals}f}" for name, kind in METRICS.items() if name in metrics]
        of = f"{metrics.get('n')} samples, {metrics.get('features')} features"
        lines.append(f"  {_clock(at)}  {cell}: {', '.join(shown)} ({of})")
    return "\n".join(lines)


def _line(standing: Standing, now: float) -> str:
    job = standing.job
    if job is None:
        return standing.cell
    where = f"{job.host}, process {job.pid}" + (f" and {job.processes - 1} more" if job.processes > 1 else "")
    if standing.kind == "running":
        return f"{standing.cell}: {_counted(job)} (for {duration(max(0, now - job.started))}, {where})"
    since = "" if standing.kind == "stopped" else f"; log: {standing.log}" if standing.log else ""
    counted = f" at {_counted(job)}" if job.done is not None else ""
    if standing.kind == "silent":
        return f"{standing.cell}: silent since {_clock(job.time)}{counted} ({where}){since}"
    return f"{standing.cell}: {_clock(job.time)} {standing.reason}{since}"


def _counted(job: Status) -> str:
    if job.done is None:
        return "at work"
    return words(job.unit, job.done, job.total, job.numbers, job.rate, job.left)


def _clock(at: float) -> str:
    moment = datetime.fromtimestamp(at)
    return moment.strftime("%H:%M:%S" if moment.date() == datetime.now().date() else "%Y-%m-%d %H:%M")


def follow(ask: Callable[[], Snapshot]) -> None:
    """Show a study on the terminal again and again, until all its cells are done or Ctrl-C is pressed."""
    try:
        while True:
            began = time.monotonic()
            snapshot = ask()
            columns, rows = os.get_terminal_size(sys.stdout.fileno())
            lines = [line[: columns - 1] for line in describe(snapshot).split("\n")[: rows - 1]]
            print("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J", end="", flush=True)
            if len(snapshot.of("done")) == len(snapshot.cells):
                return
            time.sleep(max(REFRESH_S, 4 * (time.monotonic() - began)))  # no more than a fifth of a core
    except KeyboardInterrupt:
        return
