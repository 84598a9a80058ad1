"""A table from metrics files: csv (long form, everything), markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipdiff.errors import UserError
from ipdiff.report import origin, paper
from ipdiff.report.origin import Recipe
from ipdiff.report.results import Record, Result, Results, load
from ipdiff.report.spec import Point, Table, wanted
from ipdiff.report.tables import entries, layout, render
from ipdiff.report.tables.entries import Entry


@dataclass(frozen=True)
class Frame:
    """A built table: its entries in long form, the panels drawn from them, the notes under them."""

    table: Table
    entries: list[Entry]
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
    found = load(metrics)
    frame = build(table, origin.attach(found, recipes) if recipes else found, paper.values())
    out.mkdir(parents=True, exist_ok=True)
    entries.write_csv(frame.entries, out / "table.csv")
    (out / "table.md").write_bytes(render.markdown(table.title, frame.panels, frame.notes).encode())
    (out / "table.tex").write_bytes(render.tex(name, table.title, frame.panels, frame.notes).encode())


def build(table: Table, found: Iterable[Record], papers: dict[str, paper.PaperTable]) -> Frame:
    """Aggregate over seeds, compare, and lay out what the table asks for.

    Raises:
        UserError: a cell that was asked for has no record, or figures do not belong together.
    """
    results = Results(f"table '{table.title}'", found)
    models = {point.model for point in table.points} or set(table.models)
    if unknown := (set(table.compare) | set(table.compare.values())) - models:
        raise UserError(
            f"table '{table.title}': compare names {sorted(unknown)}, which are not among its models {sorted(models)}"
        )
    theirs = paper.select(table.paper, papers)
    made = _points(table, results, theirs) if table.points else _product(table, results, theirs)
    return frame(table, made, papers)


def frame(table: Table, made: list[Entry], papers: dict[str, paper.PaperTable]) -> Frame:
    """Lay out entries that were built or read from a csv."""
    if not made:
        raise UserError(
            f"table '{table.title}' asks for no cell; give datasets, models, samplers and metrics, or points"
        )
    notes = layout.notes(table, made, paper.select(table.paper, papers))
    return Frame(table, made, layout.panels(table, made), notes)


def _product(table: Table, results: Results, theirs: paper.PaperTable | None) -> list[Entry]:
    """For each data set and model its results, then its differences to its baseline."""
    made: list[Entry] = []
    for dataset in table.datasets:
        shown = {model: _shown(table, results, dataset, model) for model in table.models}
        for model, own in shown.items():
            made += [entries.value(one, metric, theirs) for one in own.values() for metric in table.metrics]
            base = shown.get(table.compare.get(model, ""), {})
            pairs = [(own[place], base[place]) for place in own if place in base]
            made += [entries.difference(*pair, metric, theirs) for pair in pairs for metric in table.metrics]
    return made


def _shown(table: Table, results: Results, dataset: str, model: str) -> dict[tuple[int | None, str], Result]:
    """A model's results in a product, by training step and sampler."""
    places = [(step, name) for step in wanted(table.steps, table.until, model) or [None] for name in table.samplers]
    return {(step, sampler): results.get(Point(dataset, model, sampler, step)) for step, sampler in places}


def _points(table: Table, results: Results, theirs: paper.PaperTable | None) -> list[Entry]:
    """For each point its values, then its differences to every point of its baseline on the data set."""
    made: list[Entry] = []
    for point in table.points:
        own = results.get(point)
        made += [entries.value(own, metric, theirs) for metric in table.metrics]
        for base in table.points:
            if (base.dataset, base.model) == (point.dataset, table.compare.get(point.model)):
                made += [entries.difference(own, results.get(base), metric, theirs) for metric in table.metrics]
    return made
