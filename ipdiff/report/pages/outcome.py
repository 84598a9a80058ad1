"""What the comparisons of a study's tables say, counted and listed case by case."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ipdiff.report.results import grouped
from ipdiff.report.tables import layout
from ipdiff.report.tables.entries import Entry

ORDER = ("better", "within spread", "worse", "one seed")


@dataclass(frozen=True)
class Pair:
    """All comparisons of one model with one baseline.

    `cases` holds each comparison once, with the names of the tables that show it; `decimals` says how exactly
    a metric is written.
    """

    model: str
    baseline: str
    same_sampler: bool
    cases: list[tuple[Entry, list[str]]]
    decimals: dict[str, int]

    @property
    def metrics(self) -> list[str]:
        """Labels of the metrics compared, in order of first appearance."""
        return list(dict.fromkeys(entry.label for entry, _ in self.cases))

    def counts(self, label: str) -> dict[str, int]:
        """Number of cases of each verdict, zeros included."""
        said = [entry.verdict for entry, _ in self.cases if entry.label == label]
        return {verdict: said.count(verdict) for verdict in ORDER}


def pairs(tables: dict[str, list[Entry]]) -> list[Pair]:
    """Collect the differences of all tables that say which side is better.

    A comparison that stands in several tables is one case. Comparisons of different samplers (fewer steps
    against more, say) are kept apart from those under equal conditions.
    """
    places = layout.decimals(entry for entries in tables.values() for entry in entries)
    shown = [(name, entry) for name, entries in tables.items() for entry in entries if entry.verdict]
    groups = grouped(shown, lambda one: replace(one[1], paper=None, comparable=False, reason="", unknown="")).values()
    cases = [(group[0][1], [name for name, _ in group]) for group in groups]
    found = grouped(cases, lambda case: (case[0].model, case[0].baseline, case[0].same_sampler))
    return [Pair(*key, _sorted(group), places) for key, group in found.items()]


def _sorted(cases: list[tuple[Entry, list[str]]]) -> list[tuple[Entry, list[str]]]:
    """Order by metric, then data set, each in order of first appearance; else as in the tables."""
    metrics = list(dict.fromkeys(entry.metric for entry, _ in cases))
    datasets = list(dict.fromkeys(entry.dataset for entry, _ in cases))
    return sorted(cases, key=lambda case: (metrics.index(case[0].metric), datasets.index(case[0].dataset)))
