"""A table from metrics files: csv (long form, everything), markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipdiff.errors import UserError
from ipdiff.report import entries, origin, paper, results
from ipdiff.report.lookup import Cells
from ipdiff.report.origin import Recipe
from ipdiff.report.spec import Point, Table, wanted
from ipdiff.report.tables import layout, render


@dataclass(frozen=True)
class Frame:
    """A built table: its entries in long form, the panels drawn from them, the notes under them."""

    table: Table
    entries: list[entries.Entry]
    panels: list[layout.Panel]
    notes: list[str]


def run(name: str, table: Table, metrics: list[Path], out: Path, recipes: Sequence[Recipe] = ()) -> None:
    """Write out/table.csv, out/table.md and out/table.tex from metrics files.

    Args:
        name: the table's key in params.yaml; labels the LaTeX table.
        table: what was asked for.
        metrics: metrics files of all its cells and seeds, in any order.
        out: directory to write into.
        recipes: of every artifact behind the metrics, where a table of the paper is named: what ours were made
            with is held against what the paper's were made with. Without them no figure is comparable.

    Raises:
        UserError: a cell that was asked for has no record, or figures do not belong together.
    """
    found = results.load(metrics)
    frame = build(table, origin.attach(found, recipes) if recipes else found, paper.values())
    out.mkdir(parents=True, exist_ok=True)
    entries.write_csv(frame.entries, out / "table.csv")
    (out / "table.md").write_bytes(render.markdown(table.title, frame.panels, frame.notes).encode())
    (out / "table.tex").write_bytes(render.tex(name, table.title, frame.panels, frame.notes).encode())


def build(table: Table, found: Iterable[results.Record], papers: dict[str, paper.PaperTable]) -> Frame:
    """Aggregate over seeds, compare, and lay out what the table asks for.

    Raises:
        UserError: a cell that was asked for has no record, or figures do not belong together.
    """
    cells = Cells(f"table '{table.title}'", results.aggregate(found))
    models = {point.model for point in table.points} or set(table.models)
    if unknown := (set(table.compare) | set(table.compare.values())) - models:
        raise UserError(
            f"table '{table.title}': compare names {sorted(unknown)}, which are not among its models {sorted(models)}"
        )
    theirs = paper.select(table.paper, papers)
    made = _points(table, cells, theirs) if table.points else _product(table, cells, theirs)
    return frame(table, made, papers)


def frame(table: Table, made: list[entries.Entry], papers: dict[str, paper.PaperTable]) -> Frame:
    """Lay out entries that were built or read from a csv."""
    if not made:
        raise UserError(
            f"table '{table.title}' asks for no cell; give datasets, models, samplers and metrics, or points"
        )
    notes = layout.notes(table, made, paper.select(table.paper, papers))
    return Frame(table, made, layout.panels(table, made), notes)


def _product(table: Table, cells: Cells, theirs: paper.PaperTable | None) -> list[entries.Entry]:
    """For each data set and model its cells, then its differences to its baseline."""
    made: list[entries.Entry] = []
    for dataset in table.datasets:
        for model in table.models:
            own = _cells(table, cells, dataset, model)
            made += [entry for cell in own.values() for entry in _values(cell, table, theirs)]
            if (baseline := table.compare.get(model)) is not None:
                base = _cells(table, cells, dataset, baseline)
                pairs = [(own[place], base[place]) for place in own if place in base]
                made += [entry for pair in pairs for entry in _differences(*pair, table, theirs)]
    return made


def _cells(table: Table, cells: Cells, dataset: str, model: str) -> dict[tuple[int | None, str], results.Cell]:
    """A model's cells of a product, by training step and sampler."""
    steps = wanted(table.steps, table.until, model) or [None]
    return {
        (step, sampler): cells.get(Point(dataset, model, sampler, step)) for step in steps for sampler in table.samplers
    }


def _values(cell: results.Cell, table: Table, theirs: paper.PaperTable | None) -> list[entries.Entry]:
    return [entries.value(cell, metric, theirs) for metric in table.metrics]


def _differences(
    cell: results.Cell, base: results.Cell, table: Table, theirs: paper.PaperTable | None
) -> list[entries.Entry]:
    return [entries.difference(cell, base, metric, theirs) for metric in table.metrics]


def _points(table: Table, cells: Cells, theirs: paper.PaperTable | None) -> list[entries.Entry]:
    """For each point its values, then its differences to every point of its baseline on the data set."""
    made: list[entries.Entry] = []
    for point in table.points:
        made += _values(cells.get(point), table, theirs)
        for base in table.points:
            if (base.dataset, base.model) == (point.dataset, table.compare.get(point.model)):
                made += _differences(cells.get(point), cells.get(base), table, theirs)
    return made
