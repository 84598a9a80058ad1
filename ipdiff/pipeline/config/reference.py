"""config/README.md: what each key of a params.yaml means, written from the typed records."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

from ipdiff.parameters import Range
from ipdiff.pipeline.config.spec import StudyParams

PATH = Path("config/README.md")
INTRO = """\
# params.yaml

Written by `ipdiff grid --write` from the records of the package (`spec.py` in each room); do not edit.

A study is a folder: `studies/NAME/params.yaml` holds its data sets, models, tables and figures, complete and by
itself; the one in the project's root is the study `digits`. It is the only file to edit. A new folder is a new study,
after `ipdiff grid --write`, which writes its `dvc.yaml` beside it; a data set belongs to one study, and its name finds
it. What is wrong with one study's file stops no other study.

An unknown key is an error (`params.schema.json` lets editors complete and check the keys). The grid derives from the
tables what must be sampled and trained, and nothing else; after an edit of lists (T', checkpoints, seeds, models,
tables) run `ipdiff grid --write`. Edits of values need nothing. What YAML 1.1 (PyYAML) and YAML 1.2 (DVC) read
differently (`yes`, `off`, `010`, `1_000`, `1:30`, tags) is an error: write `true`, a decimal number, or text in quotes.
Layout and comments survive DVC, which rewrites the file in `dvc exp run`, as long as lines have at most 80 characters.

Snakemake and DVC compare the keys of a cell as they are written, so every key that decides an artifact's bytes
must be written out, even where it has its default: `source`, `classifier`, `compute`, `sampling`, each
family's `network`, `diffusion`, `training`, `clip_denoised` and `quantise`. `ipdiff grid --fill --study NAME` adds
those that are missing and have a default, and leaves layout and comments as they are.

What Snakemake is told besides, in `config/config.yaml` or by `--config`: [docs/snakemake.md](../docs/snakemake.md).
"""


def render() -> str:
    """The text of config/README.md."""
    sections = [INTRO]
    for kind in records(StudyParams):
        sections.append(_section(kind))
    return "\n".join(sections)


def records(root: type[Any]) -> list[type[Any]]:
    """All records reachable from `root`, each once, outermost first."""
    found: list[type[Any]] = []
    todo = [root]
    while todo:
        kind = todo.pop(0)
        if kind in found:
            continue
        found.append(kind)
        for hint in typing.get_type_hints(kind).values():
            todo += [part for part in _parts(hint) if isinstance(part, type) and dataclasses.is_dataclass(part)]
    return found


def _parts(hint: Any) -> list[Any]:
    arguments = typing.get_args(hint)
    return [part for argument in arguments for part in _parts(argument)] if arguments else [hint]


def _section(kind: type[Any]) -> str:
    lines = [
        f"## {kind.__name__}",
        "",
        (kind.__doc__ or "").strip().splitlines()[0],
        "",
        "| key | type | range | default | meaning |",
        "|---|---|---|---|---|",
    ]
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        meaning = allowed = ""
        if hasattr(hint, "__metadata__"):
            allowed = " and ".join(part.text() for part in hint.__metadata__ if isinstance(part, Range))
            hint, meaning = hint.__origin__, hint.__metadata__[0]
        elif dataclasses.is_dataclass(hint):
            meaning = "see below"
        lines.append(f"| `{field.name}` | {_type(hint)} | {allowed} | {_default(field)} | {meaning} |")
    return "\n".join([*lines, ""])


def _type(hint: Any) -> str:
    if hint is type(None):
        return "empty"
    origin = typing.get_origin(hint)
    parts = [_type(part) for part in typing.get_args(hint)] if origin is not typing.Literal else []
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(hint))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(parts)
    if origin is list:
        return f"list of {parts[0]}"
    if origin is dict:
        return f"mapping of {parts[1]} by name"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return names.get(hint, f"[{hint.__name__}](#{hint.__name__.lower()})")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return "its defaults, or empty"
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default in (None, ""):
        return "empty"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"
