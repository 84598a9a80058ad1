"""What types cannot say of a params.yaml: names exist and fit into paths, networks fit, every T' and step is there."""

from __future__ import annotations

from collections.abc import Iterable

from ipdiff.errors import ConfigError
from ipdiff.metrics.spec import FEATURES, METRICS, with_logits
from ipdiff.pipeline.config.naming import misnamed, nearest, project_path, suggest
from ipdiff.pipeline.config.params import Params, points, runs, sampler_of, start_of, step_problem
from ipdiff.pipeline.config.spec import Dataset, FamilySettings
from ipdiff.report.spec import Figure, Point, Table
from ipdiff.sample_sets.spec import Sampler
from ipdiff.schedule import make_betas
from ipdiff.spec import FAMILIES


class _Wrong(Exception):
    """What is wrong with a key, without the file's path."""


def check(params: Params) -> None:
    """Raise ConfigError, with one line, for the first thing that is wrong."""
    try:
        _check(params)
    except _Wrong as error:
        raise ConfigError(f"{params.path} {error}") from None


def _check(params: Params) -> None:
    for kind in ("datasets", "models", "tables", "figures"):
        _well_formed(kind, getattr(params, kind))
    for name, dataset in params.datasets.items():
        _check_dataset(params, name, dataset)
    for name, model in params.models.items():
        if (start := model.start) is not None:
            _known(f"models.{name}.start.model", start.model, params.models)
            _known(f"models.{name}.start.dataset", start.dataset or next(iter(params.datasets)), params.datasets)
    for model, seeds in params.seeds.items():
        if model != "default":
            _known("seeds", model, params.models)
        if not seeds or len(set(seeds)) < len(seeds):
            raise _Wrong(f"seeds.{model}: found {seeds}; expected one seed or more, without repeats")
    for kind, views in (("tables", params.tables), ("figures", params.figures)):
        for name, view in views.items():
            _check_view(params, f"{kind}.{name}", view)


def _check_dataset(params: Params, name: str, dataset: Dataset) -> None:
    for model in sorted(set(dataset.final_step) - {"default"}):
        _known(f"datasets.{name}.final_step", model, params.models)
        if wrong := step_problem(params, name, model, dataset.final_step[model]):
            raise _Wrong(f"datasets.{name}.final_step.{model}: {wrong}")
    for model in dataset.imports:
        _known(f"datasets.{name}.imports", model, [key for key, known in params.models.items() if known.imported])
    for file in dataset.source.archives:
        said = params.downloads.get(file)
        if said is None or not (said.url or said.how):
            raise _Wrong(
                f"datasets.{name}.source.archives: how is {file} got? Give downloads a key '{file}' with "
                f"url or how{nearest(file, params.downloads)}"
            )
    _check_families(name, dataset)
    for metric in dataset.metrics:
        if wrong := _not_measured(dataset, name, metric):
            raise _Wrong(f"datasets.{name}.metrics: {wrong}")
    for key, path in (("source.raw", dataset.source.raw), ("inception.raw", dataset.inception.raw)):
        if path is not None and (not path or set(project_path(path)) <= {".", "/"}):
            raise _Wrong(
                f"datasets.{name}.{key}: '{path}' holds the project itself; name a file or a directory of its own"
            )
        if path is not None and {"{", "}"} & set(path):
            raise _Wrong(f"datasets.{name}.{key}: '{path}' has braces, which neither engine reads in a path; rename it")


def _check_families(name: str, dataset: Dataset) -> None:
    """Networks that no image of this size fits, and schedules that leave no signal, before anything is trained."""
    for kind in FAMILIES:
        family: FamilySettings | None = getattr(dataset.families, kind)
        if family is None:
            continue
        where = f"datasets.{name}.families.{kind}"
        try:
            family.network.check(dataset.source.image_size)
        except ValueError as error:
            raise _Wrong(f"{where}.network: {error}") from None
        try:
            make_betas(family.diffusion.schedule, family.diffusion.T)
        except ValueError as error:
            raise _Wrong(f"{where}.diffusion: {error}") from None


def _well_formed(where: str, names: Iterable[str]) -> None:
    for name in names:
        if why := misnamed(name):
            raise _Wrong(f"{where}: '{name}' {why}")


