"""The long form of tables and of figures' lines: one entry for each number shown, and its CSV."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

from ipdiff.errors import UserError
from ipdiff.metrics.spec import METRICS
from ipdiff.report import labels, paper
from ipdiff.report.results import Protocol, Result, spread

Verdict = Literal["", "better", "worse", "within spread", "one seed"]


@dataclass(frozen=True)
class Entry:
    """A mean over seeds (`value`), or a difference between two models, paired by seed (`difference`).

    `reason` says why the paper's value is not comparable, `unknown` what of it the paper does not say. For a
    difference, `model` minus `baseline`; `step`, `sampler` and `nfe` are the model's, `baseline_step`
    and `baseline_sampler` the baseline's. `values` holds one number for each seed of `seeds`. `dimensions` is how many
    features of an image the metric compares, where that is known.
    """

    kind: Literal["value", "difference"]
    dataset: str
    model: str
    step: int
    sampler: str
    baseline: str
    baseline_step: int | None
    baseline_sampler: str
    metric: str
    mean: float
    sd: float | None
    seed_count: int
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    verdict: Verdict
    nfe: int
    n: int
    reference_n: int
    features: str
    features_digest: str
    reference_digest: str
    dimensions: int | None
    paper: float | None
    minus_paper: float | None
    comparable: bool
    reason: str
    unknown: str

    @property
    def protocol(self) -> Protocol:
        """What it was measured with."""
        return Protocol(self.features, self.features_digest, self.n, self.reference_n, self.reference_digest)

    @property
    def label(self) -> str:
        """How tables name its metric."""
        return labels.metric(self.metric, self.features, self.features_digest)

    @property
    def card(self) -> str:
        """The name of its point's card on the page of cards."""
        return f"{self.dataset}/{self.model}/{self.step}/{self.sampler}"

    def mean_over(self, seeds: Sequence[int]) -> float:
        """The mean over some of its training seeds."""
        found = dict(zip(self.seeds, self.values, strict=True))
        return statistics.fmean(found[seed] for seed in seeds)

    @property
    def same_sampler(self) -> bool:
        """Whether both sides of a difference were drawn by the same sampler."""
        return self.kind == "value" or self.sampler == self.baseline_sampler


COLUMNS = tuple(field.name for field in fields(Entry))


def verdict(differences: Sequence[float], *, higher: bool | None = False) -> Verdict:
    """What paired differences (model minus baseline) say, in plain words.

    `better` or `worse`: the mean difference is larger than the standard deviation (N - 1) of the differences
    across seeds, and on the better side (above 0 where `higher` is better, else below) or on the other. `within
    spread`: it is not larger. `one seed`: fewer than two seeds in common, so the spread is unknown. It is a plain
    mark of size against spread, not a significance test. Where `higher` is None neither side is better: no verdict.
    """
    if higher is None:
        return ""
    sd = spread(differences)
    if sd is None:
        return "one seed"
    mean = statistics.fmean(differences)
    if abs(mean) <= sd:
        return "within spread"
    return "better" if (mean > 0) is higher else "worse"


def value(result: Result, metric: str, table: paper.PaperTable | None) -> Entry:
    """The mean over seeds of one result, with the paper's value where there is one."""
    return _entry("value", result, metric, result.seeds, result.values(metric), paper.match(table, result, metric))


def difference(result: Result, base: Result, metric: str, table: paper.PaperTable | None) -> Entry:
    """`result` minus `base`, paired by the seeds that both have.

    Raises:
        UserError: the two were measured in different ways, or have no seed in common.
    """
    if result.how(metric) != base.how(metric):
        raise UserError(
            f"compare: {result.text()} was measured with {result.how(metric).text()}, {base.text()} with "
            f"{base.how(metric).text()}; only figures of one kind can be subtracted"
        )
    ours = dict(zip(result.seeds, result.values(metric), strict=True))
    theirs = dict(zip(base.seeds, base.values(metric), strict=True))
    pairs = {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}
    if not pairs:
        raise UserError(
            f"compare: {result.text()} has seeds {list(result.seeds)}, {base.text()} {list(base.seeds)}; "
            "pairs need a common seed"
        )
    found = _paper_difference(paper.match(table, result, metric), paper.match(table, base, metric))
    made = _entry("difference", result, metric, tuple(pairs), tuple(pairs.values()), found)
    return replace(
        made,
        baseline=base.model,
        baseline_step=base.step,
        baseline_sampler=base.sampler,
        verdict=verdict(made.values, higher=METRICS[metric].higher),
    )


def write_csv(entries: Iterable[Entry], path: Path) -> None:
    """Write entries, floats at full precision, a header line first."""
    write_rows(path, COLUMNS, ([_dump(getattr(entry, name)) for name in COLUMNS] for entry in entries))


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a csv file, the same bytes on every system."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])


def read_csv(path: Path) -> list[Entry]:
    """Read what `write_csv` wrote; UserError on any other file."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [_parse(row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected a table's csv with the columns {', '.join(COLUMNS)}; found {error!r}; "
            "make the table again"
        ) from error


def _entry(
    kind: Literal["value", "difference"],
    result: Result,
    metric: str,
    seeds: tuple[int, ...],
    values: tuple[float, ...],
    found: paper.Match,
) -> Entry:
    how, mean = result.how(metric), statistics.fmean(values)
    return Entry(
        kind=kind,
        dataset=result.dataset,
        model=result.model,
        step=result.step,
        sampler=result.sampler,
        baseline="",
        baseline_step=None,
        baseline_sampler="",
        metric=metric,
        mean=mean,
        sd=spread(values),
        seed_count=len(seeds),
        seeds=seeds,
        values=values,
        verdict="",
        nfe=result.nfe,
        **asdict(how),
        dimensions=result.dimensions.get(metric),
        paper=found.value,
        minus_paper=mean - found.value if found.value is not None and found.comparable else None,
        comparable=found.comparable,
        reason=found.reason,
        unknown=", ".join(found.unknown),
    )


def _paper_difference(ours: paper.Match, theirs: paper.Match) -> paper.Match:
    if ours.value is None or theirs.value is None or not (ours.comparable and theirs.comparable):
        return paper.Match(None, False, ours.reason or theirs.reason)
    unknown = tuple(dict.fromkeys((*ours.unknown, *theirs.unknown)))
    return paper.Match(round(ours.value - theirs.value, 6), True, "", unknown)


def _dump(item: object) -> str:
    if item is None:
        return ""
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, float):
        return repr(item)
    return " ".join(_dump(part) for part in item) if isinstance(item, tuple) else str(item)


PARSERS: dict[str, Callable[[str], object]] = {
    "bool": lambda text: text == "yes",
    "int": int,
    "int | None": lambda text: int(text) if text else None,
    "float": float,
    "float | None": lambda text: float(text) if text else None,
    "tuple[int, ...]": lambda text: tuple(map(int, text.split())),
    "tuple[float, ...]": lambda text: tuple(map(float, text.split())),
}
"""By the type of a field of an entry how its text is read; other fields are text."""


def _parse(row: dict[str, str]) -> Entry:
    if tuple(row) != COLUMNS or None in row.values():
        raise ValueError(f"a line of {', '.join(map(str, row))}")
    parsed = {field.name: PARSERS.get(str(field.type), str)(row[field.name]) for field in fields(Entry)}
    return Entry(**parsed)  # pyright: ignore[reportArgumentType]
