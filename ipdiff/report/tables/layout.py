"""From long entries to the panels that markdown, LaTeX and HTML draw, and the notes under them.

A column holds figures of one protocol only. Where the rows of a table would put two into one column (say,
data sets with different features), the table is split into one panel for each protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import TypeVar

from ipdiff.errors import UserError
from ipdiff.metrics.spec import METRICS
from ipdiff.report import labels
from ipdiff.report.paper import PaperTable
from ipdiff.report.results import Protocol
from ipdiff.report.spec import Table
from ipdiff.report.tables.entries import Entry, Verdict

T = TypeVar("T")
Key = tuple[str, ...]
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


@dataclass(frozen=True)
class Text:
    """What stands in one field: a number with its spread, the verdict, the paper's value, and the number's card."""

    main: str
    verdict: Verdict = ""
    paper: str = ""
    best: bool = False
    card: str = ""


@dataclass(frozen=True)
class Row:
    """One row: its labels and, for each column, a text or None where nothing was asked for."""

    difference: bool
    labels: Key
    cells: tuple[Text | None, ...]


@dataclass(frozen=True)
class Panel:
    """A table as it is drawn. `columns` holds one key for each column, all of one length."""

    caption: str
    stubs: Key
    columns: tuple[Key, ...]
    rows: tuple[Row, ...]

    def header(self) -> list[list[tuple[str, int]]]:
        """For each line of the header its labels, with the number of neighbouring columns that each stands over.

        The last line names every column by itself.
        """
        last = len(self.columns[0]) - 1
        if last < 0:  # all axes make rows
            return [[("", 1)]]
        lines = []
        for upto in range(1, last + 1):
            groups = groupby([column[:upto] for column in self.columns])
            lines.append([(key[-1], sum(1 for _ in group)) for key, group in groups])
        return [*lines, [(column[last], 1) for column in self.columns]]

    def shared(self) -> list[tuple[Row, int]]:
        """Each row with how many of its first labels are those of the row above."""
        found, before = [], ()
        for row in self.rows:
            same = takewhile(lambda pair: pair[0] == pair[1], zip(row.labels, before, strict=False))
            found.append((row, sum(1 for _ in same)))
            before = row.labels
        return found


@dataclass(frozen=True)
class Axes:
    """Which axes make the rows and which the columns."""

    rows: Key
    columns: Key


def panels(table: Table, entries: list[Entry]) -> list[Panel]:
    """Lay a table's entries out.

    Raises:
        UserError: the table's rows and columns do not tell its cells apart.
    """
    axes = table_axes(table, entries)
    style = _Style(table, entries, axes)
    if not _mixed(entries, style):
        return [_panel(style, entries, "")]
    groups = _split(entries, style)
    return [_panel(style, group, "; ".join(_in_order(e.protocol.text() for e in group))) for group in groups]


def table_axes(table: Table, entries: list[Entry]) -> Axes:
    """The axes of a table; points are one row each, and a metric that varies needs a column."""
    if table.points:
        return Axes(("dataset", "model", "step", "sampler"), ("metric",))
    rows, columns = tuple(table.rows), tuple(table.columns)
    if set(rows) & set(columns) or len(set(rows + columns)) < len(rows + columns):
        raise UserError(f"table '{table.title}': an axis stands twice in rows {list(rows)} and columns {list(columns)}")
    if "metric" not in rows + columns and (len(table.metrics) > 1 or not columns):
        columns += ("metric",)
    asked_for = {"dataset": table.datasets, "model": table.models, "sampler": table.samplers, "step": table.steps}
    for name, asked in asked_for.items():
        if name not in rows + columns and len(asked) > 1:
            raise UserError(
                f"table '{table.title}': {len(asked)} values of {name} are asked for, but neither rows "
                f"{list(rows)} nor columns {list(columns)} tell them apart; add {name} to one of them"
            )
    return Axes(rows, columns)


def notes(table: Table, entries: list[Entry], paper: PaperTable | None) -> list[str]:
    """Write the sentences under a table: what the numbers are, how measured, why a paper value is missing."""
    axes = table_axes(table, entries)
    found = [
        table.note,
        _seed_note(entries),
        _difference_note(entries),
        _best_note(table, entries),
        _constant_note(entries, axes),
        _step_note(entries, axes),
        _protocol_note(entries),
        _dimensions_note(entries),
        _paper_note(entries, paper),
        _missing_note(entries, paper),
    ]
    return [note for note in found if note]


class _Style:
    """How the entries of one table are named and written."""

    def __init__(self, table: Table, entries: list[Entry], axes: Axes) -> None:
        self.table, self.axes = table, axes
        self.bare_sampler = False
        self.stubs = tuple(labels.AXES.get(axis, axis) for axis in axes.rows)
        if "sampler" in axes.rows:
            names = [entry.sampler for entry in entries] + [e.baseline_sampler for e in entries if e.baseline]
            header, self.bare_sampler = labels.sampler_axis(names)
            self.stubs = tuple(header if stub == "sampler" else stub for stub in self.stubs)
        self.decimals = decimals(entries)
        self.best = [entry for contest in _contests(table, entries) for entry in contest.best()]

    def row(self, entry: Entry) -> Key:
        """Labels of the entry's row."""
        return tuple(self._label(entry, axis, self.bare_sampler) for axis in self.axes.rows)

    def column(self, entry: Entry) -> Key:
        """Labels of the entry's column."""
        return tuple(self._label(entry, axis, False) for axis in self.axes.columns)

    def text(self, entry: Entry) -> Text:
        """The field's text."""
        places, signed = self.decimals[entry.metric], entry.kind == "difference"
        printed = METRICS[entry.metric].decimals
        shown = entry.paper if entry.comparable else None
        paper = "" if shown is None else labels.number(shown, printed, signed=signed)
        return Text(mean_text(entry, places), entry.verdict, paper, entry in self.best, entry.card)

    def _label(self, entry: Entry, axis: str, bare: bool) -> str:
        if axis == "dataset":
            return labels.dataset(entry.dataset)
        if axis == "model":
            return model_text(entry)
        if axis == "step":
            return step_text(entry)
        if axis == "sampler":
            return sampler_text(entry, bare)
        return entry.label


