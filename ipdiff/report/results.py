"""Metrics files as records, records of several seeds as results, and results found by what a view asks for.

A figure means nothing without what it was measured with, so a record carries its `Protocol`; a result refuses
records of different protocols, and tables never put two protocols into one column.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ipdiff.errors import UserError
from ipdiff.metrics.spec import METRICS
from ipdiff.report.spec import Point
from ipdiff.sample_sets.spec import Sampler

PIXELS = "pixels"
"""What pixel_fd compares: no network's features."""


@dataclass(frozen=True)
class Protocol:
    """What a figure was measured with: two figures compare only if their protocols are equal."""

    features: str
    features_digest: str
    n: int
    reference_n: int
    reference_digest: str = ""

    def text(self) -> str:
        """How a note names it, e.g. `classifier features (3fa2b1c0), N = 1,000, reference of 1,797`."""
        if self.features == PIXELS:
            return f"raw pixels, N = {self.n:,}, reference of {self.reference_n:,}"
        digest = f" ({self.features_digest.rpartition(':')[2][:8]})" if self.features_digest else ""
        return f"{self.features} features{digest}, N = {self.n:,}, reference of {self.reference_n:,}"


@dataclass(frozen=True)
class Record:
    """One metrics file: one sample set of one trained model, measured.

    `dimensions` holds how many features of an image the metrics compare, as far as the file says it;
    `made_with` is what its recipes say (see `ipdiff.report.origin.attach`), where they were asked.
    """

    dataset: str
    model: str
    seed: int
    step: int
    sampler: str
    nfe: int
    protocol: Protocol
    metrics: dict[str, float]
    source: str = ""
    dimensions: Mapping[str, int] = field(default_factory=dict)
    made_with: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Result:
    """One point (data set, model, training step, sampler), measured for one or more training seeds.

    Attributes:
        seeds: ascending training seeds.
        metrics: metric -> one value for each seed, in the order of `seeds`.
        dimensions: metric -> how many features of an image it compares, as far as the files say it.
        made_with: what each seed's recipes say; empty where they were not asked.
    """

    dataset: str
    model: str
    step: int
    sampler: str
    nfe: int
    protocol: Protocol
    seeds: tuple[int, ...]
    metrics: dict[str, tuple[float, ...]]
    dimensions: Mapping[str, int] = field(default_factory=dict)
    made_with: tuple[Mapping[str, Any], ...] = ()

    def values(self, metric: str) -> tuple[float, ...]:
        """The metric's value for each seed; UserError where it was not measured."""
        if metric not in self.metrics:
            raise UserError(
                f"{self.text()}: no {metric} was measured (found {sorted(self.metrics)}); "
                "evaluate it again or drop the metric from the table"
            )
        return self.metrics[metric]

    def how(self, metric: str) -> Protocol:
        """What the metric was measured with; no network had a part in pixel_fd."""
        pixels = METRICS[metric].ending == "_pixel"
        return replace(self.protocol, features=PIXELS, features_digest="") if pixels else self.protocol

    def mean(self, metric: str) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values(metric))

    def sd(self, metric: str) -> float | None:
        """Standard deviation over seeds (N - 1); None for one seed."""
        return spread(self.values(metric))

    def text(self) -> str:
        """How a message names it."""
        return f"{self.dataset} {self.model} step {self.step} {self.sampler}"


class Results:
    """Results of records, found by point; `title` names in messages what asks for them."""

    def __init__(self, title: str, records: Iterable[Record]) -> None:
        self.title = title
        self.steps: dict[tuple[str, str, str], dict[int, Result]] = {}
        for one in aggregate(records):
            self.steps.setdefault((one.dataset, one.model, one.sampler), {})[one.step] = one

    def get(self, point: Point) -> Result:
        """The result at a point; without a step, the only one there is."""
        found = self.steps.get((point.dataset, point.model, point.sampler), {})
        wanted = f"{point.dataset} {point.model} {point.sampler}"
        if point.step is not None and point.step not in found:
            raise UserError(
                f"{self.title}: no record of {wanted} step {point.step} "
                f"(steps at hand: {sorted(found) or 'none'}); evaluate it first"
            )
        if not found:
            raise UserError(f"{self.title}: no record of {wanted}; evaluate it first")
        if point.step is None and len(found) > 1:
            raise UserError(
                f"{self.title}: {wanted} has records at steps {sorted(found)}, "
                "which is meant is not said; give one checkpoint or name the steps"
            )
        return found[point.step] if point.step is not None else next(iter(found.values()))


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation with N - 1 in the denominator; None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def load(paths: Iterable[Path]) -> list[Record]:
    """Read metrics files.

    Args:
        paths: metrics.json files, in any order.

    Returns:
        One record for each file, in the order given.

    Raises:
        UserError: a file is unreadable, lacks a key or holds a value of the wrong kind.
    """
    return [_read(Path(path)) for path in paths]


