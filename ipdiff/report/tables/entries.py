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
from ipdiff.report.results import PIXELS, Protocol, Result
from ipdiff.report.spec import Gamma
from ipdiff.report.tables import verdicts
from ipdiff.report.tables.verdicts import Verdict

FAR = 5
"""A model is far from converged where FID of its samples is more than so many times that of as many real images."""

COLUMNS = (
    *("kind", "dataset", "model", "step", "sampler", "baseline", "baseline_step", "baseline_sampler", "metric"),
    *("gamma", "baseline_gamma", "mean", "sd", "seed_count", "seeds", "values", "verdict", "nfe"),
    *("n", "reference_n", "features", "features_digest", "reference_digest", "dimensions"),
    *("half_n", "half_real", "half_samples"),
    *("paper", "minus_paper", "comparable", "reason", "unknown"),
)
"""Of the csv, each an attribute of Entry."""


@dataclass(frozen=True)
class Entry:
    """A mean over seeds (`value`), or a difference between two models, paired by seed (`difference`).

    `reason` says why the paper's value is not comparable, `unknown` what of it the paper does not say. For a
    difference, `model` minus `baseline`; `step`, `sampler` and `nfe` are the model's, `baseline_step`
    and `baseline_sampler` the baseline's. `values` holds one number for each seed of `seeds`. `dimensions` is how many
    features of an image the metric compares, where that is known. `gamma` is how strongly the model's input was
    perturbed. Of a value of a network's features, `half_real` is the FID between two halves of the real images, of
    `half_n` each, and `half_samples` that of as many samples against one of them, for each seed.
    """

    dataset: str
    model: str
    step: int
    sampler: str
    metric: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    nfe: int
    n: int
    reference_n: int
    features: str
    features_digest: str
    reference_digest: str
    dimensions: int | None
    paper: float | None
    comparable: bool
    reason: str
    unknown: str
    baseline: str = ""
    baseline_step: int | None = None
    baseline_sampler: str = ""
    gamma: Gamma = ()
    baseline_gamma: Gamma = ()
    half_n: int | None = None
    half_real: float | None = None
    half_samples: tuple[float, ...] = ()

    @property
    def kind(self) -> Literal["value", "difference"]:
        """A difference has a baseline."""
        return "difference" if self.baseline else "value"

    @property
    def mean(self) -> float:
        """The mean over its seeds."""
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """The standard deviation over its seeds (N - 1); None for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def seed_count(self) -> int:
        """How many seeds it is taken over."""
        return len(self.seeds)

    @property
    def verdict(self) -> Verdict:
        """What a difference says, in plain words: see `verdicts.verdict`."""
        return "" if self.kind == "value" else verdicts.verdict(self.values, METRICS[self.metric].higher)

    @property
    def judged(self) -> bool:
        """Whether it is a value of a metric of which one side is better."""
        return self.kind == "value" and METRICS[self.metric].higher is not None

    @property
    def label(self) -> str:
        """How tables name its metric."""
        return labels.metric(self.metric, self.features, self.features_digest)

    @property
    def minus_paper(self) -> float | None:
        """How far it is from the paper's value, where that is comparable."""
        return self.mean - self.paper if self.paper is not None and self.comparable else None

    @property
    def protocol(self) -> Protocol:
        """What it was measured with."""
        return Protocol(self.features, self.features_digest, self.n, self.reference_n, self.reference_digest)

    @property
    def card(self) -> str:
        """The name of its point's card on the page of cards."""
        return f"{self.dataset}/{self.model}/{self.step}/{self.sampler}"

    def minus(self, other: Entry) -> tuple[float, ...]:
        """Its values minus another one's, in the training seeds that both have, ascending."""
        ours, theirs = (dict(zip(one.seeds, one.values, strict=True)) for one in (self, other))
        return tuple(ours[seed] - theirs[seed] for seed in ours if seed in theirs)

    @property
    def far(self) -> bool:
        """Whether the model is far from converged, as far as that is known; see `FAR`."""
        return self.half_real is not None and statistics.fmean(self.half_samples) > FAR * self.half_real

    @property
    def images(self) -> int:
        """Of the two sets that are compared, the images of the smaller one."""
        return min(self.n, self.reference_n)

    @property
    def singular(self) -> bool:
        """Whether it compares covariances, and one of them is of fewer images than it has rows, as far as is known."""
        return bool(METRICS[self.metric].moments) and (self.dimensions or 0) > self.images

    @property
    def same_sampler(self) -> bool:
        """Whether both sides of a difference were drawn by the same sampler."""
        return self.kind == "value" or self.sampler == self.baseline_sampler


