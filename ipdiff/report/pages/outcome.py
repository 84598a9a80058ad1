"""What the comparisons of a study's tables say, counted and listed case by case."""

from __future__ import annotations

from dataclasses import dataclass

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
    places = layout.decimals([entry for entries in tables.values() for entry in entries])
    seen: dict[tuple[object, ...], list[str]] = {}
    found: dict[tuple[str, str, bool], Pair] = {}
    for name, entries in tables.items():
        for entry in entries:
            if not entry.verdict:  # a value, or a difference of which neither side is better
                continue
            case = (
                entry.dataset,
                entry.model,
                entry.step,
                entry.sampler,
                entry.baseline,
                entry.baseline_step,
                entry.baseline_sampler,
                entry.metric,
                entry.protocol,
            )
            key = (entry.model, entry.baseline, entry.same_sampler)
            if case not in seen:
                seen[case] = []
                found.setdefault(key, Pair(*key, [], places)).cases.append((entry, seen[case]))
            seen[case].append(name)
    for pair in found.values():
        _sort(pair.cases)
    return list(found.values())


def _sort(cases: list[tuple[Entry, list[str]]]) -> None:
    """Order by metric, then data set, each in order of first appearance; else as in the tables."""
    metrics = list(dict.fromkeys(entry.metric for entry, _ in cases))
    datasets = list(dict.fromkeys(entry.dataset for entry, _ in cases))
    cases.sort(key=lambda case: (metrics.index(case[0].metric), datasets.index(case[0].dataset)))
