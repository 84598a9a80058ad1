"""What a clone can read without a pull: a study's numbers, tables, figures, receipts and first images, in published/.

DVC keeps the artifacts themselves out of git. The copies are made from artifacts that hold and are recorded in
dvc.lock; they are for people, and for saying later how another machine differs. What a program goes on with is in
published/store: `in_git`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ipdiff.errors import IntegrityError, UserError
from ipdiff.pipeline import grid
from ipdiff.pipeline.commands.store import in_git
from ipdiff.pipeline.commands.store.in_git import PUBLISHED
from ipdiff.pipeline.engines import dvc_files
from ipdiff.pipeline.grid import Cell
from ipdiff.pipeline.grid.freshness import Freshness, State
from ipdiff.pipeline.store import artifact, receipts, sheet
from ipdiff.report import results
from ipdiff.work.recipes import RECIPE

RECEIPTS = "receipts.json"
IMAGES = 64
"""Images of each sample set that are published."""


def publish(study: str, *, store: bool = False) -> list[str]:
    """Copy a study's results to published/STUDY; returns a line for each thing that was written.

    Args:
        study: its name.
        store: make published/store anew as well, of this study and of those that are published already.

    Raises:
        UserError: a cell of the study does not hold, or is not what dvc.lock records; or published/store would lack
            something or be too large.
        IntegrityError: a file to be published is not what its recipe says.

    Nothing is written then.
    """
    fresh = Freshness(grid.load())
    cells = fresh.grid.study(study)
    _check(study, cells, fresh)
    kept = in_git.plan(fresh.grid, [*in_git.studies(fresh.grid), study]) if store else None
    folder = PUBLISHED / study
    PUBLISHED.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=PUBLISHED, prefix=f".{study}-") as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        new.mkdir()
        written = _write_all(cells, new, _receipts(cells, folder / RECEIPTS))
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    return [*(str(folder / path.relative_to(new)) for path in written), *([] if kept is None else [in_git.write(kept)])]


def _write_all(cells: Iterable[Cell], folder: Path, made: Mapping[str, Any]) -> list[Path]:
    """Write what is published of these cells into a folder; returns the files."""
    metrics = {
        cell.directory: results.with_words(json.loads(path.read_text()), path)
        for cell in cells
        if cell.stage.verb == "evaluate"
        for path in [Path(cell.outputs[0])]
    }
    written = [_write(folder / "metrics.json", metrics), _write(folder / RECEIPTS, made)]
    for cell in cells:
        for name in cell.stage.published:
            target = folder / f"{cell.stage.verb}s" / f"{cell.bindings[cell.stage.verb]}{Path(name).suffix}"
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(Path(cell.directory) / name, target)
            written.append(target)
        if cell.stage.verb == "sample":
            written.append(_write_images(Path(cell.outputs[0]), folder / f"{cell.directory}.png"))
    return written


def _receipts(cells: Iterable[Cell], published: Path) -> dict[str, Any]:
    """Receipts of the cells that were made here, else of those published before that are the same artifacts."""
    try:
        before = json.loads(published.read_text())
    except (OSError, ValueError):
        before = {}
    found: dict[str, Any] = {}
    for cell in cells:
        if receipt := receipts.read(cell.directory):
            found[cell.directory] = receipt
        elif receipt := before.get(cell.directory):
            if receipt["recipe"] == artifact.file_digest(Path(cell.directory) / RECIPE):
                found[cell.directory] = receipt
    return found


def _write_images(samples: Path, target: Path) -> Path:
    """Write the first images of a set as one PNG, pixel by pixel."""
    with np.load(samples, allow_pickle=False) as data:
        images = data["arr_0"][:IMAGES]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(sheet.png(images))
    return target


def _check(study: str, cells: Iterable[Cell], fresh: Freshness) -> None:
    recorded = dvc_files.recorded([study])
    for cell in cells:
        if fresh.state(cell) is not State.HOLDS:
            raise UserError(f"{cell.directory} is {fresh.state(cell)}; make the study first: snakemake {study}")
        recipe = fresh.recipe(cell) or {}
        for name, digest in recipe["outputs"].items():
            if recorded.get(f"{cell.directory}/{name}") != digest:
                lock = dvc_files.lock_of(study)
                raise UserError(f"{cell.directory}/{name} is not what {lock} records; run `ipdiff sync` first")
            path = Path(cell.directory) / name
            shown = cell.stage.verb in ("evaluate", "sample") or name in cell.stage.published
            if shown and (got := artifact.file_digest(path)) != digest:
                raise IntegrityError(path, digest, got)


def _write(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")
    return path
