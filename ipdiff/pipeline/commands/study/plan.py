"""What a target needs before it is made: cells, network evaluations, arithmetic, hours, disk.

Arithmetic is counted on the networks themselves (without weights, on torch's meta device). Hours follow from a speed
that was measured or given for one data set; another's is scaled by the arithmetic of its network.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ipdiff.errors import UserError
from ipdiff.metrics.spec import FEATURES, NEAREST
from ipdiff.pipeline import grid
from ipdiff.pipeline.engines import imports
from ipdiff.pipeline.grid import Cell, selection
from ipdiff.pipeline.grid.freshness import Freshness, State
from ipdiff.pipeline.stages import IMPORT, STAGES
from ipdiff.sample_sets.spec import Sampler, nfe
from ipdiff.spec import FAMILIES, RunSpec

TRAIN_FACTOR = 3
"""Arithmetic of an update's forward and backward pass, in forward passes."""
PENALTY_FACTOR = 9
"""The same with the gradient penalty, which differentiates twice: an estimate, not a count."""
WEIGHT_BYTES = 4
WIDTHS = (7, 9, 17, 19, 13, 12, 11)
"""Of the columns of numbers."""
STATE_COPIES = 4
"""Copies of the weights in a train state: weights, moving average, two moments of AdamW."""


@dataclass(frozen=True)
class Speed:
    """How fast one data set's network is trained and sampled on one device.

    Attributes:
        dataset: the data set it was measured on.
        train: images/s of training.
        sample: image-steps/s of sampling (network evaluations).
    """

    dataset: str
    train: float
    sample: float

    @staticmethod
    def parse(text: str) -> Speed:
        """Read DATASET=TRAIN,SAMPLE, e.g. cifar10=5000,17000; UserError says what it looks like."""
        name, _, numbers = text.partition("=")
        try:
            train, sample = (float(number) for number in numbers.split(","))
            if not (name and train > 0 and sample > 0):
                raise ValueError
        except ValueError:
            raise UserError(
                f"--speed is '{text}'; write DATASET=TRAIN,SAMPLE in images/s and image-steps/s, "
                "e.g. --speed cifar10=5000,17000"
            ) from None
        return Speed(name, train, sample)


@dataclass(frozen=True)
class Cost:
    """What the cells of one verb need together.

    Attributes:
        cells: how many there are.
        missing: how many are to be made.
        images: images trained on, drawn or measured, of those to be made.
        evaluations: network evaluations of those (a training update counts TRAIN_FACTOR for each image).
        flops: arithmetic of those.
        seconds: time of those on one device, 0 where no speed is known.
        bytes: disk of all of them.
    """

    cells: int = 0
    missing: int = 0
    images: int = 0
    evaluations: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Plan:
    """A target's costs.

    Attributes:
        verbs: verb -> what its cells need, in the order of the pipeline.
        states: bytes of train states that lie in work/ meanwhile.
        unknown: data sets whose number of images is not known yet: their data is not counted.
        otherwise: data sets whose samples are drawn in another precision than those of the known speed: their hours of
            sampling are too few or too many.
        missing: a line about each imported checkpoint that is not here.
    """

    verbs: dict[str, Cost]
    states: int
    unknown: list[str]
    otherwise: list[str]
    missing: list[str]

    @property
    def total(self) -> Cost:
        """All verbs together."""
        return sum(self.verbs.values(), Cost())