def decimals(entries: list[Entry]) -> dict[str, int]:
    """How exactly each metric is written, by the values that are shown of it."""
    means: dict[str, list[float]] = {}
    for entry in entries:
        means.setdefault(entry.metric, []).extend([entry.mean] if entry.kind == "value" else [])
    return {metric: labels.decimals(found) for metric, found in means.items()}


def mean_text(entry: Entry, places: int) -> str:
    """`mean +- sd`, or the plain value of one seed; differences carry their sign."""
    main = labels.number(entry.mean, places, signed=entry.kind == "difference")
    return main if entry.sd is None else f"{main} {PLUS_MINUS} {labels.number(entry.sd, places)}"


def model_text(entry: Entry) -> str:
    """The model, or `ADM-IP - ADM` for a difference."""
    name = labels.model(entry.model)
    return f"{name} {labels.MINUS} {labels.model(entry.baseline)}" if entry.baseline else name


def step_text(entry: Entry) -> str:
    """Training steps; both models' for a difference where they differ."""
    return _versus(f"{entry.step:,}", "" if entry.baseline_step is None else f"{entry.baseline_step:,}")


def sampler_text(entry: Entry, bare: bool = False) -> str:
    """The sampler (only its number of steps if `bare`); both for a difference where they differ."""
    return _versus(_sampler(entry.sampler, bare), _sampler(entry.baseline_sampler, bare))


def _sampler(name: str, bare: bool) -> str:
    if not name:
        return ""
    return name.rpartition("-")[2] if bare else labels.sampler(name)


def _versus(ours: str, theirs: str) -> str:
    return ours if not theirs or ours == theirs else f"{ours} vs {theirs}"


def _in_order(items: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(items))


def _mixed(entries: list[Entry], style: _Style) -> bool:
    found: dict[Key, Protocol] = {}
    return any(found.setdefault(style.column(entry), entry.protocol) != entry.protocol for entry in entries)


def _split(entries: list[Entry], style: _Style) -> list[list[Entry]]:
    """Groups without a mixed column: whole rows by what their first entry was measured with, if that does."""
    first: dict[Key, Protocol] = {}
    rows: dict[Protocol, list[Entry]] = {}
    single: dict[Protocol, list[Entry]] = {}
    for entry in entries:
        rows.setdefault(first.setdefault(style.row(entry), entry.protocol), []).append(entry)
        single.setdefault(entry.protocol, []).append(entry)
    whole = not any(_mixed(group, style) for group in rows.values())
    return list((rows if whole else single).values())


