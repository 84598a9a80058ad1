"""params.yaml, typed: read, refuse what is wrong in one line that names the key, and look values up."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from ipdiff.data.spec import Archive, Download, Source
from ipdiff.errors import ConfigError
from ipdiff.metrics.spec import METRICS
from ipdiff.parameters import FORBID
from ipdiff.pipeline.config.spec import ADMFamily, Dataset, DDPMFamily, Model
from ipdiff.report.spec import Figure, Point, Study, Table, wanted
from ipdiff.sample_sets.spec import Sampler, kept
from ipdiff.schedule import make_betas
from ipdiff.spec import FAMILIES, RunSpec
from ipdiff.work.spec import Work

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
    downloads: Annotated[
        dict[str, Download],
        "how published files are got, by file name; they lie in raw/ or the directory that IPDIFF_RAW names",
    ] = dataclasses.field(default_factory=dict)

    def dataset(self, name: str) -> Dataset:
        """A data set; ConfigError with the nearest names if there is none."""
        return _lookup(self.datasets, "dataset", name)

    def model(self, name: str) -> Model:
        """A model; ConfigError with the nearest names if there is none."""
        return _lookup(self.models, "model", name)

    def study(self, name: str) -> Study:
        """A study; ConfigError with the nearest names if there is none."""
        return _lookup(self.studies, "study", name)

    def archives(self, source: Source) -> list[Archive]:
        """The published files a data set is read from; none if it has `raw` or is embedded."""
        return [self.archive(file, digest) for file, digest in source.archives.items()]

    def archive(self, file: str, sha256: str | None) -> Archive:
        """A published file, with what `downloads` says of it."""
        return Archive(file=file, sha256=sha256, **dataclasses.asdict(self.downloads.get(file, Download())))

    def family(self, dataset: str, model: str) -> ADMFamily | DDPMFamily:
        """How `model` is built and trained on `dataset`."""
        name = self.model(model).family
        found = getattr(self.dataset(dataset).families, name)
        if found is None:
            raise ConfigError(f"{PARAMS} datasets.{dataset}.families.{name}: missing; model {model} needs it")
        return found

    def run_spec(self, dataset: str, model: str, seed: int) -> RunSpec:
        """Everything that decides the bytes of a training run."""
        family, source = self.family(dataset, model), self.dataset(dataset).source
        return RunSpec(
            family=self.model(model).family,
            network=family.network,
            diffusion=family.diffusion,
            training=family.training,
            objective=self.model(model).objective(self.dataset(dataset).strengths),
            compute=self.dataset(dataset).compute,
            image_size=source.image_size,
            channels=source.channels,
            seed=seed,
        )


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
    raw = _parse(path, text)
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: {_quoted(raw)}; expected a mapping with datasets, models and studies")
    try:
        params = TypeAdapter(Params).validate_python(raw)
    except ValidationError as error:
        raise ConfigError(_explain(path, raw, error)) from None
    _check(params)
    return params, raw


def _parse(path: Path, text: str) -> Any:
    """The plain data of a YAML text that DVC reads in the same way."""
    if found := _BREAK.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise ConfigError(f"{path} line {line}: U+{ord(found[0]):04X} is a line break in YAML 1.1 alone; leave it out")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: {' '.join((error.problem or 'not YAML').split())}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:  # Python reads whole numbers of some thousand digits only
        raise ConfigError(f"{path}: {error}") from None


_BREAK = re.compile("[\x85\u2028\u2029]")


def _tag(name: str) -> str:
    return f"tag:yaml.org,2002:{name}"


class _Loader(yaml.SafeLoader):
    """The part of YAML that its versions 1.1 (PyYAML) and 1.2 (DVC) read alike; anything else is an error.

    So is a repeated key, which PyYAML takes for the last one.
    """

    _flow = 0
    """How many brackets and braces are open."""

    def compose_document(self) -> Any:
        event = self.peek_event()
        if event.version or event.tags:
            self._refuse("leave out the directive; the file is read without", event)
        return super().compose_document()

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            name = event.tag.replace(_tag(""), "!!")
            self._refuse(f"the tag {name} has no meaning here; write the value without", event)
        flow = bool(getattr(event, "flow_style", False))
        if isinstance(event, yaml.MappingStartEvent) and flow and not event.anchor and _begins(event) != "{":
            self._refuse("DVC does not read a pair in [...] without braces; write {key: value}", event)
        self._flow += flow
        node = super().compose_node(parent, index)
        self._flow -= flow
        return node

    def compose_scalar_node(self, anchor: Any) -> Any:
        event = self.peek_event()
        node = super().compose_scalar_node(anchor)
        plain, value = event.implicit[0], event.value
        if plain and node.tag == _tag("str") and _otherwise(value):
            word = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(value.lower())
            instead = f"write {word}" if word else "write a plain decimal number"
            self._refuse(f"'{value}' means different things to YAML 1.1 and 1.2; {instead}, or text in quotes", event)
        if plain and self._flow and ":" in value:
            self._refuse(f"DVC does not read '{value}' within [...] or {{...}}; put it in quotes", event)
        return node

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

    @staticmethod
    def _refuse(problem: str, event: yaml.Event) -> None:
        raise yaml.constructor.ConstructorError(None, None, problem, event.start_mark)


def _begins(event: yaml.Event) -> str:
    """The character at which something begins."""
    mark = event.start_mark
    return mark.buffer[mark.pointer] if mark.buffer else ""


_ALIKE = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?([0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.[0-9]+([eE][-+][0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": r"<<",
}
"""What a word without quotes is, where both versions agree that it is no text."""
_Loader.yaml_implicit_resolvers = {}
for _name, _pattern in _ALIKE.items():
    _Loader.add_implicit_resolver(_tag(_name), re.compile(rf"(?:{_pattern})\Z"), None)

_NUMBER_OF_1_2 = re.compile(
    r"(?=[-+.0-9])[-+]?(0o[0-7_]+|[0-9_]+(\.[0-9_]*)?([eE][-+]?[0-9]+)?|\.[0-9_]+([eE][-+][0-9]+)?)"
)
"""What ruamel.yaml takes for a number in YAML 1.2, beside what YAML 1.1 does."""


def _otherwise(value: str) -> bool:
    """Whether a version of YAML takes a word without quotes for something else than text."""
    known = yaml.SafeLoader.yaml_implicit_resolvers.get(value[:1], [])
    return bool(_NUMBER_OF_1_2.fullmatch(value)) or any(pattern.match(value) for _, pattern in known)


_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "finite_number": "a whole number",
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


def project_path(path: str) -> str:
    """A path as both engines spell it: short, and relative to the project's root where it lies under that.

    An absolute path elsewhere stays absolute, and a relative one relative. `a/../b` is `b`.
    """
    inside = os.path.relpath(path)
    if inside.split(os.sep)[0] != os.pardir:
        return inside
    for parent in Path(os.path.abspath(path)).parents:
        if parent.exists() and parent.samefile(os.curdir):  # the root under another name, by a link
            return os.path.relpath(path, parent)
    return os.path.normpath(path) if os.path.isabs(path) else inside


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
        for model in sorted(set(dataset.final_step) - {"default"}):
            _known(f"datasets.{name}.final_step", model, params.models)
            if wrong := step_problem(params, name, model, dataset.final_step[model]):
                raise ConfigError(f"{PARAMS} datasets.{name}.final_step.{model}: {wrong}")
        for file in dataset.source.archives:
            said = params.downloads.get(file)
            if said is None or not (said.url or said.how):
                raise ConfigError(
                    f"{PARAMS} datasets.{name}.source.archives: how is {file} got? Give downloads a key '{file}' with "
                    f"url or how{nearest(file, params.downloads)}"
                )
        _check_families(name, dataset)
        for key, path in (("source.raw", dataset.source.raw), ("inception.raw", dataset.inception.raw)):
            if path is not None and (not path or set(project_path(path)) <= {".", "/"}):
                raise ConfigError(
                    f"{PARAMS} datasets.{name}.{key}: '{path}' holds the project itself; name a file or a directory "
                    "of its own"
                )
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
            if not seeds or len(set(seeds)) < len(seeds):
                raise ConfigError(
                    f"{PARAMS} studies.{name}.seeds.{model}: found {seeds}; expected one seed or more, without repeats"
                )
        for kind, views in (("tables", study.tables), ("figures", study.figures)):
            _well_formed(f"studies.{name}.{kind}", views)
            for view_name, view in views.items():
                _check_view(params, study, f"studies.{name}.{kind}.{view_name}", view)


def _check_families(name: str, dataset: Dataset) -> None:
    """Networks that no image of this size fits, and schedules that leave no signal, before anything is trained."""
    for kind in FAMILIES:
        family: ADMFamily | DDPMFamily | None = getattr(dataset.families, kind)
        if family is None:
            continue
        where = f"{PARAMS} datasets.{name}.families.{kind}"
        try:
            family.network.check(dataset.source.image_size)
        except ValueError as error:
            raise ConfigError(f"{where}.network: {error}") from None
        try:
            make_betas(family.diffusion.schedule, family.diffusion.T)
        except ValueError as error:
            raise ConfigError(f"{where}.diffusion: {error}") from None


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
    for model, last in view.until.items():
        _known(f"{where}.until", model, view.models)
        if view.steps and last < min(view.steps):
            raise ConfigError(f"{PARAMS} {where}.until.{model}: {last} is before the first of steps {view.steps}")
    if isinstance(view, Figure) and view.kind == "errors":
        _check_errors(params, where, view)
        return
    found = points(params, view)
    if not found:
        raise ConfigError(f"{PARAMS} {where}: no cell; name datasets, models and samplers, or points")
    if isinstance(view, Table):
        for pair in view.compare.items():
            for model in pair:
                _known(f"{where}.compare", model, dict.fromkeys(point.model for point in found))
    for point in found:
        _check_point(params, where, point)
        if isinstance(view, Figure) and view.kind == "samples":
            count = params.dataset(point.dataset).sampling.count(Sampler.parse(point.sampler))
            if view.images > count:
                raise ConfigError(f"{PARAMS} {where}.images: {view.images} of the {count} that {point.dataset} draws")
    metrics = view.metrics if isinstance(view, Table) else [view.metric] if view.kind == "lines" else []
    for dataset in dict.fromkeys(point.dataset for point in found):
        _check_metrics(params.dataset(dataset), dataset, where, metrics)


def _check_metrics(dataset: Dataset, name: str, where: str, metrics: Iterable[str]) -> None:
    for metric in metrics:
        kind = METRICS[metric]
        if kind.needs == "logits" and dataset.features != "inception":
            raise ConfigError(
                f"{PARAMS} {where}: {metric} needs datasets.{name}.features: inception, found {dataset.features}"
            )
        if kind.needs == "neighbours" and not dataset.reference.neighbours:
            raise ConfigError(f"{PARAMS} {where}: {metric} needs datasets.{name}.reference.neighbours: true")
        if not kind.always and metric not in dataset.metrics:
            raise ConfigError(f"{PARAMS} {where}: {metric} is measured where datasets.{name}.metrics names it")


def _check_errors(params: Params, where: str, figure: Figure) -> None:
    if figure.samplers:
        raise ConfigError(f"{PARAMS} {where}.samplers: found {figure.samplers}; prediction errors need no sampler")
    if not runs(params, figure):
        raise ConfigError(f"{PARAMS} {where}: no cell; name datasets and models")
    for dataset, model, step in runs(params, figure):
        params.family(dataset, model)
        if params.dataset(dataset).analysis is None:
            raise ConfigError(f"{PARAMS} datasets.{dataset}.analysis: missing key; {where} needs it")
        _check_step(params, where, dataset, model, step)


def _check_point(params: Params, where: str, point: Point) -> None:
    try:
        sampler_of(params, point.dataset, point.model, point.sampler)
    except ValueError as error:
        raise ConfigError(f"{PARAMS} {where}.samplers: {error}") from None
    _check_step(params, where, point.dataset, point.model, point.step)


def _check_step(params: Params, where: str, dataset: str, model: str, step: int | None) -> None:
    if step is not None and (wrong := step_problem(params, dataset, model, step)):
        raise ConfigError(f"{PARAMS} {where}.steps: {wrong}")


def step_problem(params: Params, dataset: str, model: str, step: int) -> str | None:
    """What is wrong with a checkpoint's step, or None. Imported checkpoints have the steps they came with."""
    if params.model(model).imported:
        return None if step >= 1 else f"{step} is no training step; use 1 or more"
    steps = params.dataset(dataset).checkpoints
    return None if step in steps else f"{step} is not one of datasets.{dataset}.checkpoints {steps}"


