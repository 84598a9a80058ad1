"""Snakemake's records of outputs, kept true to the recipes.

Snakemake decides what is stale by its own records (parameters and inputs at the time of the job) and by times, and
knows nothing of what `dvc repro`, `dvc pull` or a clone brought, nor of jobs whose end it did not see. The recipe
knows. So, before Snakemake looks: outputs of cells that hold get the record Snakemake would have written and times
in order, outputs of changed cells get a record that no parameters match. Written for record format 6
(snakemake 9.27); a test compares them with Snakemake's own.
"""

from __future__ import annotations

import json
import os
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ipdiff.pipeline import grid
from ipdiff.pipeline.engines import failures
from ipdiff.pipeline.grid import Cell
from ipdiff.pipeline.grid.freshness import Freshness, State
from ipdiff.pipeline.stages import STAGES
from ipdiff.pipeline.store import watched

METADATA = Path(".snakemake/metadata")
INCOMPLETE = Path(".snakemake/incomplete")
LOCKS = Path(".snakemake/locks")
FORMAT = 6
CHANGED = "made by other code, or from other parameters or inputs"
RULES = {"report": "html"}
"""Rules that are not named after their verb (`report` is a word of Snakemake's)."""

_LONGEST = 254


def params_text(cell: Cell, known: grid.Grid) -> str:
    """What decides a cell besides files and code, as the one text that Snakemake compares.

    The parameters, and the digest of a directory that it reads: of that Snakemake itself sees the time alone, which
    does not change when a file in it does.
    """
    folders = {path: watched.digest(path) for path in cell.inputs if os.path.isdir(path)}
    return json.dumps(known.param_values(cell) | folders, sort_keys=True)


def shell_command(verb: str) -> str:
    """The command of a verb's rule, with Snakemake's wildcards; messages go to the log.

    The job's process is ipdiff itself: a shell in between would die of the signal by which a scheduler warns it.
    """
    command = re.sub(r"\{(\w+)\}", r"{wildcards.\1}", STAGES[verb].command)
    return f"exec env {failures.ATTEMPT}={{resources.attempt}} {command} > {{log}} 2>&1"


def benchmark_of(verb: str) -> str:
    """The template of the file in which Snakemake writes a job's time and memory: beside its log."""
    return STAGES[verb].log.removesuffix(".log") + ".tsv"


def adopt(cells: Iterable[Cell], fresh: Freshness) -> list[str]:
    """Bring Snakemake's records and the outputs' times into agreement with the recipes.

    Args:
        cells: makers before users.
        fresh: how they stand.

    Returns:
        Directories of the cells whose record or times were put right.
    """
    newest: dict[str, int] = {}
    adopted: list[str] = []
    for cell in cells:
        floor = max((_newest_input(path, fresh, newest) for path in cell.inputs), default=0)
        state = fresh.state(cell)
        if state is State.HOLDS and _raise_times(cell, floor) | _accept(cell, fresh.grid):
            adopted.append(cell.directory)
        if state is State.CHANGED and _reject(cell, fresh.grid):
            adopted.append(cell.directory)
        newest[cell.directory] = max([floor, *(_time(path) for path in cell.outputs if os.path.lexists(path))])
    return adopted


def unlock() -> bool:
    """Take off the locks of Snakemake, as `snakemake --unlock` does; True if there were any."""
    files = list(LOCKS.glob("*.lock"))
    for file in files:
        file.unlink(missing_ok=True)
    return bool(files)


def _newest_input(path: str, fresh: Freshness, newest: dict[str, int]) -> int:
    """When an input, or what it was made from where it is missing, was last written (ns)."""
    own = max(_time(path), os.stat(path).st_mtime_ns) if os.path.exists(path) else 0
    maker = fresh.grid.maker(path)
    return max(own, newest.get(maker.directory, 0) if maker else 0)


def _time(path: str) -> int:
    return os.lstat(path).st_mtime_ns


def _raise_times(cell: Cell, floor: int) -> bool:
    """Make no output older than the newest input; True if one was."""
    measured = cell.fill(benchmark_of(cell.stage.verb))  # Snakemake takes its time for an output's
    files = [*cell.outputs, measured] if os.path.lexists(measured) else cell.outputs
    old = [path for path in files if _time(path) < floor]
    for path in old:
        os.utime(path, ns=(floor, floor), follow_symlinks=False)
    return bool(old)


def _accept(cell: Cell, known: grid.Grid) -> bool:
    """Give outputs the record of a finished job of now; False if they have it."""
    good = {
        "params": _params(cell, known),
        "input": sorted(cell.inputs),
        "code": shell_command(cell.stage.verb),
    }
    wrong = [path for path in cell.outputs if not _says(path, good) or _record_path(INCOMPLETE, path).exists()]
    for path in wrong:
        seconds = os.lstat(path).st_mtime
        rule = RULES.get(cell.stage.verb, cell.stage.verb)
        _write(path, {**good, "rule": rule, "starttime": seconds, "endtime": seconds, "incomplete": False})
        _record_path(INCOMPLETE, path).unlink(missing_ok=True)
    return bool(wrong)


def _reject(cell: Cell, known: grid.Grid) -> bool:
    """Give outputs a record that no parameters match, where Snakemake would see no change; False if there was none."""
    there = [path for path in cell.outputs if os.path.lexists(path)]
    fooled = [path for path in there if (record := _read(path)) is None or record.get("params") == _params(cell, known)]
    for path in fooled:
        _write(path, {"params": [CHANGED]})
    return bool(fooled)


def _params(cell: Cell, known: grid.Grid) -> list[str]:
    """The values that Snakemake records of a job: the representations of its params, sorted."""
    return sorted([repr(params_text(cell, known)), repr(cell.code)])


def _says(path: str, good: dict[str, Any]) -> bool:
    record = _read(path)
    return record is not None and all(record.get(key) == value for key, value in good.items())


def _read(path: str) -> dict[str, Any] | None:
    """Snakemake's record of a file; None where there is none that can be read."""
    try:
        record = json.loads(_record_path(METADATA, path).read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("record_format_version") == FORMAT else None


def _write(path: str, record: dict[str, Any]) -> None:
    where = _record_path(METADATA, path)
    where.parent.mkdir(parents=True, exist_ok=True)
    INCOMPLETE.mkdir(exist_ok=True)  # without it Snakemake takes the records for those of an old version
    where.write_text(json.dumps({**record, "record_format_version": FORMAT}))


def _record_path(folder: Path, path: str) -> Path:
    """Where Snakemake keeps what it knows of a file: long names are cut into folders."""
    name = urlsafe_b64encode(path.encode()).decode()
    parts = [name[i : i + _LONGEST] for i in range(0, len(name), _LONGEST)]
    return folder.joinpath(*(f"@{part}" for part in parts[:-1]), parts[-1])
