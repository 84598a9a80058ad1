"""Locks between processes, given back by the kernel when their holder ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ipdiff.errors import UserError


@dataclass(frozen=True)
class Held:
    """A lock that is held: its open file (who inherits that holds the lock too), and whether it was waited for."""

    handle: int
    waited: bool


@contextmanager
def locked(path: Path, waiting: Callable[[str], None] = lambda holder: None, *, shared: bool = False) -> Iterator[Held]:
    """Hold the lock `path`, waiting for its turn.

    The file stays behind, empty of meaning: removing it would let two processes hold two files of one name.

    Args:
        path: the lock's file; made if it is not there.
        waiting: called once with the holder's name ("process 123 on host") where one has to wait.
        shared: others may hold it at the same time, if they share it too.

    Raises:
        UserError: the file system knows no locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    handle = _open(path)
    try:
        waited = not _take(handle, path, kind | fcntl.LOCK_NB)
        if waited:
            waiting(_holder(handle))
            _take(handle, path, kind)
        if not shared:
            _sign(handle)
        yield Held(handle, waited)
    finally:
        os.close(handle)


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock `path` if nobody else does: yields whether it is held. UserError as in `locked`."""
    handle = _open(path)
    try:
        yield _take(handle, path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(handle)


def join(path: Path, first: Callable[[], None]) -> None:
    """Share the lock `path` until this process ends; `first` is called before, if nobody else holds it, alone.

    Raises:
        OSError, UserError: the lock's file cannot be made, or the file system knows no locks.
    """
    handle = _open(path)  # stays open; processes that this one starts do not inherit it
    if _take(handle, path, fcntl.LOCK_EX | fcntl.LOCK_NB):
        first()
    _take(handle, path, fcntl.LOCK_SH)


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def _take(handle: int, path: Path, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        raise UserError(
            f"{path}: this file system has no file locks ({error.strerror}); put work/locks on one that has "
            "(Lustre: mount it with -o flock)"
        ) from None
    return True


def _sign(handle: int) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {platform.node()}".encode(), 0)


def _holder(handle: int) -> str:
    return os.pread(handle, 200, 0).decode(errors="replace") or "another process"
