"""The long form of tables and figures: one entry for each number shown, and its CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ipdiff.errors import UserError
from ipdiff.metrics.spec import HIGHER_IS_BETTER
from ipdiff.report import paper
from ipdiff.report.results import Cell, Protocol, spread

Verdict = Literal["", "better", "worse", "within spread", "one seed"]


@dataclass(frozen=True)
class Entry:
    """A mean over seeds (`value`), or a difference between two models, paired by seed (`difference`).

    `reason` says why the paper's value is not comparable, `unknown` what of it the paper does not say. For a
    difference, `model` minus `baseline`; `step`, `sampler` and `nfe` are the model's, `baseline_step`
    and `baseline_sampler` the baseline's. `values` holds one number for each seed of `seeds`.
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


def verdict(differences: Sequence[float], *, higher: bool = False) -> Verdict:
    """What paired differences (model minus baseline) say, in plain words.

    `better` or `worse`: the mean difference is larger than the standard deviation (N - 1) of the differences
    across seeds, and on the better side (above 0 where `higher` is better, else below) or on the other. `within
    spread`: it is not larger. `one seed`: fewer than two seeds in common, so the spread is unknown. It is a plain
    mark of size against spread, not a significance test.
    """
    sd = spread(differences)
    if sd is None:
        return "one seed"
    mean = statistics.fmean(differences)
    if abs(mean) <= sd:
        return "within spread"
    return "better" if (mean > 0) is higher else "worse"


def value(cell: Cell, metric: str, table: paper.PaperTable | None) -> Entry:
    """The mean over seeds of one cell, with the paper's value where there is one."""
    found = paper.match(table, cell, metric)
    mean = cell.mean(metric)
    return Entry(
        "value",
        cell.dataset,
        cell.model,
        cell.step,
        cell.sampler,
        "",
        None,
        "",
        metric,
        mean,
        cell.sd(metric),
        len(cell.seeds),
        cell.seeds,
        cell.values(metric),
        "",
        cell.nfe,
        *_common(cell, metric, mean, found),
    )


def difference(cell: Cell, base: Cell, metric: str, table: paper.PaperTable | None) -> Entry:
    """`cell` minus `base`, paired by the seeds that both have.

    Raises:
        UserError: the two were measured in different ways, or have no seed in common.
    """
    if cell.how(metric) != base.how(metric):
        raise UserError(
            f"compare: {cell.text()} was measured with {cell.how(metric).text()}, {base.text()} with "
            f"{base.how(metric).text()}; only figures of one kind can be subtracted"
        )
    seeds = tuple(seed for seed in cell.seeds if seed in base.seeds)
    if not seeds:
        raise UserError(
            f"compare: {cell.text()} has seeds {list(cell.seeds)}, {base.text()} {list(base.seeds)}; "
            "pairs need a common seed"
        )
    ours = dict(zip(cell.seeds, cell.values(metric), strict=True))
    theirs = dict(zip(base.seeds, base.values(metric), strict=True))
    pairs = tuple(ours[seed] - theirs[seed] for seed in seeds)
    mean, found = (
        statistics.fmean(pairs),
        _paper_difference(value(cell, metric, table), value(base, metric, table)),
    )
    return Entry(
        "difference",
        cell.dataset,
        cell.model,
        cell.step,
        cell.sampler,
        base.model,
        base.step,
        base.sampler,
        metric,
        mean,
        spread(pairs),
        len(seeds),
        seeds,
        pairs,
        verdict(pairs, higher=metric in HIGHER_IS_BETTER),
        cell.nfe,
        *_common(cell, metric, mean, found),
    )


def write_csv(entries: Iterable[Entry], path: Path) -> None:
    """Write entries, floats at full precision, a header line first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry in entries:
        writer.writerow([_dump(getattr(entry, name)) for name in COLUMNS])
    path.write_bytes(text.getvalue().encode())


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


def _common(cell: Cell, metric: str, mean: float, found: paper.Match) -> tuple[Any, ...]:
    """The last fields of an entry: how it was measured, and the paper's value."""
    how = cell.how(metric)
    beyond = mean - found.value if found.value is not None and found.comparable else None
    return (
        how.n,
        how.reference_n,
        how.features,
        how.features_digest,
        how.reference_digest,
        found.value,
        beyond,
        found.comparable,
        found.reason,
        ", ".join(found.unknown),
    )


def _paper_difference(ours: Entry, theirs: Entry) -> paper.Match:
    if ours.paper is None or theirs.paper is None or not (ours.comparable and theirs.comparable):
        return paper.Match(None, False, ours.reason or theirs.reason)
    unknown = tuple(dict.fromkeys(name for side in (ours, theirs) for name in side.unknown.split(", ") if name))
    return paper.Match(round(ours.paper - theirs.paper, 6), True, "", unknown)


def _dump(item: object) -> str:
    if item is None:
        return ""
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, float):
        return repr(item)
    return " ".join(_dump(part) for part in item) if isinstance(item, tuple) else str(item)


def _parse(row: dict[str, str]) -> Entry:
    whole = ("step", "seed_count", "nfe", "n", "reference_n")
    real = ("sd", "paper", "minus_paper")
    typed: dict[str, object] = dict(row)
    typed.update({key: int(row[key]) for key in whole})
    typed.update({key: float(row[key]) if row[key] else None for key in real})
    typed["mean"] = float(row["mean"])
    typed["baseline_step"] = int(row["baseline_step"]) if row["baseline_step"] else None
    typed["seeds"] = tuple(int(part) for part in row["seeds"].split())
    typed["values"] = tuple(float(part) for part in row["values"].split())
    typed["comparable"] = row["comparable"] == "yes"
    return Entry(**typed)  # pyright: ignore[reportArgumentType]
