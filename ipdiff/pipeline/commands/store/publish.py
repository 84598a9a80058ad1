"""What a clone can read without a pull: a study's numbers, tables, figures, receipts and first images, in published/.

DVC keeps the artifacts themselves out of git. The copies are made from artifacts that hold and are recorded in
dvc.lock; they are for people, and for saying later how another machine differs. What a program goes on with is in
published/store: `in_git`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ipdiff.errors import UserError
from ipdiff.pipeline import grid
from ipdiff.pipeline.commands.store import in_git
from ipdiff.pipeline.commands.store.in_git import PUBLISHED
from ipdiff.pipeline.engines import dvc_files
from ipdiff.pipeline.grid import Cell
from ipdiff.pipeline.grid.freshness import Freshness, State
from ipdiff.pipeline.store import receipts, sheet
from ipdiff.report import results

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
            something or be too large. Nothing is written then.
    """
    fresh = Freshness(grid.load())
    cells = fresh.grid.study(study)
    _check(study, cells, fresh)
    kept = in_git.plan(fresh.grid, [*in_git.studies(fresh.grid), study]) if store else None
    folder = PUBLISHED / study
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    metrics = {
        cell.directory: results.with_words(json.loads(path.read_text()), path)
        for cell in cells
        if cell.stage.verb == "evaluate"
        for path in [Path(cell.outputs[0])]
    }
    made = {cell.directory: receipts.read(cell.directory) for cell in cells}
    written = [
        _write(folder / "metrics.json", metrics),
        _write(folder / RECEIPTS, {name: receipt for name, receipt in made.items() if receipt}),
    ]
    for cell in cells:
        for name in cell.stage.published:
            target = folder / f"{cell.stage.verb}s" / f"{cell.bindings[cell.stage.verb]}{Path(name).suffix}"
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(Path(cell.directory) / name, target)
            written.append(target)
        if cell.stage.verb == "sample":
            written.append(_write_images(Path(cell.outputs[0]), folder / f"{cell.directory}.png"))
    return [*map(str, written), *([] if kept is None else [in_git.write(kept)])]


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


def _write(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")
    return path
