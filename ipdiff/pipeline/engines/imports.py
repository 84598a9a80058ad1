"""Imported checkpoints that are asked for and not here: what a person has to get, and the command that takes it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ipdiff.errors import UserError
from ipdiff.pipeline.engines import dvc_files
from ipdiff.pipeline.grid import Cell, Grid


def missing(known: Grid, cells: Iterable[Cell]) -> list[str]:
    """A line about each imported checkpoint among these cells that is not here: which file to get, and the command."""
    given = {cell.directory: cell for cell in cells if cell.given}
    return [_line(known, cell) for cell in given.values() if not Path(cell.outputs[0]).exists()]


def require(known: Grid, cells: Iterable[Cell]) -> None:
    """Raise UserError where `missing` has a line about these cells: the first, and how many more there are."""
    if lines := missing(known, cells):
        more = f" (and {len(lines) - 1} more: ipdiff plan names them)" if len(lines) > 1 else ""
        raise UserError(f"{lines[0]}{more}")


def require_inputs(known: Grid, cell: Cell) -> None:
    """The same of the imported checkpoints that a cell reads: nothing makes them."""
    require(known, filter(None, map(known.maker, cell.inputs)))


def _line(known: Grid, cell: Cell) -> str:
    if dvc_files.pointer_of(cell).exists():
        return f"{cell.directory} is not here: `ipdiff pull {cell.directory}`"
    names, params = cell.bindings, known.of(cell)
    dataset, model = params.dataset(names["dataset"]), names["model"]
    told = dataset.final_step.get(model) == int(names["step"])  # else the file has to tell, or the one who imports it
    options = (f" --seed {names['seed']}" if int(names["seed"]) else "") + ("" if told else f" --step {names['step']}")
    file = dataset.imports.get(model, "its checkpoint")
    return (
        f"{cell.directory} is not here: get {file}; then `ipdiff import FILE --as {names['dataset']}/{model}{options}`"
    )
