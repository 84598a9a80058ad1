"""What a target needs before it is made: cells, network evaluations, arithmetic, memory, hours, disk.

Arithmetic and memory follow from the networks' shapes (`ipdiff.nets.costs`): nothing here imports torch. Hours follow
from a device that is named or a speed that was measured (`rates`), and there are none without.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ipdiff.device.spec import Compute
from ipdiff.metrics.spec import FEATURES, NEAREST
from ipdiff.nets import costs
from ipdiff.pipeline import grid
from ipdiff.pipeline.commands.planning import memory, waiting
from ipdiff.pipeline.commands.planning.rates import Kind, Measured, Named, Speed
from ipdiff.pipeline.config.spec import Dataset
from ipdiff.pipeline.engines import imports
from ipdiff.pipeline.grid import Cell, checks, selection
from ipdiff.pipeline.grid.freshness import Freshness, State
from ipdiff.pipeline.stages import IMPORT, STAGES
from ipdiff.sample_sets.spec import Sampler, nfe
from ipdiff.spec import RunSpec

FLOAT32 = 4
"""Bytes of a feature."""


@dataclass(frozen=True)
class Cost(costs.Added):
    """What the cells of one verb need together.

    Attributes:
        cells: how many there are.
        missing: how many are to be made.
        images: images trained on, drawn or measured, of those to be made.
        evaluations: network evaluations of those (a training update counts `costs.UPDATE` for each image).
        flops: arithmetic of those.
        seconds: time of those on one device, 0 where no rate is known.
        least: the same at the highest rate.
        most: the same at the lowest rate.
        bytes: disk of all of them.
    """

    cells: int = 0
    missing: int = 0
    images: int = 0
    evaluations: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    least: float = 0.0
    most: float = 0.0
    bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """A target's costs.

    Attributes:
        rates: what the hours follow from, if anything.
        verbs: verb -> what its cells need, in the order of the pipeline.
        states: bytes of train states that lie in work/ meanwhile.
        memory: of the networks that are trained on a GPU.
        chain: cells to be made that have to wait for each other and take longest, first to last.
        chain_seconds: time of these.
        wall_clock: (least, likely, most) seconds until all is made, on `devices` devices.
        devices: how many work at a time, each on a cell of its own.
        unknown: data sets whose number of images is not known yet: their data is not counted.
        unmeasured: verb -> data sets for which it has no hours: on another kind of device, or in another precision.
        uncounted: data sets whose feature network is the user's own, whose arithmetic is not known.
        missing: a line about each imported checkpoint that is not here.
    """

    rates: Measured | Named | None
    verbs: dict[str, Cost]
    states: int
    memory: list[memory.Memory]
    chain: list[str]
    chain_seconds: float
    wall_clock: tuple[float, float, float]
    devices: int
    unknown: list[str]
    unmeasured: dict[str, list[str]]
    uncounted: list[str]
    missing: list[str]

    @property
    def total(self) -> Cost:
        """All verbs together."""
        return sum(self.verbs.values(), Cost())

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "verbs": {verb: vars(cost) for verb, cost in {**self.verbs, "total": self.total}.items()},
            "train_states_bytes": self.states,
            "gpu_memory": [{**vars(one), "total": one.total} for one in self.memory],
            "longest_chain": {"cells": self.chain, "seconds": self.chain_seconds},
            "wall_clock": dict(zip(("least", "seconds", "most"), self.wall_clock, strict=True)),
            "devices": self.devices,
            "unknown_datasets": self.unknown,
            "unmeasured": self.unmeasured,
            "uncounted_features": self.uncounted,
            "missing_imports": self.missing,
        }


class Planner:
    """Counts what cells need, with the parameters of now."""

    def __init__(self, fresh: Freshness, speed: Speed | Named | None = None, devices: int = 1) -> None:
        """Of a grid and what holds of it.

        Args:
            fresh: the grid's freshness.
            speed: of a device, for the hours; none without.
            devices: how many work at a time.

        Raises:
            ConfigError: there is no data set of the speed's name.
        """
        self.fresh, self.studies, self.devices = fresh, fresh.grid.studies, devices
        self.rates: Measured | Named | None = speed.of(self.studies) if isinstance(speed, Speed) else speed
        self.unknown: set[str] = set()
        self.unmeasured: set[tuple[str, str]] = set()
        self.uncounted: set[str] = set()
        self._networks: dict[tuple[str, str], costs.Cost] = {}

    def plan(self, names: Sequence[str]) -> Plan:
        """What these targets need, with everything they are made from.

        Raises:
            UserError: a target is unknown (see `selection.select`).
        """
        chosen = selection.cells_of(selection.select(self.fresh.grid, names))
        cells = {cell.directory: cell for cell in self.fresh.grid.needed(*chosen)}
        each = {name: self._cost(cell) for name, cell in cells.items()}
        verbs = {verb: Cost() for verb in (*STAGES, IMPORT.verb)}
        for name, cell in cells.items():
            verbs[cell.stage.verb] += each[name]
        needs = {name: self._makers(cell, cells) for name, cell in cells.items()}
        times = [{name: getattr(cost, of) for name, cost in each.items()} for of in ("least", "seconds", "most")]
        chain = waiting.longest_chain(times[1], needs)
        least, likely, most = (waiting.wall_clock(time, needs, self.devices) for time in times)
        return Plan(
            rates=self.rates,
            verbs={verb: cost for verb, cost in verbs.items() if cost.cells},
            states=self._states(cells.values()),
            memory=memory.of_runs(memory.trained(self.studies, cells.values())),
            chain=chain,
            chain_seconds=sum(times[1][name] for name in chain),
            wall_clock=(least, likely, most),
            devices=self.devices,
            unknown=sorted(self.unknown),
            unmeasured={
                verb: sorted(name for of, name in self.unmeasured if of == verb)
                for verb in STAGES
                if any(of == verb for of, _ in self.unmeasured)
            },
            uncounted=sorted(self.uncounted),
            missing=imports.missing(self.fresh.grid, cells.values()),
        )

    def _makers(self, cell: Cell, among: dict[str, Cell]) -> list[str]:
        makers = {maker.directory for path in cell.inputs if (maker := self.fresh.grid.maker(path))}
        return sorted(makers & among.keys())

    def _cost(self, cell: Cell) -> Cost:
        missing = self.fresh.state(cell) is not State.HOLDS
        count = getattr(self, f"_{cell.stage.verb}", None)
        cost: Cost = count(cell) if count else Cost()
        return replace(cost if missing else Cost(bytes=cost.bytes), cells=1, missing=int(missing))

    def _prepare(self, cell: Cell) -> Cost:
        name = cell.bindings["dataset"]
        return Cost(images=self._count(name), bytes=self._count(name) * self._pixels(name))

    def _reference(self, cell: Cell) -> Cost:
        return self._features(cell, self._real(cell))

    def _neighbours(self, cell: Cell) -> Cost:
        images = self._real(cell)
        size = images * (self._width(self._dataset(cell)) + NEAREST) * FLOAT32
        return self._features(cell, images) + self._pairs(cell, images**2) + Cost(bytes=size)

    def _real(self, cell: Cell) -> int:
        """Images of the reference set."""
        return self._dataset(cell).reference.images or self._count(cell.bindings["dataset"])

    def _halves(self, cell: Cell) -> Cost:
        return self._features(cell, 2 * min(int(cell.bindings["samples"]), self._real(cell) // 2))

    def _pairs(self, cell: Cell, pairs: int) -> Cost:
        """Products of so many pairs of pooled features."""
        flops = 2 * self._width(self._dataset(cell)) * pairs
        return Cost(flops=flops) + self._time(cell, "sample", flops, flops, _single(self._dataset(cell)))

    def _width(self, dataset: Dataset) -> int:
        width = FEATURES[dataset.features].width
        return width if isinstance(width, int) else getattr(dataset.feature_settings, width)

    def _train(self, cell: Cell) -> Cost:
        spec, names, network = self._spec(cell), cell.bindings, self._network(cell)
        images = (int(names["step"]) - int(names.get("previous", 0))) * spec.training.batch_size
        evaluations = images * costs.passes(spec)
        flops = evaluations * network.flops
        time = self._time(cell, "train", flops, network.flops, spec.compute)
        return time + Cost(images=images, evaluations=evaluations, flops=flops, bytes=network.weight_bytes)

    def _import(self, cell: Cell) -> Cost:
        return Cost(bytes=self._network(cell).weight_bytes)

    def _resume(self, cell: Cell) -> Cost:
        return Cost(bytes=self._network(cell).weight_bytes * costs.STATE_COPIES)

    def _sample(self, cell: Cell) -> Cost:
        sampler, images = _sampler(cell), self._drawn(cell)
        compute = self._dataset(cell).sampled_on(sampler)
        cost = self._evaluated(cell, images, nfe(sampler, self._spec(cell).diffusion), compute)
        return cost + Cost(bytes=images * self._pixels(cell.bindings["dataset"]))

    def _evaluate(self, cell: Cell) -> Cost:
        dataset, drawn = self._dataset(cell), self._drawn(cell)
        cost = self._features(cell, drawn)
        if dataset.reference.neighbours:
            real = self._real(cell)
            cost += self._pairs(cell, drawn * (drawn + real))
            if {"density", "coverage"} & set(dataset.metrics):
                cost += self._pairs(cell, drawn * real)
            if {"kid", "kid_se"} & set(dataset.metrics):
                size = dataset.kid.subset_size
                subsets = 1 if max(drawn, real) <= size else dataset.kid.subsets
                a, b = min(size, drawn), min(size, real)
                cost += self._pairs(cell, subsets * (a * a + b * b + a * b))
        return cost

    def _drawn(self, cell: Cell) -> int:
        return self._dataset(cell).sampling.count(_sampler(cell))

    def _analyse(self, cell: Cell) -> Cost:
        settings = self._dataset(cell).analysis
        return self._analysed(cell, settings.timesteps if settings else 0)

    def _drift(self, cell: Cell) -> Cost:
        steps = nfe(_sampler(cell), self._spec(cell).diffusion)
        return self._analysed(cell, 3 * steps)  # the chain's own call, and one each at its x_t and at a diffused image

    def _analysed(self, cell: Cell, calls: int) -> Cost:
        """Of so many network calls for each image that is analysed."""
        settings = self._dataset(cell).analysis
        return self._evaluated(cell, settings.images if settings else 0, calls, self._spec(cell).compute)

    def _evaluated(self, cell: Cell, images: int, calls: int, compute: Compute) -> Cost:
        """Of so many network calls for each image, without a gradient."""
        network = self._network(cell).flops
        evaluations = images * calls
        time = self._time(cell, "sample", evaluations * network, network, compute)
        return time + Cost(images=images, evaluations=evaluations, flops=evaluations * network)

    def _features(self, cell: Cell, images: int) -> Cost:
        dataset = self._dataset(cell)
        kind = FEATURES[dataset.features]
        if kind.file == "named":
            self.uncounted.add(cell.bindings["dataset"])
        flops = images * kind.flops
        return Cost(images=images, flops=flops) + self._time(cell, "sample", flops, kind.flops, _single(dataset))

    def _time(self, cell: Cell, kind: Kind, flops: float, one: float, compute: Compute) -> Cost:
        """Of so much arithmetic, of which one evaluation has `one`."""
        if self.rates is None or not flops:
            return Cost()
        if (rate := self.rates.rate(kind, one, compute)) is None:
            self.unmeasured.add((cell.stage.verb, cell.bindings["dataset"]))
            return Cost()
        slow, likely, fast = rate
        return Cost(seconds=flops / likely, least=flops / fast, most=flops / slow)

    def _states(self, cells: Iterable[Cell]) -> int:
        """Bytes of the train states in work/ once every run is trained."""
        runs = {cell.directory.rpartition("/")[0]: cell for cell in cells if cell.stage.verb == "train"}
        return sum(
            self._network(cell).weight_bytes * costs.STATE_COPIES * self.fresh.grid.of(cell).work.states_kept
            for cell in runs.values()
        )

    def _dataset(self, cell: Cell) -> Dataset:
        return self.studies.dataset(cell.bindings["dataset"])

    def _spec(self, cell: Cell) -> RunSpec:
        names = cell.bindings
        return self.studies.of(names).run_spec(names["dataset"], names["model"], 0)

    def _network(self, cell: Cell) -> costs.Cost:
        key = cell.bindings["dataset"], cell.bindings["model"]
        if key not in self._networks:
            self._networks[key] = costs.of(self._spec(cell))
        return self._networks[key]

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


def _single(dataset: Dataset) -> Compute:
    """What features and their distances are computed on."""
    return replace(dataset.compute, precision="float32")


def _sampler(cell: Cell) -> Sampler:
    return Sampler.parse(cell.bindings["sampler"])


def run(names: Sequence[str], speed: Speed | Named | None = None, devices: int = 1) -> Plan:
    """The plan of these targets in the project of this directory; see `Planner`.

    Raises:
        UserError: a target is nothing, or cannot be made.
    """
    fresh = Freshness(grid.load())
    return Planner(fresh, speed, devices).plan(checks.targets(fresh.grid, names))