def _known(where: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise _Wrong(f"{where}: unknown name '{name}'{suggest(name, known)}")


def _check_view(params: Params, where: str, view: Table | Figure) -> None:
    asked = view.points if isinstance(view, Table) else []
    for dataset in [*view.datasets, *(point.dataset for point in asked)]:
        _known(f"{where}.datasets", dataset, params.datasets)
    for model in [*view.models, *(point.model for point in asked)]:
        _known(f"{where}.models", model, params.models)
    for model, last in view.until.items():
        _known(f"{where}.until", model, view.models)
        if view.steps and last < min(view.steps):
            raise _Wrong(f"{where}.until.{model}: {last} is before the first of steps {view.steps}")
    if isinstance(view, Figure) and view.of_runs:
        _check_runs(params, where, view)
        return
    found = points(params, view)
    if isinstance(view, Table):
        for pair in view.compare.items():
            for model in pair:
                _known(f"{where}.compare", model, dict.fromkeys(point.model for point in found))
    for point in found:
        _check_point(params, where, point)
        if isinstance(view, Figure) and view.kind == "drift":
            _check_analysis(params, where, point.dataset)
        if isinstance(view, Figure) and view.kind == "samples":
            count = params.dataset(point.dataset).sampling.count(Sampler.parse(point.sampler))
            if view.images > count:
                raise _Wrong(f"{where}.images: {view.images} of the {count} that {point.dataset} draws")
    metrics = view.metrics if isinstance(view, Table) else [view.metric] if view.is_curve else []
    for dataset in dict.fromkeys(point.dataset for point in found):
        _check_metrics(params.dataset(dataset), dataset, where, metrics)
    if "kid_se" in metrics:
        for point in found:
            _check_subsets(params.dataset(point.dataset), where, point)


def _check_metrics(dataset: Dataset, name: str, where: str, metrics: Iterable[str]) -> None:
    for metric in metrics:
        if wrong := _not_measured(dataset, name, metric):
            raise _Wrong(f"{where}: {wrong}")
        if not METRICS[metric].always and metric not in dataset.metrics:
            raise _Wrong(f"{where}: {metric} is measured where datasets.{name}.metrics names it")


def _check_subsets(dataset: Dataset, where: str, point: Point) -> None:
    """Sets that KID's subsets take whole are compared once, and there is no standard error."""
    count, size = dataset.sampling.count(Sampler.parse(point.sampler)), dataset.kid.subset_size
    known = [n for n in (dataset.reference.images, dataset.source.expected_images) if n is not None]
    if known and max(count, min(known)) <= size:
        raise _Wrong(
            f"{where}: kid_se needs more images than datasets.{point.dataset}.kid.subset_size, {size}; "
            f"{count} are drawn and {min(known)} are real"
        )


def _not_measured(dataset: Dataset, name: str, metric: str) -> str | None:
    """What a metric needs that a data set does not have."""
    kind, features = METRICS[metric], FEATURES[dataset.features]
    if kind.needs == "logits" and not features.logits:
        return f"{metric} needs datasets.{name}.features: {with_logits()}, found {dataset.features}"
    if kind.ending == "_s" and not features.spatial:
        return f"{metric} needs spatial features; datasets.{name}.features is {dataset.features}, which has none"
    if kind.needs == "features" and not dataset.reference.neighbours:
        return f"{metric} needs datasets.{name}.reference.neighbours: true"
    return None


def _check_runs(params: Params, where: str, figure: Figure) -> None:
    for dataset, model, step in runs(params, figure):
        params.family(dataset, model)
        if figure.kind == "errors":
            _check_analysis(params, where, dataset)
        elif params.model(model).imported:
            raise _Wrong(f"{where}.models: {model} is imported, so its training loss is not known; leave it out")
        _check_step(params, where, dataset, model, step)


def _check_analysis(params: Params, where: str, dataset: str) -> None:
    if params.dataset(dataset).analysis is None:
        raise _Wrong(f"datasets.{dataset}.analysis: missing key; {where} needs it")


def _check_point(params: Params, where: str, point: Point) -> None:
    try:
        sampler_of(params, point.dataset, point.model, point.sampler)
    except ValueError as error:
        raise _Wrong(f"{where}.samplers: {error}") from None
    _check_step(params, where, point.dataset, point.model, point.step)


def _check_step(params: Params, where: str, dataset: str, model: str, step: int | None) -> None:
    start_of(params, dataset, model)
    if step is not None and (wrong := step_problem(params, dataset, model, step)):
        raise _Wrong(f"{where}.steps: {wrong}")