def _panel(style: _Style, entries: list[Entry], caption: str) -> Panel:
    columns = _sorted(entries, style.column, bool(style.table.points))
    rows = _sorted(entries, style.row, bool(style.table.points))
    cells: dict[tuple[Key, Key], Entry] = {}
    for entry in entries:
        at = (style.row(entry), style.column(entry))
        if at in cells:
            raise UserError(
                f"table '{style.table.title}': two cells fall on row {at[0]}, column {at[1]}; "
                "rows and columns must tell all cells apart"
            )
        cells[at] = entry
    made = [_row(style, key, [cells.get((key, column)) for column in columns]) for key in rows]
    return Panel(caption, style.stubs, tuple(columns), tuple(made))


def _row(style: _Style, key: Key, cells: list[Entry | None]) -> Row:
    difference = {entry.kind for entry in cells if entry} == {"difference"}
    return Row(difference, key, tuple(style.text(entry) if entry else None for entry in cells))


def _sorted(entries: list[Entry], key: Callable[[Entry], Key], listed: bool) -> list[Key]:
    """Keys in the order of their axes' first appearance; of their own, for explicit points."""
    keys = _in_order(key(entry) for entry in entries)
    if listed or not keys:
        return keys
    ranks = [{label: rank for rank, label in enumerate(_in_order(axis))} for axis in zip(*keys, strict=True)]
    return sorted(keys, key=lambda item: [rank[label] for rank, label in zip(ranks, item, strict=True)])


@dataclass(frozen=True)
class _Contest:
    """Values of different models under otherwise equal conditions, and the training seeds that all of them have."""

    entries: list[Entry]
    seeds: tuple[int, ...]

    def best(self) -> list[Entry]:
        """Those of the best mean over the common seeds; none without a common seed."""
        means = [entry.mean_over(self.seeds) for entry in self.entries] if self.seeds else []
        if not means:
            return []
        best = max(means) if METRICS[self.entries[0].metric].higher else min(means)
        return [entry for entry, mean in zip(self.entries, means, strict=True) if mean == best]


def _contests(table: Table, entries: list[Entry]) -> list[_Contest]:
    groups: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        if entry.kind == "value" and METRICS[entry.metric].higher is not None:
            where = () if table.points else (entry.sampler, entry.step if table.steps else None)
            groups.setdefault((entry.dataset, entry.metric, entry.protocol, *where), []).append(entry)
    return [
        _Contest(group, tuple(seed for seed in group[0].seeds if all(seed in entry.seeds for entry in group)))
        for group in groups.values()
        if len({entry.model for entry in group}) > 1
    ]


def _seed_note(entries: list[Entry]) -> str:
    groups: dict[tuple[int, ...], list[str]] = {}
    for entry in entries:
        if entry.kind == "value":
            groups.setdefault(entry.seeds, []).append(labels.model(entry.model))
    if len(groups) == 1:
        text = _seeds(next(iter(groups)))
        return f"{text[0].upper()}{text[1:]}."
    return "; ".join(f"{', '.join(_in_order(models))}: {_seeds(seeds)}" for seeds, models in groups.items()) + "."


def _seeds(seeds: tuple[int, ...]) -> str:
    if len(seeds) == 1:
        return f"one training seed ({seeds[0]}), plain values without a spread"
    return (
        f"mean {PLUS_MINUS} standard deviation (N {labels.MINUS} 1) over {len(seeds)} training seeds "
        f"({', '.join(map(str, seeds))})"
    )


def _difference_note(entries: list[Entry]) -> str:
    if not any(entry.kind == "difference" for entry in entries):
        return ""
    counts = sorted({entry.seed_count for entry in entries if entry.kind == "difference"})
    fewer = ", ".join(map(str, counts[:-1]))
    over = (f"{fewer} or " if fewer else "") + f"{counts[-1]} seed" + ("" if counts == [1] else "s")
    return (
        f"Differences are paired by seed ({over} in common). Better or worse: the mean difference is larger "
        "than the standard deviation of the differences across seeds; within spread: it is not; one seed: the "
        "spread is unknown. A plain mark of size, not a significance test."
    )


