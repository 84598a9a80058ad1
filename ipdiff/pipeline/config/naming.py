"""Names and paths that a person writes: what may be one, and the nearest to one that is not there."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path

import yaml

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
"""Names become parts of paths, of dotted keys and of DVC's addresses."""
RESERVED = frozenset(
    "all analyse classifier drift evaluate figure halves html import neighbours prepare reference report resume sample "
    "settings store summary table train".split()
)
"""What no study may be called: a study is a rule of Snakemake beside these, and a folder of published/ beside store."""

_NUMBER_OF_1_2 = re.compile(
    r"(?=[-+.0-9])[-+]?(0o[0-7_]+|[0-9_]+(\.[0-9_]*)?([eE][-+]?[0-9]+)?|\.[0-9_]+([eE][-+][0-9]+)?)"
)
"""What ruamel.yaml takes for a number in YAML 1.2, beside what YAML 1.1 does."""


def misnamed(name: str, *, study: bool = False) -> str | None:
    """Why nothing, or no study, can have this name, as the end of a line that begins with it; None: it can."""
    if not _NAME.fullmatch(name):
        return "cannot be part of a path; use letters, digits, '_' and '-'"
    if reads_otherwise(name):
        return "is a number or another value to YAML, which DVC reads names by; put a letter before it"
    if study and name in RESERVED:
        return "is a name that the workflow needs itself; choose another one"
    return None


def reads_otherwise(word: str) -> bool:
    """Whether a version of YAML takes a word without quotes for something else than text."""
    known = yaml.SafeLoader.yaml_implicit_resolvers.get(word[:1], [])
    return bool(_NUMBER_OF_1_2.fullmatch(word)) or any(pattern.match(word) for _, pattern in known)


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, and all of them."""
    names = list(known)
    return (nearest(name, names) or ";") + (f" known: {', '.join(names)}" if names else " there are none here")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean '...'?`, or nothing if no known name is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


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