@lru_cache
def network(key: str) -> tuple[int, int]:
    """(arithmetic of one evaluation of one image, number of parameters) of a run's network.

    Args:
        key: the run as JSON (`RunSpec.to_json`), which can be cached by.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ipdiff.nets import build

    spec = RunSpec.from_json(json.loads(key))
    with torch.device("meta"):
        net = build.network(spec).eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            net(torch.zeros(1, spec.channels, spec.image_size, spec.image_size), torch.zeros(1, dtype=torch.int64))
    return counter.get_total_flops(), sum(p.numel() for p in net.parameters())


class Planner:
    """Counts what cells need, with the parameters of now."""

    def __init__(self, fresh: Freshness, speed: Speed | None = None) -> None:
        """`fresh`: the grid and what holds of it; `speed`: of one data set, for the hours."""
        self.fresh, self.studies, self.speed = fresh, fresh.grid.studies, speed
        self.unknown: set[str] = set()

    def plan(self, names: Sequence[str]) -> Plan:
        """What these targets need, with everything they are made from.

        Raises:
            UserError: a target is unknown (see `selection.select`).
        """
        chosen = selection.cells_of(selection.select(self.fresh.grid, names))
        cells = {cell.directory: cell for target in chosen for cell in self.fresh.grid.needed(target)}
        verbs: dict[str, Cost] = {verb: Cost() for verb in (*STAGES, IMPORT.verb)}
        for cell in cells.values():
            verbs[cell.stage.verb] += self._cost(cell)
        found = {verb: cost for verb, cost in verbs.items() if cost.cells}
        missing = imports.missing(self.fresh.grid, cells.values())
        return Plan(found, self._states(cells.values()), sorted(self.unknown), self._otherwise(cells.values()), missing)

    def _otherwise(self, cells: Iterable[Cell]) -> list[str]:
        if self.speed is None:
            return []
        drawn = [cell.bindings for cell in cells if cell.stage.verb == "sample"]
        known = self.studies.dataset(self.speed.dataset).sampling_compute.precision
        ways = {(one["dataset"], Sampler.parse(one["sampler"])) for one in drawn}
        return sorted({name for name, way in ways if self.studies.dataset(name).sampled_on(way).precision != known})

    def _cost(self, cell: Cell) -> Cost:
        missing = self.fresh.state(cell) is not State.HOLDS
        cost: Cost = getattr(self, f"_{cell.stage.verb}", lambda cell: Cost())(cell)
        return replace(cost if missing else Cost(bytes=cost.bytes), cells=1, missing=int(missing))

    def _prepare(self, cell: Cell) -> Cost:
        name = cell.bindings["dataset"]
        return Cost(images=self._count(name), bytes=self._count(name) * self._pixels(name))

    def _reference(self, cell: Cell) -> Cost:
        name = cell.bindings["dataset"]
        return self._features(name, self.studies.dataset(name).reference.images or self._count(name))

    def _neighbours(self, cell: Cell) -> Cost:
        name, cost = cell.bindings["dataset"], self._reference(cell)
        size = cost.images * (self._width(name) + NEAREST) * WEIGHT_BYTES
        return cost + self._distances(name, cost.images**2) + Cost(bytes=size)

    def _distances(self, name: str, pairs: int) -> Cost:
        """Of so many pairs of pooled features."""
        flops = 2 * self._width(name) * pairs
        return Cost(flops=flops, seconds=self._seconds(1, flops, "sample"))

    def _width(self, name: str) -> int:
        settings = self.studies.dataset(name)
        width = FEATURES[settings.features].width
        return width if isinstance(width, int) else getattr(settings.feature_settings, width)

    def _train(self, cell: Cell) -> Cost:
        from ipdiff.nets import build

        spec, names = self._spec(cell), cell.bindings
        flops, parameters = self._network(spec)
        images = (int(names["step"]) - int(names.get("previous", 0))) * spec.training.batch_size
        factor = PENALTY_FACTOR if build.diffusion(spec).needs_probe else TRAIN_FACTOR
        seconds = self._seconds(images * factor / TRAIN_FACTOR, flops, "train")
        return Cost(0, 0, images, images * factor, images * factor * flops, seconds, parameters * WEIGHT_BYTES)

    def _import(self, cell: Cell) -> Cost:
        return Cost(bytes=self._network(self._spec(cell))[1] * WEIGHT_BYTES)

    def _resume(self, cell: Cell) -> Cost:
        return Cost(bytes=self._import(cell).bytes * STATE_COPIES)

    def _sample(self, cell: Cell) -> Cost:
        spec, sampler = self._spec(cell), Sampler.parse(cell.bindings["sampler"])
        calls = nfe(sampler, spec.diffusion)
        images, flops = self._drawn(cell), self._network(spec)[0]
        return Cost(
            images=images,
            evaluations=images * calls,
            flops=images * calls * flops,
            seconds=self._seconds(images * calls, flops, "sample"),
            bytes=images * self._pixels(cell.bindings["dataset"]),
        )

    def _evaluate(self, cell: Cell) -> Cost:
        name, drawn = cell.bindings["dataset"], self._drawn(cell)
        cost, reference = self._features(name, drawn), self.studies.dataset(name).reference
        if reference.neighbours:
            cost += self._distances(name, drawn * (drawn + (reference.images or self._count(name))))
        return cost

    def _drawn(self, cell: Cell) -> int:
        sampler = Sampler.parse(cell.bindings["sampler"])
        return self.studies.dataset(cell.bindings["dataset"]).sampling.count(sampler)

    def _analyse(self, cell: Cell) -> Cost:
        settings = self.studies.dataset(cell.bindings["dataset"]).analysis
        return self._analysed(cell, settings.timesteps if settings else 0)

    def _drift(self, cell: Cell) -> Cost:
        steps = nfe(Sampler.parse(cell.bindings["sampler"]), self._spec(cell).diffusion)
        return self._analysed(cell, 3 * steps)  # the chain's own call, and one each at its x_t and at a diffused image

    def _analysed(self, cell: Cell, calls: int) -> Cost:
        """Of so many network calls for each image that is analysed."""
        settings = self.studies.dataset(cell.bindings["dataset"]).analysis
        images, flops = settings.images if settings else 0, self._network(self._spec(cell))[0]
        evaluations = images * calls
        return Cost(0, 0, images, evaluations, evaluations * flops, self._seconds(evaluations, flops, "sample"))

    def _features(self, dataset: str, images: int) -> Cost:
        flops = FEATURES[self.studies.dataset(dataset).features].flops
        return Cost(images=images, flops=images * flops, seconds=self._seconds(images if flops else 0, flops, "sample"))

    def _seconds(self, work: float, flops: float, kind: str) -> float:
        """Time of `work` images or evaluations of `flops` each, at the arithmetic rate of the known speed."""
        if self.speed is None or not work:
            return 0.0
        name = self.speed.dataset
        dataset, params = self.studies.dataset(name), self.studies.owner(name)
        family = next(kind for kind in FAMILIES if getattr(dataset.families, kind) is not None)
        model = next(key for key, model in params.models.items() if model.family == family)
        known = self._network(params.run_spec(name, model, 0))[0]
        return work * flops / (known * (self.speed.train if kind == "train" else self.speed.sample))

    def _states(self, cells: Iterable[Cell]) -> int:
        """Bytes of the train states in work/ once every run is trained."""
        runs = {cell.directory.rpartition("/")[0]: cell for cell in cells if cell.stage.verb == "train"}
        kept = [(self._spec(cell), self.fresh.grid.of(cell).work.states_kept) for cell in runs.values()]
        return sum(self._network(spec)[1] * WEIGHT_BYTES * STATE_COPIES * count for spec, count in kept)

    def _spec(self, cell: Cell) -> RunSpec:
        names = cell.bindings
        return self.studies.of(names).run_spec(names["dataset"], names["model"], 0)

    def _network(self, spec: RunSpec) -> tuple[int, int]:
        shape = {**spec.to_json(), "objective": {"gamma": 0, "target": "eps", "gp_weight": 0, "weight_decay": 0}}
        return network(json.dumps(shape, sort_keys=True))

    def _pixels(self, name: str) -> int:
        source = self.studies.dataset(name).source
        return source.image_size**2 * source.channels

    def _count(self, name: str) -> int:
        """Images of a data set: of its file where it was made, else as params.yaml says; 0 where neither knows."""
        made = Path(STAGES["prepare"].outputs[0].format(dataset=name))
        if made.exists():
            from ipdiff.data.images import load_images

            return len(load_images(made))
        if (known := self.studies.dataset(name).source.expected_images) is None:
            self.unknown.add(name)
        return known or 0


def describe(plan: Plan, speed: Speed | None) -> str:
    """A plan as text: one line a verb, the total, and what was assumed."""
    head = _columns("stage", "cells", "to make", "images", "evaluations", "PFLOP", "hours", "disk")
    lines = [head, *(_line(verb, cost) for verb, cost in plan.verbs.items()), _line("total", plan.total)]
    lines.append(f"train states in work/ meanwhile: {_size(plan.states)}")
    if speed is None:
        lines.append("hours: give a measured speed with --speed DATASET=TRAIN,SAMPLE (ipdiff bench measures it)")
    else:
        lines.append(
            f"hours: one device that trains {speed.train:g} images/s and samples {speed.sample:g} image-steps/s of "
            f"{speed.dataset}; others by the arithmetic of their networks"
        )
        if plan.otherwise:
            lines.append(
                f"sampled in another precision than {speed.dataset}, so that the hours of their samples are not known: "
                f"{', '.join(plan.otherwise)}"
            )
    if plan.unknown:
        lines.append(f"not counted, since their number of images is not known yet: {', '.join(plan.unknown)}")
    return "\n".join([*lines, *plan.missing])


def _line(name: str, cost: Cost) -> str:
    work, hours = cost.flops / 1e15, cost.seconds / 3600
    counts = (cost.cells, cost.missing, cost.images, cost.evaluations)
    return _columns(
        name, *map(_number, counts), _number(work, 1 if work > 10 else 3), _number(hours, 1), _size(cost.bytes)
    )


def _columns(name: str, *texts: str) -> str:
    return f"{name:<11}" + "".join(f"{text:>{width}}" for text, width in zip(texts, WIDTHS, strict=True))


def _number(value: float, places: int = 0) -> str:
    return f"{value:,.{places}f}" if value else ""


def _size(size: int) -> str:
    from ipdiff.pipeline.commands.store.verify import bytes_text

    return bytes_text(size) if size else ""


def run(names: Sequence[str], speed: Speed | None) -> tuple[Plan, dict[str, Any]]:
    """The plan of these targets, and as plain data."""
    fresh = Freshness(grid.load())
    if speed is not None:
        fresh.grid.studies.owner(speed.dataset)
    plan = Planner(fresh, speed).plan(names)
    data = {verb: vars(cost) for verb, cost in {**plan.verbs, "total": plan.total}.items()}
    return plan, {
        "verbs": data,
        "train_states_bytes": plan.states,
        "unknown_datasets": plan.unknown,
        "other_precision": plan.otherwise,
        "missing_imports": plan.missing,
    }
