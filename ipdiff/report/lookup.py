"""Cells found by what a table or figure asks for."""

from __future__ import annotations

from collections.abc import Sequence

from ipdiff.errors import UserError
from ipdiff.report.results import Cell
from ipdiff.report.spec import Point


class Cells:
    """The cells at hand, found by point."""

    def __init__(self, title: str, cells: Sequence[Cell]) -> None:
        self.title = title
        self.steps: dict[tuple[str, str, str], dict[int, Cell]] = {}
        for cell in cells:
            self.steps.setdefault((cell.dataset, cell.model, cell.sampler), {})[cell.step] = cell

    def get(self, point: Point) -> Cell:
        """The cell of a point; without a step, the only one there is."""
        found = self.steps.get((point.dataset, point.model, point.sampler), {})
        wanted = f"{point.dataset} {point.model} {point.sampler}"
        if point.step is not None and point.step not in found:
            raise UserError(
                f"{self.title}: no record of {wanted} step {point.step} "
                f"(steps at hand: {sorted(found) or 'none'}); evaluate it first"
            )
        if not found:
            raise UserError(f"{self.title}: no record of {wanted}; evaluate it first")
        if point.step is None and len(found) > 1:
            raise UserError(
                f"{self.title}: {wanted} has records at steps {sorted(found)}, "
                "which is meant is not said; give one checkpoint or name the steps"
            )
        return found[point.step] if point.step is not None else next(iter(found.values()))