def value(result: Result, metric: str, table: paper.PaperTable | None) -> Entry:
    """The mean over seeds of one result, with the paper's value where there is one."""
    made = _entry(result, metric, result.values(metric), paper.match(table, result, metric))
    if result.halves is None or made.features == PIXELS:
        return made
    return replace(made, half_n=result.halves.n, half_real=result.halves.real, half_samples=result.halves.samples)


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
    ours, theirs = result.values(metric), base.values(metric)
    pairs = {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}
    if not pairs:
        raise UserError(
            f"compare: {result.text()} has seeds {list(result.seeds)}, {base.text()} {list(base.seeds)}; "
            "pairs need a common seed"
        )
    found = _paper_difference(paper.match(table, result, metric), paper.match(table, base, metric))
    made = _entry(result, metric, pairs, found)
    return replace(
        made,
        baseline=base.model,
        baseline_step=base.step,
        baseline_sampler=base.sampler,
        baseline_gamma=base.gamma,
    )


def names(entries: Iterable[Entry]) -> dict[str, str]:
    """How a view of these entries names its models."""
    found = list(entries)
    both = [(entry.model, entry.gamma) for entry in found]
    return labels.models([*both, *((entry.baseline, entry.baseline_gamma) for entry in found if entry.baseline)])


def too_few(entries: Iterable[Entry]) -> str:
    """The metrics of the singular ones, with both numbers: `sFID (1,792 features, 200 images)`; empty for none."""
    found = (f"{e.label} ({e.dimensions:,} features, {e.images:,} images)" for e in entries if e.singular)
    return ", ".join(dict.fromkeys(found))


def write_csv(entries: Iterable[Entry], path: Path) -> None:
    """Write entries, floats at full precision, a header line first."""
    write_rows(path, COLUMNS, (_line(entry).values() for entry in entries))


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
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
        raise UserError(f"{path}: expected a table's csv; found {error!r:.80}; make the table again") from error


def _entry(result: Result, metric: str, values: dict[int, float], found: paper.Match) -> Entry:
    return Entry(
        dataset=result.dataset,
        model=result.model,
        step=result.step,
        sampler=result.sampler,
        metric=metric,
        seeds=tuple(values),
        values=tuple(values.values()),
        nfe=result.nfe,
        **asdict(result.how(metric)),
        dimensions=result.dimensions.get(metric),
        paper=found.value,
        comparable=found.comparable,
        reason=found.reason,
        unknown=", ".join(found.unknown),
        gamma=result.gamma,
    )


def _paper_difference(ours: paper.Match, theirs: paper.Match) -> paper.Match:
    if ours.value is None or theirs.value is None or not (ours.comparable and theirs.comparable):
        return paper.Match(None, False, ours.reason or theirs.reason)
    unknown = tuple(dict.fromkeys((*ours.unknown, *theirs.unknown)))
    return paper.Match(round(ours.value - theirs.value, 6), True, "", unknown)


def _line(entry: Entry) -> dict[str, str]:
    """An entry's line by column."""
    return {name: _dump(getattr(entry, name)) for name in COLUMNS}


def _dump(item: object) -> str:
    if item is None or isinstance(item, bool):
        return {None: "", True: "yes", False: "no"}[item]
    return " ".join(map(str, item)) if isinstance(item, tuple) else str(item)


PARSERS: dict[str, Callable[[str], object]] = {
    "bool": lambda text: text == "yes",
    "int": int,
    "int | None": lambda text: int(text) if text else None,
    "float | None": lambda text: float(text) if text else None,
    "tuple[int, ...]": lambda text: tuple(map(int, text.split())),
    "tuple[float, ...]": lambda text: tuple(map(float, text.split())),
    "Gamma": lambda text: tuple(map(float, text.split())),
}
"""By the type of a field of an entry how its text is read; other fields are text."""


def _parse(row: dict[str, str]) -> Entry:
    parsed = {field.name: PARSERS.get(str(field.type), str)(row[field.name]) for field in fields(Entry)}
    entry = Entry(**parsed)  # pyright: ignore[reportArgumentType]
    if _line(entry) != row:
        raise ValueError("a line whose fields do not belong together")
    return entry
