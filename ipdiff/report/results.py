"""Metrics files as results, those of several seeds joined, and found by what a view asks for.

A figure means nothing without what it was measured with, so a result carries its `Protocol`: seeds of different
protocols are not joined, and tables never put two protocols into one column.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ipdiff.errors import UserError
from ipdiff.metrics.spec import METRICS, short
from ipdiff.report.spec import Gamma, Point
from ipdiff.sample_sets.spec import Sampler
from ipdiff.work import recipes
from ipdiff.work.recipes import RECIPE

T = TypeVar("T")
K = TypeVar("K")
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
        digest = f" ({short(self.features_digest)})" if self.features_digest else ""
        return f"{self.features} features{digest}, N = {self.n:,}, reference of {self.reference_n:,}"


@dataclass(frozen=True)
class Halves:
    """FID against one half of the real images: of the other half, and of as many samples (`ipdiff.metrics.halves`).

    Attributes:
        n: images of a half.
        real: FID of the other half.
        samples: FID of the samples, for each seed.
    """

    n: int
    real: float
    samples: tuple[float, ...]


@dataclass(frozen=True)
class Result:
    """One point (data set, model, training step, sampler), measured for one or more training seeds.

    Attributes:
        seeds: ascending training seeds; one, where it was read from one metrics file.
        metrics: metric -> one value for each seed, in the order of `seeds`.
        files: the metrics file of each seed.
        dimensions: metric -> how many features of an image it compares, as far as the files say it.
        halves: how far real images and samples are from a half of the real images; None where the files do not say it.
        gamma: strength of the model's input perturbation; empty where it was not said.
        made_with: what each seed's recipes say (see `ipdiff.report.origin.attach`); empty where they were not asked.
    """

    dataset: str
    model: str
    step: int
    sampler: str
    nfe: int
    protocol: Protocol
    seeds: tuple[int, ...]
    metrics: dict[str, tuple[float, ...]]
    files: tuple[str, ...]
    dimensions: Mapping[str, int] = field(default_factory=dict)
    halves: Halves | None = None
    gamma: Gamma = ()
    made_with: tuple[Mapping[str, Any], ...] = ()

    def values(self, metric: str) -> dict[int, float]:
        """The metric's value by seed; UserError where it was not measured."""
        if metric not in self.metrics:
            raise UserError(
                f"{self.text()}: no {metric} was measured (found {sorted(self.metrics)}); "
                "evaluate it again or drop the metric from the table"
            )
        return dict(zip(self.seeds, self.metrics[metric], strict=True))

    def how(self, metric: str) -> Protocol:
        """What the metric was measured with; no network had a part in pixel_fd."""
        pixels = METRICS[metric].ending == "_pixel"
        return replace(self.protocol, features=PIXELS, features_digest="") if pixels else self.protocol

    def text(self) -> str:
        """How a message names it."""
        return f"{self.dataset} {self.model} step {self.step} {self.sampler}"


class Results:
    """Results found by point, the seeds of each joined; `title` names in messages what asks for them."""

    def __init__(self, title: str, found: Iterable[Result]) -> None:
        self.title = title
        self.steps: dict[tuple[str, str, str], dict[int, Result]] = {}
        for one in aggregate(found):
            self.steps.setdefault((one.dataset, one.model, one.sampler), {})[one.step] = one

    def get(self, point: Point) -> Result:
        """The result at a point; without a step, the only one there is."""
        found = self.steps.get((point.dataset, point.model, point.sampler), {})
        wanted = f"{point.dataset} {point.model} {point.sampler}"
        if point.step is None and len(found) > 1:
            raise UserError(
                f"{self.title}: {wanted} has records at steps {sorted(found)}, "
                "which is meant is not said; give one checkpoint or name the steps"
            )
        for step, result in found.items():
            if point.step in (None, step):
                return result
        raise UserError(
            f"{self.title}: no record of {wanted}{'' if point.step is None else f' step {point.step}'} "
            f"(steps at hand: {sorted(found) or 'none'}); evaluate it first"
        )


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by a key, in the order of first appearance."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def load(paths: Iterable[Path], gammas: Mapping[tuple[str, str], Gamma] | None = None) -> list[Result]:
    """Read metrics files.

    Args:
        paths: metrics.json files, in any order.
        gammas: by data set and model, how strong its input perturbation is; no result says it where it is not there.

    Returns:
        One result of one seed for each file, in the order given.

    Raises:
        UserError: a file is unreadable, lacks a key or holds a value of the wrong kind.
        IntegrityError: the recipe beside one is damaged.
    """
    found = [_read(Path(path)) for path in paths]
    return [replace(one, gamma=gammas.get((one.dataset, one.model), ())) for one in found] if gammas else found


