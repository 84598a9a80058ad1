"""params.yaml, typed: read, refuse what is wrong in one line that names the key, and look values up."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from ipdiff.errors import ConfigError
from ipdiff.schedule import respace
from ipdiff.spec import FORBID, ADMFamily, Dataset, DDPMFamily, Figure, Model, Point, Sampler, Study, Table, Work

PARAMS = Path("params.yaml")
_V = TypeVar("_V")


@dataclass(frozen=True)
class Params:
    """The whole of params.yaml."""

    __pydantic_config__: ClassVar = FORBID
    datasets: Annotated[dict[str, Dataset], "data sets by name"]
    models: Annotated[dict[str, Model], "training objectives by name"]
    studies: Annotated[dict[str, Study], "named sets of tables and figures"]
    work: Annotated[Work, "how work in progress is saved"] = dataclasses.field(default_factory=Work)

    def dataset(self, name: str) -> Dataset:
        """A data set; ConfigError with the nearest names if there is none."""
        return _lookup(self.datasets, "dataset", name)

    def model(self, name: str) -> Model:
        """A model; ConfigError with the nearest names if there is none."""
        return _lookup(self.models, "model", name)

    def study(self, name: str) -> Study:
        """A study; ConfigError with the nearest names if there is none."""
        return _lookup(self.studies, "study", name)

    def family(self, dataset: str, model: str) -> ADMFamily | DDPMFamily:
        """How `model` is built and trained on `dataset`."""
        name = self.model(model).family
        found = getattr(self.dataset(dataset).families, name)
        if found is None:
            raise ConfigError(f"{PARAMS} datasets.{dataset}.families.{name}: missing; model {model} needs it")
        return found


def _lookup(known: Mapping[str, _V], kind: str, name: str) -> _V:
    if name not in known:
        raise ConfigError(f"{kind} '{name}' is not in {PARAMS}{_nearest(name, known)}; known: {', '.join(known)}")
    return known[name]


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def load(path: Path = PARAMS) -> Params:
    """Read and check params.yaml.

    Raises:
        ConfigError: one line with the key's path: unknown key (and the nearest valid one), wrong type or
            value, or a name that does not exist.
    """
    return _load(path, path.stat().st_mtime_ns if path.exists() else 0)[0]


def load_raw(path: Path = PARAMS) -> dict[str, Any]:
    """params.yaml as plain data, after the checks of `load`: the values that DVC records."""
    return _load(path, path.stat().st_mtime_ns if path.exists() else 0)[1]


@lru_cache(maxsize=4)
def _load(path: Path, _mtime: int) -> tuple[Params, dict[str, Any]]:
    try:
        raw = yaml.load(path.read_text(), Loader=_Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; run ipdiff in the project's root") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: found {type(raw).__name__}, expected a mapping with datasets, models and studies")
    try:
        params = TypeAdapter(Params).validate_python(raw)
    except ValidationError as error:
        raise ConfigError(_explain(path, error)) from None
    _check(params)
    return params, raw


class _Loader(yaml.SafeLoader):
    """The safe loader, with a repeated key an error instead of silently the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = {key for key in keys if keys.count(key) > 1}
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {sorted(repeated)[0]} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _explain(path: Path, error: ValidationError) -> str:
    """One line for the first error: where, what was found, what to write instead."""
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        fields = _fields_at(Params, location[:-1])
        return (
            f"{path} {'.'.join(location)}: unknown key{_nearest(location[-1], fields)}; valid keys: {', '.join(fields)}"
        )
    where = ".".join(part for part in location if "[" not in part and part not in ("float", "int"))
    if first["type"] in ("missing", "missing_argument"):
        return f"{path} {where}: missing key"
    message = first["msg"].removeprefix("Value error, ")
    found = "" if first["type"] == "value_error" else f"{first['input']!r}: "
    return f"{path} {where}: {found}{message[0].lower()}{message[1:]}"


def _fields_at(kind: Any, location: list[str]) -> list[str]:
    """Names that may stand at a place of the configuration, found by walking the type hints."""
    for part in location:
        if dataclasses.is_dataclass(kind):
            kind = _plain(typing.get_type_hints(kind, include_extras=False)[part])
        else:
            kind = _plain(typing.get_args(kind)[-1])
    return [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _plain(hint: Any) -> Any:
    """Strip `| None`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


def value_at(raw: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key of params.yaml, as DVC looks it up."""
    value: Any = raw
    for part in key.split("."):
        value = value[part]
    return value


def _check(params: Params) -> None:
    """What types cannot say: every name exists, every T' fits, a data set belongs to one study."""
    owner: dict[str, str] = {}
    for name, study in params.studies.items():
        for dataset in study.datasets:
            _known(f"studies.{name}.datasets", dataset, params.datasets)
            if dataset in owner:
                raise ConfigError(
                    f"{PARAMS} studies.{name}.datasets: {dataset} belongs to study {owner[dataset]} "
                    "already; a data set belongs to one study"
                )
            owner[dataset] = name
        for model in set(study.seeds) - {"default"}:
            _known(f"studies.{name}.seeds", model, params.models)
        for kind, views in (("tables", study.tables), ("figures", study.figures)):
            for view_name, view in views.items():
                _check_view(params, study, f"studies.{name}.{kind}.{view_name}", view)


def _known(where: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise ConfigError(f"{PARAMS} {where}: unknown name '{name}'{_nearest(name, known)}")


def _check_view(params: Params, study: Study, where: str, view: Table | Figure) -> None:
    if isinstance(view, Table):
        axes = [*view.rows, *view.columns]
        if len(set(axes)) != len(axes):
            raise ConfigError(f"{PARAMS} {where}: an axis stands twice in rows {view.rows} and columns {view.columns}")
        for pair in view.compare.items():
            for model in pair:
                _known(f"{where}.compare", model, view.models or {p.model for p in view.points})
    found = points(params, view)
    if not found:
        raise ConfigError(f"{PARAMS} {where}: no cell; name datasets, models and samplers, or points")
    for point in found:
        _known(f"{where}.datasets", point.dataset, study.datasets)
        _check_point(params, where, point)


def _check_point(params: Params, where: str, point: Point) -> None:
    _known(f"{where}.models", point.model, params.models)
    T = params.family(point.dataset, point.model).diffusion.T
    try:
        sampler = Sampler.parse(point.sampler)
        if sampler.steps > T:
            raise ValueError(
                f"{point.sampler} asks for T' = {sampler.steps}, more than T = {T} of "
                f"{point.dataset}/{point.model}; use 1..{T}"
            )
        if sampler.kind != "exposure":
            respace(T, sampler.spacing)
    except ValueError as error:
        raise ConfigError(f"{PARAMS} {where}.samplers: {error}") from None
    steps = params.dataset(point.dataset).checkpoints
    if point.step not in steps:
        raise ConfigError(
            f"{PARAMS} {where}.steps: {point.step} is not one of datasets.{point.dataset}.checkpoints {steps}"
        )


def points(params: Params, view: Table | Figure) -> list[Point]:
    """The points a table or figure asks for, in its order, each with its training step."""
    if isinstance(view, Table) and view.points:
        asked = view.points
    else:
        asked = [
            Point(dataset, model, sampler, step)
            for dataset in view.datasets
            for model in view.models
            for step in (view.steps or [None])
            for sampler in view.samplers
        ]
    return [
        p if p.step is not None else dataclasses.replace(p, step=params.dataset(p.dataset).last_step(p.model))
        for p in asked
    ]