def _best_note(table: Table, entries: list[Entry]) -> str:
    text = labels.better({entry.label: entry.metric for entry in entries})
    direction = f"{text[0].upper()}{text[1:]}."
    contests = _contests(table, entries)
    judged = [contest for contest in contests if contest.seeds]
    if not contests:
        return direction
    if not judged:
        return f"{direction} None is in bold: the models have no training seed in common."
    where = "of a data set" if table.points else "under equal conditions"
    best = {"lower is better": "lowest", "higher is better": "highest"}.get(text, "best")
    bold = f"Bold: the {best} mean among the models {where}"
    if any(set(entry.seeds) != set(contest.seeds) for contest in judged for entry in contest.entries):
        common = " or ".join(_in_order(", ".join(map(str, contest.seeds)) for contest in judged))
        bold += f", over the training seeds that they have in common ({common})"
    without = ", none where they have no training seed in common" if len(judged) < len(contests) else ""
    return f"{direction} {bold}{without}."


def _constant_note(entries: list[Entry], axes: Axes) -> str:
    one = entries[0]
    said = {
        "metric": f"Metric: {one.label}.",
        "dataset": f"Data set: {labels.dataset(one.dataset)}.",
        "model": f"Model: {labels.model(one.model)}.",
        "sampler": f"Sampler: {labels.sampler(one.sampler)}.",
    }
    return " ".join(text for axis, text in said.items() if axis not in axes.rows + axes.columns)


def _step_note(entries: list[Entry], axes: Axes) -> str:
    if "step" in axes.rows + axes.columns:
        return ""
    steps: dict[str, dict[str, int]] = {}
    for entry in entries:
        if entry.kind == "value":
            steps.setdefault(labels.dataset(entry.dataset), {})[labels.model(entry.model)] = entry.step
    texts = {name: _by_model(models) for name, models in steps.items()}
    if len(set(texts.values())) == 1:
        return f"Training steps: {next(iter(texts.values()))}."
    return f"Training steps: {'; '.join(f'{name}: {text}' for name, text in texts.items())}."


def _by_model(steps: dict[str, int]) -> str:
    if len(set(steps.values())) == 1:
        return f"{next(iter(steps.values())):,}"
    return ", ".join(f"{name} {step:,}" for name, step in steps.items())


def _protocol_note(entries: list[Entry]) -> str:
    found: dict[str, list[str]] = {}
    for entry in entries:
        found.setdefault(labels.dataset(entry.dataset), []).append(entry.protocol.text())
    parts = (f"{name}: {' and '.join(_in_order(texts))}" for name, texts in found.items())
    return f"Measured with: {'; '.join(parts)}."


def _dimensions_note(entries: list[Entry]) -> str:
    """How many features each metric compares: with N, all that is known of how sure a figure without a spread is."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        if entry.dimensions is not None and METRICS[entry.metric].higher is not None:
            found.setdefault(entry.label, []).append(f"{entry.dimensions:,}")
    parts = (f"{label} {' or '.join(_in_order(sizes))}" for label, sizes in found.items())
    return f"Features of an image that are compared: {', '.join(parts)}." if found else ""


def _paper_note(entries: list[Entry], paper: PaperTable | None) -> str:
    shown = [entry for entry in entries if entry.kind == "value" and entry.comparable]
    if paper is None or not shown:
        return ""
    caveats = [paper.caveat, *(paper.caveats.get(name, "") for name in _in_order(e.dataset for e in shown))]
    unknown: dict[str, list[str]] = {}
    for entry in shown:
        if entry.unknown:
            unknown.setdefault(entry.unknown, []).append(labels.model(entry.model))
    if unknown:
        parts = (f"{what} of {' and '.join(_in_order(models))}" for what, models in unknown.items())
        caveats.append(f"Not known of the paper's figures, and not compared: {'; '.join(parts)}.")
    return " ".join([f"In brackets: the paper's value ({paper.source}).", *(text for text in caveats if text)])


def _missing_note(entries: list[Entry], paper: PaperTable | None) -> str:
    cells = [entry for entry in entries if entry.kind == "value"]
    missing = [entry for entry in cells if not entry.comparable]
    if paper is None or not missing:
        return ""
    which = "any cell" if len(missing) == len(cells) else f"{len(missing)} of {len(cells)} cells"
    return f"No value of the paper stands beside {which}: {'; '.join(_in_order(e.reason for e in missing))}."
