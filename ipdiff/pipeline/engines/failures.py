"""Failures that no retry can mend, remembered so that a job that is submitted again ends at once.

Snakemake submits a failed job again whatever its exit code was: 75 asks for that, but bad input (2) and damage (3) stay
what they are. It says by IPDIFF_ATTEMPT which attempt a job is. The first one forgets, later ones obey. What may be
mended by time or another node (`ipdiff.errors.Unavailable`, a full disk, no memory) is not remembered.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ipdiff.errors import IntegrityError, Unavailable, UserError
from ipdiff.pipeline.grid import Cell, Grid, cache_keys
from ipdiff.pipeline.store import artifact
from ipdiff.work import launch
from ipdiff.work.files import write_whole

ATTEMPT = "IPDIFF_ATTEMPT"
"""Environment variable: which attempt of Snakemake's at a job this is, from 1 on; not set elsewhere."""
FOLDER = Path("work/failed")


@dataclass(frozen=True)
class Failure:
    """How an earlier attempt at a cell failed: its exit code, what it said, and the cache key of the cell."""

    code: int
    said: str
    key: str

    def __str__(self) -> str:
        return f"{self.said} [an earlier attempt failed so; no retry mends that, so none is made]"


@contextmanager
def remembered(cell: Cell, known: Grid) -> Iterator[Failure | None]:
    """Remember it where the block, an attempt to make the cell, fails for good; yields how an earlier one did."""
    if ATTEMPT not in os.environ:
        yield None
        return
    path, key = FOLDER / artifact.lock_of(Path(cell.directory)).with_suffix(".json").name, _key(cell, known)
    try:
        yield _earlier(path, key) if not launch.started_here() else None  # it was asked by whoever started this process
    except Unavailable:
        raise
    except (UserError, IntegrityError) as error:
        path.parent.mkdir(parents=True, exist_ok=True)
        failure = Failure(3 if isinstance(error, IntegrityError) else 2, str(error), key)
        write_whole(path, json.dumps(asdict(failure), indent=1).encode())
        raise


def _key(cell: Cell, known: Grid) -> str:
    """The cell's cache key: with other code or other parameters it is tried again."""
    return cache_keys.digest(cell.code, known.param_values(cell))


def _earlier(path: Path, key: str) -> Failure | None:
    if os.environ[ATTEMPT] == "1":
        path.unlink(missing_ok=True)
    try:
        failure = Failure(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return failure if failure.key == key else None
