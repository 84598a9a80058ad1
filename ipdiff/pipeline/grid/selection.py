"""What a person may name: a study, a view with all it was made from, an artifact, a file, a folder of artifacts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from ipdiff.errors import UserError
from ipdiff.pipeline import config
from ipdiff.pipeline.grid import Cell, Grid
from ipdiff.pipeline.stages import STAGES
from ipdiff.work.recipes import RECIPE


def select(known: Grid, targets: Sequence[str], study: str | None = None) -> dict[str, Cell]:
    """Output path -> its cell, makers before users.

    Args:
        known: the grid.
        targets: names of studies, `table:STUDY/NAME`, `figure:STUDY/NAME` (with all they were made from), outputs
            (with their recipe), artifacts' directories or folders of them; nothing means everything.
        study: the one that "everything" and folders mean; all that can be read if None.

    Raises:
        UserError: a target is none of these.
    """
    if study is not None:
        known.studies.load(study)  # refused where there is none
    found: dict[str, Cell] = {}
    for target in targets or [os.curdir]:
        found |= _select_one(known, target, study)
    return found


def results(selected: dict[str, Cell]) -> dict[str, Cell]:
    """The part that holds numbers: metrics, tables, figures, reports, and every recipe."""
    return {path: cell for path, cell in selected.items() if cell.stage.kind == "result" or path.endswith(f"/{RECIPE}")}


def cells_of(selected: dict[str, Cell]) -> list[Cell]:
    """The selected cells, each once."""
    return list({cell.directory: cell for cell in selected.values()}.values())


def _select_one(known: Grid, target: str, study: str | None) -> dict[str, Cell]:
    if target in known.studies.names:
        return _outputs(_cells(known, [target]))
    kind, colon, name = target.partition(":")
    if colon and kind in ("table", "figure"):
        return _outputs(known.needed(_view(known, kind, name)))
    path = config.project_path(target or os.curdir)
    if cell := known.maker(path):
        return dict.fromkeys((path, cell.outputs[-1]), cell)
    if (cell := known.maker(f"{path}/{RECIPE}")) and not _holds_others(cell):
        return _outputs([cell])
    cells = _cells(known, known.studies.readable() if study is None else [study])
    if path == os.curdir:
        return _outputs(cells)
    if inside := [cell for cell in cells if f"{cell.directory}/".startswith(f"{path}/")]:
        return _outputs(inside)
    raise UserError(_unknown(known, target, cells))


def _holds_others(cell: Cell) -> bool:
    """Whether artifacts of another stage lie in the cell's folder."""
    return any(stage.directory.startswith(f"{cell.stage.directory}/") for stage in STAGES.values())


def _cells(known: Grid, studies: Iterable[str]) -> list[Cell]:
    return [cell for study in studies for cell in (*known.imports(study), *known.study(study))]


def _outputs(cells: Iterable[Cell]) -> dict[str, Cell]:
    return {path: cell for cell in cells for path in cell.outputs}


def _view(known: Grid, kind: str, name: str) -> Cell:
    study, slash, view = name.partition("/")
    if not slash:
        raise UserError(f"'{kind}:{name}' names no study; write {kind}:STUDY/NAME")
    return known.cell(kind, study=study, **{kind: view})


def _unknown(known: Grid, target: str, cells: list[Cell]) -> str:
    """A line about a target that is nothing."""
    views = [
        f"{kind}:{study}/{name}"
        for study in known.studies.readable()
        for kind, names in (("table", known.studies.load(study).tables), ("figure", known.studies.load(study).figures))
        for name in names
    ]
    near = config.nearest(target, [*known.studies.names, *views, *(cell.directory for cell in cells)])
    return f"'{target}' is no study, table:STUDY/NAME, figure:STUDY/NAME, output or folder of outputs{near}"
