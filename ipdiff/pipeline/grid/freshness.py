"""Which cells are up to date, by their recipes alone: no large file is read.

A recipe names the code, the command, the parameters and the digests of the inputs that made it. Held against those
of now it says whether its cell holds, and so predicts what both engines will make again.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any

from ipdiff.errors import IntegrityError, UserError
from ipdiff.pipeline.grid import Cell, Grid
from ipdiff.pipeline.store import artifact, watched
from ipdiff.work import recipes
from ipdiff.work.recipes import RECIPE


class State(StrEnum):
    """How a cell stands."""

    HOLDS = "holds"  # made by the code, from the parameters and inputs of now
    MISSING = "missing"  # not made yet, or an output of it is gone
    CHANGED = "changed"  # made by other code, or from other parameters or inputs
    BELOW = "below"  # holds by itself, but something it was made from is changed


class Freshness:
    """The states of a grid's cells. Reads the recipes once: ask a new one after something was made."""

    def __init__(self, known: Grid) -> None:
        """Judge cells of this grid."""
        self.grid = known
        self._recipes: dict[str, dict[str, Any] | None] = {}
        self._own: dict[str, State] = {}
        self._tainted: dict[str, bool] = {}

    def state(self, cell: Cell) -> State:
        """How a cell stands, with all it was made from."""
        own = self.own(cell)
        return State.BELOW if own is State.HOLDS and self._is_tainted(cell) else own

    def stale(self, cells: Iterable[Cell]) -> list[Cell]:
        """Those of the cells that do not hold.

        Both engines make exactly these again, but for one case: a missing file that only cells that hold were made
        from is restored by DVC, and left alone by Snakemake until it is asked for.
        """
        return [cell for cell in cells if self.state(cell) is not State.HOLDS]

    def own(self, cell: Cell) -> State:
        """How a cell stands by its own recipe (never BELOW)."""
        if cell.directory not in self._own:
            self._own[cell.directory] = self._judge(cell)
        return self._own[cell.directory]

    def recipe(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's recipe, or None where there is none that can be read."""
        if cell.directory not in self._recipes:
            try:
                self._recipes[cell.directory] = recipes.read(Path(cell.outputs[-1]))
            except (UserError, IntegrityError):
                self._recipes[cell.directory] = None
        return self._recipes[cell.directory]

    def _judge(self, cell: Cell) -> State:
        recipe = self.recipe(cell)
        if recipe is None:
            return State.CHANGED if Path(cell.outputs[-1]).exists() else State.MISSING
        if not cell.given and not self._agrees(cell, recipe):
            return State.CHANGED
        return State.HOLDS if all(Path(path).exists() for path in cell.outputs) else State.MISSING

    def _agrees(self, cell: Cell, recipe: dict[str, Any]) -> bool:
        """True if a recipe names the code, parameters and inputs of now."""
        inputs = recipe.get("inputs", {})
        return (
            recipe.get("code") == cell.code
            and recipe.get("command") == cell.command
            and recipe.get("params") == self.grid.param_values(cell)
            and sorted(inputs) == sorted(set(cell.inputs))
            and all(self._digest(path) in (digest, None) for path, digest in inputs.items())
        )

    def _digest(self, path: str) -> str | None:
        """What an input's digest should be now: its maker's word for it, or its bytes; None if it is not here."""
        maker = self.grid.maker(path)
        if maker is None:
            return watched.digest(path) if Path(path).exists() else None
        if path.endswith(RECIPE):
            return artifact.file_digest(Path(path)) if Path(path).exists() else None
        recipe = self.recipe(maker)
        return None if recipe is None else recipe["outputs"].get(Path(path).name)

    def _is_tainted(self, cell: Cell) -> bool:
        """True if the cell or something it was made from is changed."""
        if cell.directory not in self._tainted:
            makers = {maker.directory: maker for path in cell.inputs if (maker := self.grid.maker(path))}
            self._tainted[cell.directory] = self.own(cell) is State.CHANGED or any(
                map(self._is_tainted, makers.values())
            )
        return self._tainted[cell.directory]
