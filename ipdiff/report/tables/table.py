"""A table from metrics files: csv (long form, everything), markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from ipdiff.report import origin, paper
from ipdiff.report.origin import Recipe
from ipdiff.report.results import Result, Results, load
from ipdiff.report.spec import Gamma, Point, Table, product
from ipdiff.report.tables import entries, layout, notes, render
from ipdiff.report.tables.entries import Entry


@dataclass(frozen=True)
class Frame:
    """A built table: its entries in long form, the panels drawn from them, the notes under them."""

    table: Table
    entries: list[Entry]
    panels: list[layout.Panel]
    notes: list[str]


def run(
    name: str,
    table: Table,
    metrics: list[Path],
    out: Path,
    recipes: Sequence[Recipe] = (),
    gammas: Mapping[tuple[str, str], Gamma] | None = None,
) -> None:
    """Write out/table.csv, out/table.md and out/table.tex from metrics files.

    Args:
        name: the table's key in params.yaml; labels the LaTeX table.
        table: what was asked for.
        metrics: metrics files of all its cells and seeds, in any order.
        out: directory to write into.
        recipes: of every artifact behind the metrics, where a table of the paper is named: what ours were made
            with is held against what the paper's were made with. Without them no figure is comparable.
        gammas: by data set and model, how strong its input perturbation is: models are named and ordered by it.

    Raises:
        UserError: a cell that was asked for has no record, or figures do not belong together.
    """
    found = load(metrics, gammas)
    made = frame(table, build(table, found if table.paper is None else origin.attach(found, recipes)))
    out.mkdir(parents=True, exist_ok=True)
    entries.write_csv(made.entries, out / "table.csv")
    (out / "table.md").write_bytes(render.markdown(table.title, made.panels, made.notes).encode())
    (out / "table.tex").write_bytes(render.tex(name, table.title, made.panels, made.notes).encode())


def build(table: Table, found: Iterable[Result]) -> list[Entry]:
    """Join seeds and compare: for each point, or data set and model of a product, values, then differences.

    The models of a product come in the order of their gamma.

    Raises:
        UserError: a cell that was asked for has no record, or figures do not belong together.
    """
    results, theirs = Results(f"table '{table.title}'", found), paper.select(table.paper)
    points = table.points or by_gamma(results, product(table))
    blocks = groupby(points, key=lambda at: at if table.points else (at.dataset, at.model))
    made: list[Entry] = []
    for block in (list(block) for _, block in blocks):
        made += [entries.value(results.get(at), metric, theirs) for at in block for metric in table.metrics]
        made += [
            entries.difference(results.get(at), results.get(base), metric, theirs)
            for at in block
            for base in points
            if _compared(table, at, base)
            for metric in table.metrics
        ]
    return made


def by_gamma(results: Results, points: list[Point]) -> list[Point]:
    """The points of each data set, models of weaker input perturbation first, else in their order."""
    datasets = list(dict.fromkeys(point.dataset for point in points))
    return sorted(points, key=lambda at: (datasets.index(at.dataset), max(results.get(at).gamma, default=0.0)))


def _compared(table: Table, at: Point, base: Point) -> bool:
    """Whether a difference is shown: in a product of equal steps and samplers, of points to each of the baseline."""
    alike = bool(table.points) or (at.step, at.sampler) == (base.step, base.sampler)
    return alike and (base.dataset, base.model) == (at.dataset, table.compare.get(at.model))


def frame(table: Table, made: list[Entry]) -> Frame:
    """Lay out entries that were built or read from a csv.

    Raises:
        UserError: the table's rows and columns do not tell its cells apart.
    """
    return Frame(table, made, layout.panels(table, made), notes.write(table, made, paper.select(table.paper)))
