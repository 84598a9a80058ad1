"""params.yaml, typed: read, refuse what is wrong in one line that names the key, and look values up."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from ipdiff.errors import ConfigError
from ipdiff.schedule import respace
from ipdiff.spec import FORBID, ADMFamily, Dataset, DDPMFamily, Figure, Model, Point, Sampler, Study, Table, Work

PARAMS = Path("params.yaml")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
"""Names become parts of paths, of dotted keys and of DVC's addresses."""

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
        raise ConfigError(f"{kind} '{name}' is not in {PARAMS}{suggest(name, known)}")
    return known[name]


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, and all of them."""
    names = list(known)
    return (nearest(name, names) or ";") + (f" known: {', '.join(names)}" if names else " there are none here")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean '...'?`, or nothing if no known name is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def load(path: Path = PARAMS) -> Params:
    """Read and check params.yaml.

    Raises:
        ConfigError: one line with the key's path: unknown key (and the nearest valid one), wrong type or
            value, or a name that does not exist.
    """
    return _load(path, _read(path))[0]


def load_raw(path: Path = PARAMS) -> dict[str, Any]:
    """params.yaml as plain data, after the checks of `load`: the values that DVC records."""
    return _load(path, _read(path))[1]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; run ipdiff in the project's root") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}") from None


@lru_cache(maxsize=4)
def _load(path: Path, text: str) -> tuple[Params, dict[str, Any]]:
    try:
        raw = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: {' '.join((error.problem or 'not YAML').split())}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: {_quoted(raw)}; expected a mapping with datasets, models and studies")
    try:
        params = TypeAdapter(Params).validate_python(raw)
    except ValidationError as error:
        raise ConfigError(_explain(path, raw, error)) from None
    _check(params)
    return params, raw


class _Loader(yaml.SafeLoader):
    """The safe loader, with a repeated key an error instead of silently the last one, and 1e-4 a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key '{key.value}' stands twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(  # YAML 1.1 wants a dot before the exponent and reads 1e-4 as text; DVC does not
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)


_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
}
"""What to write, by the name of pydantic's complaint."""

_UNION_TAG = re.compile(r"float|list\[float\]|literal\[.*\]")


def _explain(path: Path, raw: dict[str, Any], error: ValidationError) -> str:
    """One line for one of the errors: where, what was found, what to write instead."""
    errors = error.errors(include_url=False)
    unknown = [e for e in errors if e["type"] in ("unexpected_keyword_argument", "extra_forbidden")]
    first = (unknown or errors)[0]  # a misspelt key is the reason why another is missing
    location = [str(part) for part in first["loc"]]
    where = f"{path} {'.'.join(location)}"
    if unknown:
        fields = _fields_at(Params, location[:-1])
        return f"{where}: unknown key{suggest(location[-1], fields)}"
    if location[-1:] == ["[key]"]:
        return f"{path} {'.'.join(location[:-1])}: a name must be text; write it in quotes"
    if first["type"] in ("missing", "missing_argument"):
        return f"{where}: missing key"
    tag = next((n for n, part in enumerate(location) if _UNION_TAG.fullmatch(part)), None)
    if tag is not None:
        choices = dict.fromkeys(str(e["loc"][tag]) for e in errors if e["loc"][:tag] == first["loc"][:tag])
        value: Any = raw
        for part in first["loc"][:tag]:
            value = value[part]
        return f"{path} {'.'.join(location[:tag])}: {_quoted(value)}; expected {_either(choices)}"
    if first["type"] == "value_error":
        return f"{where}: {first['msg'].removeprefix('Value error, ')}"
    found = first["input"]
    if first["type"] == "literal_error":
        choices = re.findall("'([^']*)'", first["msg"])
        return f"{where}: {_quoted(found)}; expected {' or '.join(choices)}{nearest(str(found), choices)}"
    return f"{where}: {_quoted(found)}; expected {_EXPECTED.get(first['type'], first['msg'])}"


def _either(tags: Iterable[str]) -> str:
    """The alternatives of a union, in words."""
    words = {"float": "a number", "list[float]": "a list of numbers"}
    return " or ".join(words.get(tag) or f"the word {tag.removeprefix('literal[').removesuffix(']')}" for tag in tags)


