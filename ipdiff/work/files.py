"""Files written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NoReturn

from ipdiff.errors import UserError

_PASSED_OVER = (".git", ".hg", ".dvc", "__pycache__")
"""What DVC passes over in a directory, wherever it lies: repositories, and what the project's .dvcignore adds."""


def md5(data: bytes) -> str:
    """md5 of bytes, in hex: the digest that DVC uses."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def md5_of(path: Path) -> str:
    """md5 of a file's bytes, read a block at a time."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def files_under(folder: Path) -> Iterator[Path]:
    """The files of a directory as DVC sees them: linked files count, linked directories and `_PASSED_OVER` do not.

    Raises:
        OSError: a directory cannot be listed.
        UserError: a name is not UTF-8, which DVC cannot record.
    """

    def refuse(error: OSError) -> NoReturn:
        raise error

    for place, names, leaves in os.walk(folder, onerror=refuse):
        names[:] = [name for name in names if name not in _PASSED_OVER]
        for path in (Path(place, leaf) for leaf in leaves if leaf != ".git"):
            if not _is_utf8(path):
                raise UserError(f"{path}: the name is not UTF-8, so DVC cannot record it; rename the file")
            yield path


def recordable(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """`files_under`, of which each can be hashed, with what `os.stat` says of each.

    Raises:
        OSError, UserError: as there; UserError for a pipe, or a link to nothing, too.
    """
    for path in files_under(folder):
        try:
            status = path.stat()
        except FileNotFoundError:
            status = None
        if status is None or not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: a link to nothing, or no plain file; DVC cannot record it: remove it")
        yield path, status


def _is_utf8(path: Path) -> bool:
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def md5_of_folder(folder: Path) -> str:
    """DVC's digest of a directory: that of its listing (paths and digests of its files), with `.dir` at its end.

    What a .dvcignore of the project leaves out is counted here and not by DVC; `ipdiff.pipeline.engines.sync` says so.

    Raises:
        OSError, UserError: something in it cannot be read (see `recordable`).
    """
    entries = [{"md5": md5_of(path), "relpath": path.relative_to(folder).as_posix()} for path, _ in recordable(folder)]
    entries.sort(key=lambda entry: entry["relpath"])
    return md5(json.dumps(entries, sort_keys=True).encode()) + ".dir"


def flush(path: Path) -> None:
    """Wait until a file's bytes, or a directory's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that after a crash at any instant the old one or the new one is there.

    The bytes go into `.{name}.part` first; nobody else may write the same file at the same time.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    flush(path.parent)
