"""params.schema.json: the keys of a study's params.yaml for editors, which complete and check by it.

Each params.yaml names it in its first line (`# yaml-language-server: $schema=...`). What it cannot say, `checks` says.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ipdiff.parameters import Range
from ipdiff.pipeline.config.reference import records
from ipdiff.pipeline.config.spec import StudyParams

PATH = Path("params.schema.json")


def render() -> str:
    """The text of params.schema.json."""
    schema = TypeAdapter(StudyParams).json_schema()
    found = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "params.yaml of a study"}
    for kind in records(StudyParams):
        _annotate(kind, schema if kind is StudyParams else schema["$defs"][kind.__name__])
    return json.dumps(found, indent=1) + "\n"


def _annotate(kind: type[Any], schema: dict[str, Any]) -> None:
    """Say of each key what config/README.md does: its meaning, and the numbers that it may hold."""
    schema["description"] = (kind.__doc__ or "").strip().splitlines()[0]
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        for part in getattr(hint, "__metadata__", ()):
            if isinstance(part, str):
                schema["properties"][name]["description"] = part
            elif isinstance(part, Range):
                for number in _numbers(schema["properties"][name]):
                    number.update(_bounds(part))


def _numbers(schema: Any) -> Iterator[dict[str, Any]]:
    """The schemas of numbers within another."""
    if isinstance(schema, dict):
        if schema.get("type") in ("number", "integer"):
            yield schema
        for inner in schema.values():
            yield from _numbers(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from _numbers(inner)


def _bounds(allowed: Range) -> dict[str, Any]:
    bounds: dict[str, Any] = {
        "minimum": allowed.least,
        "maximum": allowed.most,
        "exclusiveMinimum": allowed.above,
        "exclusiveMaximum": allowed.below,
        "enum": list(allowed.values) or None,
    }
    return {key: value for key, value in bounds.items() if value is not None}
