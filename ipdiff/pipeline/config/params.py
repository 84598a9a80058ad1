"""A study's parameters: what its params.yaml says, looked up."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ipdiff.data.spec import Archive, Download, Source
from ipdiff.errors import ConfigError, UserError
from ipdiff.pipeline.config.naming import suggest
from ipdiff.pipeline.config.spec import Dataset, FamilySettings, Model, StudyParams
from ipdiff.report.spec import Figure, Gamma, Point, Table, product, wanted
from ipdiff.sample_sets.spec import Sampler, kept
from ipdiff.spec import Diffusion, Ramp, RunSpec

_V = TypeVar("_V")
UNWRITTEN = object()
"""Stands for the value of a key that a file does not write out: None is a value."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Params(StudyParams):
    """One study's parameters.

    Attributes:
        study: the study's name.
        path: the params.yaml that was read.
        raw: the same as plain data, as it is written: the values that both engines compare.
    """

    study: str
    path: Path
    raw: dict[str, Any]

    def dataset(self, name: str) -> Dataset:
        """A data set; ConfigError with the nearest names if there is none."""
        return self._look_up(self.datasets, "dataset", name)

    def model(self, name: str) -> Model:
        """A model; ConfigError with the nearest names if there is none."""
        return self._look_up(self.models, "model", name)

    def table(self, name: str) -> Table:
        """A table; ConfigError with the nearest names if there is none."""
        return self._look_up(self.tables, "table", name)

    def figure(self, name: str) -> Figure:
        """A figure; ConfigError with the nearest names if there is none."""
        return self._look_up(self.figures, "figure", name)

    def _look_up(self, known: Mapping[str, _V], kind: str, name: str) -> _V:
        if name not in known:
            raise ConfigError(f"{kind} '{name}' is not in {self.path}{suggest(name, known)}")
        return known[name]

    def values(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of dotted keys, as they are written, as far as they decide bytes.

        Raises:
            UserError: the file does not write out some of them; all are named.
        """
        keys = list(keys)
        if missing := self.unwritten(keys):
            these, them = ("this key", "it") if len(missing) == 1 else ("these keys", "them")
            raise UserError(
                f"{self.path} {', '.join(missing)}: write {these} out, even where the default is wanted; both engines "
                f"compare {them} (`ipdiff grid --fill --study {self.study}` writes the defaults)"
            )
        return {key: _deciding(value_at(self.raw, key)) for key in keys}

    def unwritten(self, keys: Iterable[str]) -> list[str]:
        """Those of these dotted keys that the file does not write out; none that lies within another of them."""
        missing = [key for key in dict.fromkeys(keys) if value_at(self.raw, key) is UNWRITTEN]
        return [key for key in missing if not any(key.startswith(f"{other}.") for other in missing)]

    def archives(self, source: Source) -> list[Archive]:
        """The published files a data set is read from; none if it has `raw` or is embedded."""
        return [self.archive(file, digest) for file, digest in source.archives.items()]

    def archive(self, file: str, sha256: str | None) -> Archive:
        """A published file, with what `downloads` says of it."""
        return Archive(file=file, sha256=sha256, **dataclasses.asdict(self.downloads.get(file, Download())))

    def family(self, dataset: str, model: str) -> FamilySettings:
        """How `model` is built and trained on `dataset`."""
        name = self.model(model).family
        found = getattr(self.dataset(dataset).families, name)
        if found is None:
            raise ConfigError(f"{self.path} datasets.{dataset}.families.{name}: missing; model {model} needs it")
        return found

    def run_spec(self, dataset: str, model: str, seed: int) -> RunSpec:
        """Everything that decides the bytes of a training run."""
        family, source = self.family(dataset, model), self.dataset(dataset).source
        return RunSpec(
            family=self.model(model).family,
            network=family.network,
            diffusion=family.diffusion,
            training=family.training.deciding,
            objective=self.model(model).objective(self.dataset(dataset).strengths),
            compute=self.dataset(dataset).compute,
            image_size=source.image_size,
            channels=source.channels,
            seed=seed,
        )


def value_at(raw: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key of a params.yaml, as DVC looks it up; `UNWRITTEN` where the file does not have it."""
    value: Any = raw
    for part in key.split("."):
        try:
            value = value[part]
        except (KeyError, TypeError):
            return UNWRITTEN
    return value


def _deciding(value: Any) -> Any:
    """A value without a micro-batch that decides nothing; see `Training.deciding`."""
    if isinstance(value, dict) and value.get("reduction") == "fast":
        return {key: held for key, held in value.items() if key != "micro_batch"}
    return value


def step_problem(params: Params, dataset: str, model: str, step: int) -> str | None:
    """What is wrong with a checkpoint's step, or None. Imported checkpoints have the steps they came with."""
    if params.model(model).imported:
        return None if step >= 1 else f"{step} is no training step; use 1 or more"
    steps = params.dataset(dataset).checkpoints
    return None if step in steps else f"{step} is not one of datasets.{dataset}.checkpoints {steps}"


def start_of(params: Params, dataset: str, model: str) -> tuple[str, str, int] | None:
    """The checkpoint (data set, model, training step) that a model is trained on from, if it is.

    Raises:
        ConfigError: there is no such checkpoint, its network differs, or the starts go round in a circle.
    """
    if (found := _start(params, dataset, model)) is None:
        return None
    met, at = [(dataset, model)], found[:2]
    while at not in met:
        met.append(at)
        if (further := _start(params, *at)) is None:
            return found
        at = further[:2]
    round_trip = [*met[met.index(at) :], at]
    line = " <- ".join(map("/".join, round_trip[:3])) + (" <- ..." if len(round_trip) > 3 else "")
    raise ConfigError(f"{params.path} models.{at[1]}.start: it goes round in a circle, {line}")


def _start(params: Params, dataset: str, model: str) -> tuple[str, str, int] | None:
    start, where = params.model(model).start, f"{params.path} models.{model}.start"
    if start is None:
        return None
    source = start.dataset or dataset
    step = params.dataset(source).last_step(start.model) if start.step is None else start.step
    if wrong := params.run_spec(dataset, model, 0).unlike(params.run_spec(source, start.model, 0)):
        raise ConfigError(f"{where}: {source}/{start.model} has another network than {dataset}/{model}: {wrong}")
    if wrong := step_problem(params, source, start.model, step):
        raise ConfigError(f"{where}.step: {wrong}")
    return source, start.model, step


def sampler_of(params: Params, dataset: str, model: str, name: str) -> Sampler:
    """The sampler of this name, held against the chain that the model was trained on.

    Raises:
        ConfigError: the data set or model is unknown, or the one does not train the other.
        ValueError: no such sampler, one with a grid that the chain does not have, or one whose name says again what is
            the data set's anyway, or asks for a precision that its device does not have.
    """
    sampler = _sampler(name, params.family(dataset, model).diffusion, f" of {dataset}/{model}")
    settings = params.dataset(dataset)
    if sampler.precision == settings.sampling_compute.precision:
        raise ValueError(f"sampler {name!r}: {dataset} is sampled in {sampler.precision} anyway; leave it out")
    if sampler.precision == "float16" and settings.compute.device != "cuda":
        raise ValueError(f"sampler {name!r}: float16 needs cuda, and datasets.{dataset}.compute.device is cpu")
    if sampler.images and sampler.images == settings.sampling.count(dataclasses.replace(sampler, images=None)):
        raise ValueError(f"sampler {name!r}: {sampler.images} images are drawn of {dataset} anyway; leave -n out")
    return sampler


@cache
def _sampler(name: str, process: Diffusion, of: str) -> Sampler:
    """Each once: a chain is respaced to see that it can be."""
    sampler = Sampler.parse(name)
    if sampler.name != name:
        raise ValueError(f"sampler {name!r}: write it as '{sampler.name}' (one name, one artifact)")
    kept(sampler, process, of)
    return sampler


def shown(params: Params) -> list[str]:
    """Names of the data sets that a table or figure shows, in the order of the study."""
    views = (*params.tables.values(), *params.figures.values())
    named = {name for view in views for name in view.datasets}
    named |= {point.dataset for table in params.tables.values() for point in table.points}
    return [name for name in params.datasets if name in named]


def points(params: Params, view: Table | Figure) -> list[Point]:
    """The points a table or figure asks for, in its order, each with its training step."""
    asked = view.points if isinstance(view, Table) and view.points else product(view)
    every = isinstance(view, Figure) and view.kind == "monitor"
    return [
        dataclasses.replace(point, step=step)
        for point in asked
        for step in ([point.step] if point.step is not None else _steps(params, point.dataset, point.model, every))
    ]


def _steps(params: Params, dataset: str, model: str, every: bool) -> list[int]:
    """The last training step of a run, or every checkpoint until it."""
    of = params.dataset(dataset)
    last = of.last_step(model)
    trained = every and not params.model(model).imported
    return [step for step in of.checkpoints if step < last] * trained + [last]


def runs(params: Params, figure: Figure) -> list[tuple[str, str, int]]:
    """The checkpoints (data set, model, training step) that a figure without samplers asks for, in its order."""
    every = figure.kind == "training"
    return [
        (dataset, model, step)
        for dataset in figure.datasets
        for model in figure.models
        for step in (wanted(figure.steps, figure.until, model) or _steps(params, dataset, model, every))
    ]


def trained(view: Table | Figure) -> list[tuple[str, str]]:
    """The data sets and models that a table or figure shows."""
    if isinstance(view, Table) and view.points:
        return list(dict.fromkeys((point.dataset, point.model) for point in view.points))
    return [(dataset, model) for dataset in view.datasets for model in view.models]


def gammas(params: Params, view: Table | Figure) -> dict[tuple[str, str], Gamma]:
    """By data set and model, how strong the input perturbation is of what a table or figure shows."""
    found: dict[tuple[str, str], Gamma] = {}
    for dataset, model in trained(view):
        strength = params.model(model).objective(params.dataset(dataset).strengths).gamma
        if isinstance(strength, Ramp):
            strength = [strength.start, strength.end]
        found[dataset, model] = tuple(strength) if isinstance(strength, list) else (strength,)
    return found


def unperturbed(params: Params) -> dict[str, str]:
    """By model with input perturbation, the one without that shows what it is worth.

    That is the baseline of a table which compares the two, of the same family and target; or else the first model that
    is equal but for gamma.
    """
    plain = {name: model for name, model in params.models.items() if model.gamma == 0}
    compared = [pair for table in params.tables.values() for pair in table.compare.items()]
    found: dict[str, str] = {}
    for name, model in params.models.items():
        named = [other for perturbed, other in compared if perturbed == name and other in plain]
        named = [other for other in named if (plain[other].family, plain[other].target) == (model.family, model.target)]
        equal = [other for other, of in plain.items() if dataclasses.replace(model, gamma=0.0) == of]
        if name not in plain and (named or equal):
            found[name] = (named or equal)[0]
    return found