def aggregate(found: Iterable[Result]) -> list[Result]:
    """Join the seeds of each point.

    Returns:
        One result for each point, in the order of first appearance.

    Raises:
        UserError: a seed stands there twice, or the seeds of a point were measured in different ways.
    """
    groups = grouped(found, lambda one: (one.dataset, one.model, one.step, one.sampler))
    return [_joined(sorted(group, key=lambda one: one.seeds)) for group in groups.values()]


def _joined(group: list[Result]) -> Result:
    first, seeds = group[0], tuple(seed for one in group for seed in one.seeds)
    files = tuple(file for one in group for file in one.files)
    if len(set(seeds)) < len(seeds):
        raise UserError(
            f"{first.text()}: seeds {list(seeds)} hold one seed twice; give each metrics file once ({', '.join(files)})"
        )
    for one in group:
        if one.protocol != first.protocol:
            raise UserError(
                f"{first.text()}: seed {first.seeds[0]} was measured with {first.protocol.text()}, seed "
                f"{one.seeds[0]} with {one.protocol.text()}; such figures have no common mean, "
                "evaluate them alike"
            )
    shared = [name for name in METRICS if all(name in one.metrics for one in group)]
    values = {name: tuple(value for one in group for value in one.metrics[name]) for name in shared}
    made = tuple(made for one in group for made in one.made_with)
    halves = [one.halves for one in group if one.halves]
    if len({(one.n, one.real) for one in halves}) == 1 and len(halves) == len(group):
        of_all = replace(halves[0], samples=tuple(value for one in halves for value in one.samples))
    else:
        of_all = None
    return replace(first, seeds=seeds, metrics=values, files=files, halves=of_all, made_with=made)


POINT = {"dataset": str, "model": str, "step": int, "sampler": str, "nfe": int}
PROTOCOL = {"features": str, "features_digest": str, "n": int, "reference_n": int, "reference_digest": str}
"""Keys of a metrics file and of the recipe beside it, besides the seed and the metrics, and what each holds."""


def _read(path: Path) -> Result:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected a metrics file (JSON), found {error}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(data).__name__}")
    data = with_words(data, path)
    said = {"features_digest": "", "reference_digest": "", **{k: v for k, v in data.items() if v is not None}}
    for key, kind in (POINT | PROTOCOL | {"seed": int}).items():
        if key not in said:
            raise UserError(f"{path}: key '{key}' is missing; it has {', '.join(sorted(data))}")
        if type(said[key]) is not kind:
            raise UserError(f"{path}: '{key}' is {said[key]!r}, expected {kind.__name__}")
    try:
        Sampler.parse(said["sampler"])
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    metrics = {name: said[name] for name in METRICS if name in said}
    for name, value in metrics.items():
        if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
            raise UserError(f"{path}: {name} is {value!r:.40}; a table needs finite numbers")
    if not metrics:
        raise UserError(f"{path}: none of {', '.join(METRICS)} is there")
    return Result(
        **{key: said[key] for key in POINT},
        protocol=Protocol(**{key: said[key] for key in PROTOCOL}),
        seeds=(said["seed"],),
        metrics={name: (float(value),) for name, value in metrics.items()},
        files=(str(path),),
        halves=_halves(path, said),
        dimensions={name: size for name, size in _sizes(path, said).items() if name in METRICS},
    )


def with_words(numbers: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The numbers of a metrics file, and what they are of and were measured with, which its recipe says in words."""
    beside = path.with_name(RECIPE)
    words = recipes.read(beside).get("measured", {}) if beside.exists() else {}
    return {**words, **numbers}


def _halves(path: Path, said: Mapping[str, Any]) -> Halves | None:
    kinds = {"half_n": (int,), "half_fid_real": (int, float), "half_fid": (int, float)}
    if not kinds.keys() & said.keys():
        return None
    for key, kind in kinds.items():
        if type(said.get(key)) not in kind or not 0 <= said[key] <= sys.float_info.max:
            raise UserError(f"{path}: '{key}' is {said.get(key)!r:.40}, expected a number of 0 or more")
    return Halves(said["half_n"], float(said["half_fid_real"]), (float(said["half_fid"]),))


def _sizes(path: Path, said: Mapping[str, Any]) -> Mapping[str, int]:
    found = said.get("dimensions", {})
    if not isinstance(found, dict) or any(type(size) is not int for size in found.values()):
        raise UserError(f"{path}: 'dimensions' is {found!r:.40}, expected a whole number for each metric")
    return found