def sampler_of(params: Params, dataset: str, model: str, name: str) -> Sampler:
    """The sampler of this name, held against the chain that the model was trained on.

    Raises:
        ConfigError: the data set or model is unknown, or the one does not train the other.
        ValueError: no such sampler, or one with a grid that the chain does not have.
    """
    T = params.family(dataset, model).diffusion.T
    sampler = Sampler.parse(name)
    if sampler.name != name:
        raise ValueError(f"sampler '{name}': write it as '{sampler.name}' (one name, one artifact)")
    kept(sampler, T, f" of {dataset}/{model}")
    return sampler


def points(params: Params, view: Table | Figure) -> list[Point]:
    """The points a table or figure asks for, in its order, each with its training step."""
    if isinstance(view, Table) and view.points:
        asked = view.points
    else:
        asked = [
            Point(dataset, model, sampler, step)
            for dataset in view.datasets
            for model in view.models
            for step in (wanted(view.steps, view.until, model) or [None])
            for sampler in view.samplers
        ]
    return [
        p if p.step is not None else dataclasses.replace(p, step=params.dataset(p.dataset).last_step(p.model))
        for p in asked
    ]


def runs(params: Params, figure: Figure) -> list[tuple[str, str, int]]:
    """The checkpoints (data set, model, training step) that a figure of prediction errors asks for, in its order."""
    return [
        (dataset, model, step)
        for dataset in figure.datasets
        for model in figure.models
        for step in (wanted(figure.steps, figure.until, model) or [params.dataset(dataset).last_step(model)])
    ]
