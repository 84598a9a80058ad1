"""From long entries to the panels that markdown, LaTeX and HTML draw.

A column holds figures of one protocol only. Where the rows of a table would put two into one column (say,
data sets with different features), the table is split into one panel for each protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

from ipdiff.errors import UserError
from ipdiff.metrics.spec import METRICS
from ipdiff.report import labels
from ipdiff.report.results import grouped
from ipdiff.report.spec import Table
from ipdiff.report.tables import verdicts
from ipdiff.report.tables.entries import Entry, names
from ipdiff.report.tables.verdicts import Verdict

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
class _Cell:
    """A number, where it stands, and its text."""

    row: Key
    column: Key
    entry: Entry
    text: Text


def panels(table: Table, entries: list[Entry]) -> list[Panel]:
    """Lay a table's entries out.

    Raises:
        UserError: the table's rows and columns do not tell its cells apart.
    """
    rows, columns = table.axes
    samplers = {name for entry in entries for name in (entry.sampler, entry.baseline_sampler) if name}
    axes = {**labels.AXES, "model": labels.AXES["model"]._replace(name=names(entries).__getitem__)}
    stubs = {**axes, "sampler": labels.sampler_axis(samplers)}
    places, bold = decimals(entries), [best(contest) for contest in contests(table, entries)]
    cells = [
        _Cell(
            tuple(label(entry, axis, stubs) for axis in rows),
            tuple(label(entry, axis, axes) for axis in columns),
            entry,
            _text(entry, places[entry.metric], entry in bold),
        )
        for entry in entries
    ]
    groups = _groups(cells)
    captions = ["; ".join(dict.fromkeys(cell.entry.protocol.text() for cell in group)) for group in groups]
    return [
        _panel(table, tuple(stubs[axis].header for axis in rows), group, caption if len(groups) > 1 else "")
        for group, caption in zip(groups, captions, strict=True)
    ]


def label(entry: Entry, axis: str, axes: Mapping[str, labels.Axis] = labels.AXES) -> str:
    """What names an entry on an axis; of a difference both sides, where they differ."""
    _, name, of = axes[axis]
    ours = name(getattr(entry, of))
    baseline = {"model": entry.baseline, "step": entry.baseline_step, "sampler": entry.baseline_sampler}
    if not entry.baseline or of not in baseline:
        return ours
    theirs = name(baseline[of])
    if axis == "model":
        return f"{ours} {labels.MINUS} {theirs}"
    return ours if ours == theirs else f"{ours} vs {theirs}"


def decimals(entries: Iterable[Entry]) -> dict[str, int]:
    """How exactly each metric is written, by the values that are shown of it."""
    by_metric = grouped(entries, lambda entry: entry.metric)
    return {
        metric: labels.decimals(entry.mean for entry in found if entry.kind == "value")
        for metric, found in by_metric.items()
    }


def mean_text(entry: Entry, places: int) -> str:
    """`mean +- sd`, or the plain value of one seed; differences carry their sign."""
    main = labels.number(entry.mean, places, signed=entry.kind == "difference")
    return main if entry.sd is None else f"{main} {PLUS_MINUS} {labels.number(entry.sd, places)}"


def _text(entry: Entry, places: int, bold: bool) -> Text:
    paper = ""
    if entry.paper is not None and entry.comparable:
        paper = labels.number(entry.paper, METRICS[entry.metric].decimals, signed=entry.kind == "difference")
    return Text(mean_text(entry, places), entry.verdict, paper, bold, entry.card)


def _groups(cells: list[_Cell]) -> list[list[_Cell]]:
    """Groups without a mixed column: all; else whole rows, by what their first entry was measured with; else cells."""
    first = {cell.row: cell.entry.protocol for cell in reversed(cells)}
    keys: tuple[Callable[[_Cell], object], ...] = (
        lambda cell: None,
        lambda cell: first[cell.row],
        lambda cell: cell.entry.protocol,
    )
    ways = ([*grouped(cells, key).values()] for key in keys)
    return next(groups for groups in ways if not any(map(_mixed, groups)))


def _mixed(cells: list[_Cell]) -> bool:
    columns = grouped(cells, lambda cell: cell.column).values()
    return any(len({cell.entry.protocol for cell in column}) > 1 for column in columns)


def _panel(table: Table, stubs: Key, cells: list[_Cell], caption: str) -> Panel:
    rows, columns = [cell.row for cell in cells], [cell.column for cell in cells]
    if not table.points:
        rows, columns = _sorted(rows), _sorted(columns)
    columns = tuple(dict.fromkeys(columns))
    at = {(cell.row, cell.column): cell for cell in cells}
    if len(at) < len(cells):
        twice = next(cell for cell in cells if at[cell.row, cell.column] is not cell)
        raise UserError(
            f"table '{table.title}': two cells fall on row {twice.row}, column {twice.column}; "
            "rows and columns must tell all cells apart"
        )
    made: list[Row] = []
    for row in dict.fromkeys(rows):
        found = [at.get((row, column)) for column in columns]
        difference = all(cell.entry.kind == "difference" for cell in found if cell)
        made.append(Row(difference, row, tuple(cell and cell.text for cell in found)))
    return Panel(caption, stubs, columns, tuple(made))


def _sorted(keys: Sequence[Key]) -> list[Key]:
    """Keys in the order of their axes' first appearance."""
    ranks = [{label: rank for rank, label in enumerate(dict.fromkeys(axis))} for axis in zip(*keys, strict=True)]
    return sorted(keys, key=lambda key: [rank[label] for rank, label in zip(ranks, key, strict=True)])


def best(contest: Sequence[Entry]) -> Entry | None:
    """The one that is better than each other one by the rule of `verdicts.separate`, if there is one."""
    for entry in contest:
        others = (entry.minus(other) for other in contest if other is not entry)
        if all(verdicts.separate(differences, METRICS[entry.metric].higher) == "better" for differences in others):
            return entry
    return None


def contests(table: Table, entries: Iterable[Entry]) -> list[list[Entry]]:
    """Values of different models that are held against each other: of a data set's points, or under equal conditions.

    Equal conditions are the same sampler, and the same training steps where the table asks for some.
    """

    def conditions(entry: Entry) -> tuple[object, ...]:
        where = () if table.points else (entry.sampler, entry.step if table.steps else None)
        return entry.dataset, entry.metric, entry.protocol, *where

    groups = grouped((entry for entry in entries if entry.judged), conditions).values()
    return [group for group in groups if len({entry.model for entry in group}) > 1]
