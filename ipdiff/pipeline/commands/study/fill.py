"""`ipdiff grid --fill`: the defaults of keys that both engines compare, written into a study's params.yaml.

Text is added and none is changed: layout and comments stay.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from ipdiff.errors import UserError
from ipdiff.pipeline import grid
from ipdiff.pipeline.config import Params, reading
from ipdiff.work.files import write_whole

INDENT = 2


def fill(study: str) -> tuple[Path, list[str]]:
    """Write the defaults of all keys that the study's cells need and its file does not have; the file, and these keys.

    Raises:
        UserError: the file cannot be read, lacks keys that have no default, or is written in a way in which a key
            cannot be added.
    """
    known = grid.load()
    params = known.studies.load(study)
    missing = params.unwritten(key for cell in known.study(study) for key in cell.params)
    text = reading.text_of(params.path)
    wanted = reading.parse(params.path, text)
    for key in missing:
        value = _default(params, key)
        text = _added(text, key.split("."), value)
        _put(wanted, key.split("."), value)
    if missing and _parsed(params.path, text) != wanted:
        raise UserError(
            f"{params.path}: {', '.join(missing)} cannot be added to how it is written; write them yourself"
        )
    if missing:
        write_whole(params.path, text.encode())
    return params.path, missing


def _parsed(path: Path, text: str) -> Any:
    try:
        return reading.parse(path, text)
    except UserError:
        return None


def _default(params: Params, key: str) -> Any:
    """What a key that is not written means, as plain data without what is empty."""
    value: Any = params
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return _plain(value)


def _plain(value: Any) -> Any:
    if not dataclasses.is_dataclass(value):
        return value
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {name: _plain(held) for name, held in fields.items() if held is not None}


def _put(raw: Any, parts: list[str], value: Any) -> None:
    *parents, last = parts
    for part in parents:
        raw = raw.setdefault(part, {})
    raw[last] = value


def _added(text: str, parts: list[str], value: Any) -> str:
    """The text with a key more, at the end of the innermost mapping on its way that is there."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    while (inner := _inner(node, parts[0])) is not None:
        node, parts = inner, parts[1:]
    for part in reversed(parts):
        value = {part: value}
    if node.flow_style:
        at, entry = node.start_mark.index + 1, yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()
        return text[:at] + entry.removeprefix("{").removesuffix("}") + (", " if node.value else "") + text[at:]
    column = node.start_mark.column
    entry = yaml.safe_dump(value, sort_keys=False, indent=INDENT)
    entry = "".join(f"{' ' * column}{line}\n" for line in entry.splitlines())
    at = text.find("\n", _end(node)) + 1 or len(text)
    return text[:at] + ("" if text[:at].endswith("\n") else "\n") + entry + text[at:]


def _inner(node: Any, name: str) -> Any:
    """The mapping that a mapping has under a name, if it has one."""
    found = [value for key, value in node.value if key.value == name]
    return found[0] if found and isinstance(found[0], yaml.MappingNode) else None


def _end(node: yaml.Node) -> int:
    """Where what a node is written with ends, without the empty lines and comments behind it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last: Any = node.value[-1]
        return _end(last[-1] if isinstance(last, tuple) else last)
    block = isinstance(node, yaml.ScalarNode) and node.style in ("|", ">")
    return node.end_mark.index - (block and node.end_mark.index > node.start_mark.index)
