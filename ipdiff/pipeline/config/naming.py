"""Names and paths that a person writes: what may be one, and the nearest to one that is not there."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
"""Names become parts of paths, of dotted keys and of DVC's addresses."""


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
