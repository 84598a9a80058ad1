"""What a verb of the command line is: its help, its arguments, its work, and how it speaks."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

Work = Callable[[argparse.Namespace], int | None]
"""What a verb does; returns the exit code, or None for 0."""
Argument = tuple[str, dict[str, Any]]
"""What argparse is told of an argument of a verb."""
VERBS: dict[str, tuple[str, tuple[Argument, ...], Work]] = {}
"""Verbs that are no stage's: what each does, its arguments, and its work."""


def arg(name: str, text: str, **options: Any) -> Argument:
    """An argument that takes a value."""
    return name, {"help": text, **options}


def flag(name: str, text: str) -> Argument:
    """An argument that is there or not."""
    return name, {"help": text, "action": "store_true"}


JSON = flag("--json", "print JSON")
TARGETS = "a study, table:STUDY/NAME, figure:STUDY/NAME, an output, an artifact's folder (default: everything)"


def verb(name: str, text: str, *arguments: Argument) -> Callable[[Work], Work]:
    """Make a function the work of a verb."""

    def keep(work: Work) -> Work:
        VERBS[name] = (text, arguments, work)
        return work

    return keep


def say(error: Exception | str, code: int = 0) -> int:
    """One line on stderr; returns `code`."""
    text = f"ipdiff: {error}".encode(errors="backslashreplace").decode()  # names of files may be no text
    print(text, file=sys.stderr)
    return code


def as_json(data: object) -> str:
    """Data as indented JSON."""
    return json.dumps(data, indent=1)
