"""Digests of files that no cell makes, remembered by the times and sizes they had: asked at each start of an engine.

Only what is watched for changes goes by this memory. What a stage reads, and what `ipdiff verify` looks at, is hashed.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from ipdiff.errors import UserError
from ipdiff.pipeline.store import artifact
from ipdiff.work.files import md5, recordable

MEMORY = Path("work/watched.json")
RACY_NS = 2_000_000_000
"""A file changed so shortly before it was hashed may be changed again without another time (git has the same rule)."""


def digest(path: str) -> str:
    """`artifact.file_digest` of a raw file or directory, which is read only where it may have changed.

    Raises:
        UserError: it cannot be read.
    """
    now = time.time_ns()
    try:
        stamp, newest = _stamp(Path(path))
        known = _memory()
        if known.get(path, {}).get("stamp") == stamp:
            return str(known[path]["digest"])
        found = artifact.file_digest(Path(path))
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from None
    if newest < now - RACY_NS:
        _remember({**known, path: {"stamp": stamp, "digest": found}})
    return found


def _stamp(path: Path) -> tuple[str, int]:
    """One digest of names, sizes and times, and the newest of the times (ns)."""
    lines: list[str] = []
    newest = 0
    for file, status in recordable(path) if path.is_dir() else [(path, path.stat())]:
        newest = max(newest, status.st_mtime_ns, status.st_ctime_ns)
        lines.append(f"{file} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n")
    return md5("".join(sorted(lines)).encode()), newest


def _memory() -> dict[str, Any]:
    try:
        known = json.loads(MEMORY.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and all(isinstance(entry, dict) for entry in known.values()) else {}


def _remember(known: dict[str, Any]) -> None:
    """Write the memory in one step; where nothing can be written, nothing is remembered."""
    try:
        MEMORY.parent.mkdir(exist_ok=True)
        handle, part = tempfile.mkstemp(dir=MEMORY.parent, prefix=".watched-")
        with os.fdopen(handle, "w") as stream:
            json.dump(known, stream, indent=1, sort_keys=True)
        os.replace(part, MEMORY)
    except OSError:
        return