def _quoted(value: Any) -> str:
    """A value as a message shows it."""
    if value is None:
        return "found nothing"
    if isinstance(value, dict | list):
        return "found a mapping" if isinstance(value, dict) else f"found the list {value!r}"
    return f"found {value!r}"


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
    """What types cannot say: names are well formed and exist, every T' fits, a data set belongs to one study."""
    for kind, names in (("datasets", params.datasets), ("models", params.models), ("studies", params.studies)):
        _well_formed(kind, names)
    for name, dataset in params.datasets.items():
        for model in set(dataset.final_step) - {"default"}:
            _known(f"datasets.{name}.final_step", model, params.models)
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
        for model, seeds in study.seeds.items():
            if model != "default":
                _known(f"studies.{name}.seeds", model, params.models)
            if not seeds or min(seeds) < 0 or max(seeds) >= 2**64 or len(set(seeds)) < len(seeds):
                raise ConfigError(
                    f"{PARAMS} studies.{name}.seeds.{model}: found {seeds}; expected one seed or more, 0..2**64-1, "
                    "without repeats"
                )
        for kind, views in (("tables", study.tables), ("figures", study.figures)):
            _well_formed(f"studies.{name}.{kind}", views)
            for view_name, view in views.items():
                _check_view(params, study, f"studies.{name}.{kind}.{view_name}", view)


def _well_formed(where: str, names: Iterable[str]) -> None:
    for name in names:
        if not NAME.fullmatch(name):
            raise ConfigError(f"{PARAMS} {where}: '{name}' cannot be part of a path; use letters, digits, '_' and '-'")


def _known(where: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise ConfigError(f"{PARAMS} {where}: unknown name '{name}'{suggest(name, known)}")


def _check_view(params: Params, study: Study, where: str, view: Table | Figure) -> None:
    if isinstance(view, Table):
        axes = [*view.rows, *view.columns]
        if len(set(axes)) != len(axes):
            raise ConfigError(f"{PARAMS} {where}: an axis stands twice in rows {view.rows} and columns {view.columns}")
        if not view.metrics:
            raise ConfigError(f"{PARAMS} {where}.metrics: found nothing; expected one metric or more")
    asked = view.points if isinstance(view, Table) else []
    for dataset in [*view.datasets, *(point.dataset for point in asked)]:
        _known(f"{where}.datasets", dataset, study.datasets)
    for model in [*view.models, *(point.model for point in asked)]:
        _known(f"{where}.models", model, params.models)
    found = points(params, view)
    if not found:
        raise ConfigError(f"{PARAMS} {where}: no cell; name datasets, models and samplers, or points")
    if isinstance(view, Table):
        for pair in view.compare.items():
            for model in pair:
                _known(f"{where}.compare", model, dict.fromkeys(point.model for point in found))
    for point in found:
        _check_point(params, where, point)


def _check_point(params: Params, where: str, point: Point) -> None:
    try:
        sampler_of(params, point.dataset, point.model, point.sampler)
    except ValueError as error:
        raise ConfigError(f"{PARAMS} {where}.samplers: {error}") from None
    steps = params.dataset(point.dataset).checkpoints
    if point.step not in steps:
        raise ConfigError(
            f"{PARAMS} {where}.steps: {point.step} is not one of datasets.{point.dataset}.checkpoints {steps}"
        )


def sampler_of(params: Params, dataset: str, model: str, name: str) -> Sampler:
    """The sampler of this name, held against the chain that the model was trained on.

    Raises:
        ConfigError: the data set or model is unknown, or the one does not train the other.
        ValueError: no such sampler, or one with a grid that the chain does not have.
    """
    T = params.family(dataset, model).diffusion.T
    sampler = Sampler.parse(name)
    if (canonical := _canonical(name, sampler)) != name:
        raise ValueError(f"sampler '{name}': write it as '{canonical}' (one name, one artifact)")
    if not 1 <= sampler.steps <= T:
        more = "less than 1" if sampler.steps < 1 else f"more than T = {T} of {dataset}/{model}"
        raise ValueError(f"sampler {name} asks for T' = {sampler.steps}, {more}; use 1..{T}")
    if sampler.kind != "exposure":
        respace(T, sampler.spacing)
    return sampler


def _canonical(name: str, sampler: Sampler) -> str:
    """A sampler's name without superfluous zeros: they would be second names of the same artifact."""
    if sampler.kind != "ddim":
        return f"{sampler.kind}-{sampler.steps}"
    eta = format(Decimal(name.removeprefix("ddim").partition("-")[0]).normalize(), "f")
    return f"ddim{eta}-{sampler.spacing.rstrip('0123456789')}{sampler.steps}"


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
