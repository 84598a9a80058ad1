"""The text of a params.yaml: the part of YAML that every reader reads alike, and one line about what is wrong."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from ipdiff.errors import ConfigError
from ipdiff.pipeline.config.naming import nearest, reads_otherwise, suggest
from ipdiff.pipeline.config.spec import StudyParams


def text_of(path: Path) -> str:
    """What a file holds; ConfigError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; run ipdiff in the project's root") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}") from None


def records(path: Path, text: str) -> tuple[StudyParams, dict[str, Any]]:
    """A study's parameters as typed records, and as plain data: the values that DVC records.

    Raises:
        ConfigError: one line with the key's path: an unknown key (and the nearest valid one), a wrong type or value.
    """
    raw = parse(path, text)
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: {_quoted(raw)}; expected a mapping with datasets, models and tables")
    if "studies" in raw:
        raise ConfigError(
            f"{path} studies: a study is a folder now; move each to studies/NAME/params.yaml, with its own datasets, "
            "models, tables and figures"
        )
    try:
        return TypeAdapter(StudyParams).validate_python(raw), raw
    except ValidationError as error:
        raise ConfigError(_explain(path, raw, error)) from None


def parse(path: Path, text: str) -> Any:
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
        if plain and node.tag == _tag("str") and reads_otherwise(value):
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

_UNION_TAG = re.compile(r"float|list\[float\]|literal\[.*\]|Ramp")


def _explain(path: Path, raw: dict[str, Any], error: ValidationError) -> str:
    """One line for one of the errors: where, what was found, what to write instead."""
    errors: list[Any] = list(error.errors(include_url=False))
    errors = [found for e in errors if (found := _within_ramp(e))] or errors
    unknown = [e for e in errors if e["type"] in ("unexpected_keyword_argument", "extra_forbidden")]
    first = (unknown or errors)[0]  # a misspelt key is the reason why another is missing
    location = [str(part) for part in first["loc"]]
    where = " ".join(filter(None, [str(path), ".".join(location)]))
    if unknown:
        fields = _fields_at(StudyParams, location[:-1])
        return f"{where}: unknown key{suggest(location[-1], fields)}"
    if location[-1:] == ["[key]"]:
        return f"{path} {'.'.join(location[:-1])}: a name must be text; write it in quotes"
    if first["type"] in ("missing", "missing_argument"):
        keys = dict.fromkeys(".".join(map(str, e["loc"])) for e in errors if e["type"] == first["type"])
        return f"{path} {', '.join(keys)}: missing key{'s' if len(keys) > 1 else ''}"
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


def _within_ramp(error: dict[str, Any]) -> dict[str, Any] | None:
    """An error within a ramp, its place without the word by which pydantic tells that from a number; else None."""
    loc = error["loc"]
    tag = next((n for n in range(1, len(loc)) if loc[n - 1 : n + 1] == ("gamma", "Ramp")), None)
    if tag is None or error["type"] == "dataclass_type":
        return None
    return {**error, "loc": loc[:tag] + loc[tag + 1 :]}


def _either(tags: Iterable[str]) -> str:
    """The alternatives of a union, in words."""
    words = {"float": "a number", "list[float]": "a list of numbers", "Ramp": "a mapping"}
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
    """Of a union, the record that may stand there, or what does instead of nothing."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        return next(filter(dataclasses.is_dataclass, parts), parts[0])
    return hint