def aggregate(records: Iterable[Record]) -> list[Result]:
    """Join the seeds of each point.

    Returns:
        One result for each point, in the order of first appearance.

    Raises:
        UserError: a seed stands there twice, or the seeds of a point were measured in different ways.
    """
    groups: dict[tuple[str, str, int, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.dataset, record.model, record.step, record.sampler), []).append(record)
    return [_result(group) for group in groups.values()]


def _result(group: list[Record]) -> Result:
    group = sorted(group, key=lambda record: record.seed)
    first, seeds = group[0], tuple(record.seed for record in group)
    name = f"{first.dataset} {first.model} step {first.step} {first.sampler}"
    if len(set(seeds)) < len(seeds):
        raise UserError(
            f"{name}: seeds {list(seeds)} hold one seed twice; give each metrics file once "
            f"({', '.join(record.source for record in group)})"
        )
    for record in group[1:]:
        if record.protocol != first.protocol:
            raise UserError(
                f"{name}: seed {first.seed} was measured with {first.protocol.text()}, seed "
                f"{record.seed} with {record.protocol.text()}; such figures have no common mean, "
                "evaluate them alike"
            )
    shared = [name for name in METRICS if all(name in record.metrics for record in group)]
    values = {name: tuple(record.metrics[name] for record in group) for name in shared}
    made = tuple(record.made_with for record in group if record.made_with is not None)
    point = (first.dataset, first.model, first.step, first.sampler)
    return Result(*point, first.nfe, first.protocol, seeds, values, first.dimensions, made)


def _read(path: Path) -> Record:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected a metrics file (JSON), found {error}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(data).__name__}")
    take = _Fields(path, data)
    sampler = take.text("sampler")
    try:
        Sampler.parse(sampler)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    protocol = Protocol(
        take.text("features"),
        take.text("features_digest", ""),
        take.integer("n"),
        take.integer("reference_n"),
        take.text("reference_digest", ""),
    )
    return Record(
        take.text("dataset"),
        take.text("model"),
        take.integer("seed"),
        take.integer("step"),
        sampler,
        take.integer("nfe"),
        protocol,
        take.metrics(),
        str(path),
        take.dimensions(),
    )


@dataclass(frozen=True)
class _Fields:
    """Typed access to a metrics file's keys."""

    path: Path
    data: dict[str, Any]

    def text(self, key: str, default: str | None = None) -> str:
        """A string; an absent or null key takes the default where there is one."""
        value = self.data.get(key)
        return default if value is None and default is not None else self._checked(key, str)

    def integer(self, key: str) -> int:
        """An integer that is not a bool."""
        return self._checked(key, int)

    def metrics(self) -> dict[str, float]:
        """The finite metrics that are there; one at least."""
        found = {name: float(self._checked(name, (int, float))) for name in METRICS if self.data.get(name) is not None}
        for name, value in found.items():
            if not math.isfinite(value):
                raise UserError(f"{self.path}: {name} is {value}; a table needs finite figures")
        if not found:
            raise UserError(f"{self.path}: none of {', '.join(METRICS)} is there")
        return found

    def dimensions(self) -> dict[str, int]:
        """How many features of an image the metrics compare; empty where the file does not say it."""
        found = self._checked("dimensions", dict) if "dimensions" in self.data else {}
        return {name: size for name, size in found.items() if name in METRICS and isinstance(size, int)}

    def _checked(self, key: str, kind: type | tuple[type, ...]) -> Any:
        if key not in self.data:
            raise UserError(f"{self.path}: key '{key}' is missing; it has {', '.join(sorted(self.data))}")
        value = self.data[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise UserError(f"{self.path}: '{key}' is {value!r}, expected {wanted}")
        return value
