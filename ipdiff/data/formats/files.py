"""The files inside a directory, a .zip or a .tar.gz: their names, sizes and contents, whoever packed them.

An archive is a stranger's. It is refused, with the entry and the reason, where a name leaves the archive or stands
twice, where an entry is a link, encrypted, or larger than the reader has use for, and where the whole expands to
more than MAX_EXPANSION times its own size and MIN_ROOM. Nothing is unpacked by name.
"""

from __future__ import annotations

import gzip
import io
import lzma
import posixpath
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from ipdiff.data.formats import filekind
from ipdiff.errors import UserError, brief
from ipdiff.work.files import files_under

MAX_ENTRY = 64 * 2**20
"""Bytes that an entry may expand to, where the reader does not say otherwise."""
MAX_EXPANSION = 100
"""How many times its own size an archive may expand to."""
MIN_ROOM = 16 * 2**20
"""Bytes that an archive may expand to however small it is."""

_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
    NotImplementedError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
)
"""What the standard library raises on bytes that are not what they seem."""


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn any error that damaged bytes cause into a UserError that names them."""
    try:
        yield
    except _DAMAGE as error:
        raise UserError(f"{where}: cannot be read: {brief(error, 120)}") from error


def exactly(stream: IO[bytes], count: int) -> bytes:
    """So many bytes of a stream; EOFError where it ends before."""
    data = stream.read(count)
    if len(data) < count:
        raise EOFError("it ends early")
    return data


@dataclass(frozen=True)
class Entry:
    """A file inside a directory or an archive."""

    where: str
    size: int
    opener: Callable[[], IO[bytes]]
    path: Path | None = None

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Its bytes as a stream; whatever goes wrong while it is read is a UserError with its name."""
        with reading(self.where), self.opener() as stream:
            yield stream

    def kind(self) -> filekind.Kind:
        """What it is, by its first bytes."""
        with self.open() as stream:
            return filekind.of(stream.read(filekind.HEAD))

    def read(self) -> bytes:
        """All its bytes, or a UserError; also where they are more than MAX_ENTRY."""
        if self.size > MAX_ENTRY:
            raise UserError(f"{self.where}: has {self.size} bytes, more than {MAX_ENTRY}")
        with self.open() as stream:
            return stream.read(self.size)

    def local(self, scratch: Path) -> Path:
        """The file itself, or a copy unpacked into `scratch`, for readers that must have a path."""
        if self.path is not None:
            return self.path
        free = shutil.disk_usage(scratch).free
        if self.size > free:
            raise UserError(f"{self.where}: needs {self.size} bytes of work space, {free} are free in {scratch}")
        copy = scratch / f"entry-{sum(1 for _ in scratch.iterdir())}"
        with self.open() as stream, copy.open("wb") as target:
            shutil.copyfileobj(stream, target, 1 << 20)
        return copy


Files = dict[str, Entry]


@contextmanager
def opened(path: Path, max_entry: int | None = MAX_ENTRY) -> Iterator[Files]:
    """The files of a directory, .zip or .tar.gz: relative posix path -> entry; open as long as the context.

    Args:
        path: what to open; its bytes decide what it is, not its name.
        max_entry: bytes that an entry of an archive may expand to; None for no limit.

    Raises:
        UserError: it is missing, damaged, none of the three, or holds an entry that is refused.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or directory; check `raw`")
    if path.is_dir():
        yield directory(path)
        return
    with reading(str(path)), path.open("rb") as file:
        head = file.read(filekind.HEAD)
    with ExitStack() as stack:
        if head.startswith(b"PK"):
            yield _zip(path, stack, max_entry)
        elif head.startswith(b"\x1f\x8b"):
            yield _tar(path, stack, max_entry)
        else:
            raise UserError(
                f"{path}: neither a directory nor a readable .zip or .tar.gz; it is {filekind.of(head).words}"
            )


def shown(name: str, most: int = 80) -> str:
    """A stranger's file name as messages print it: one line, no more than so many characters."""
    text = name.encode("unicode_escape").decode() if not name.isprintable() else name
    return text if len(text) <= most else f"{text[: most // 2 - 3]}...{text[-most // 2 :]}"


def directory(root: Path) -> Files:
    """The files under a directory, as `files_under` lists them: what a recipe's digest of it counts."""
    try:
        names = {path.relative_to(root).as_posix(): path for path in files_under(root)}
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be listed: {error.strerror}") from error
    return {name: plain(path, f"{root}: {shown(name)}") for name, path in names.items()}


def plain(path: Path, where: str = "") -> Entry:
    """A file of its own."""

    def opener() -> IO[bytes]:
        if not path.is_file():
            raise ValueError("it is missing or no plain file")
        return path.open("rb")

    where = where or str(path)
    with reading(where):
        return Entry(where, path.stat().st_size if path.is_file() else 0, opener, path)


def named(files: Files, wanted: Callable[[str], bool]) -> Files:
    """The entries whose last name is wanted, by that name; UserError if two have the same."""
    found: Files = {}
    for name, entry in files.items():
        leaf = name.rpartition("/")[2]
        if wanted(leaf):
            if leaf in found:
                raise UserError(f"{entry.where}: there is another {leaf} as well; keep one")
            found[leaf] = entry
    return found


def _zip(path: Path, stack: ExitStack, max_entry: int | None) -> Files:
    with reading(str(path)):
        archive = stack.enter_context(zipfile.ZipFile(path))
    files, admit = _admission(path, max_entry)
    for info in archive.infolist():
        if info.filename.endswith(("/", "\\")):
            continue
        reason = ""
        if stat.S_ISLNK(info.external_attr >> 16):
            reason = "is a link"
        elif info.flag_bits & 1:
            reason = "is encrypted"
        elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            reason = "is compressed by another method than deflate"
        admit(info.filename, info.file_size, partial(archive.open, info), reason)
    return files


def _tar(path: Path, stack: ExitStack, max_entry: int | None) -> Files:
    files, admit = _admission(path, max_entry)
    stream = stack.enter_context(_Bounded(stack.enter_context(gzip.open(path)), _room(path) + 2**20))
    with reading(str(path)):
        archive = stack.enter_context(tarfile.open(fileobj=stream, mode="r:"))
        for member in archive:  # the check comes before the member's bytes are passed over
            if member.isdir():
                continue
            reason = "" if member.isreg() and not member.issparse() else "is a link or no plain file"
            admit(member.name, member.size, partial(archive.extractfile, member), reason)
        while stream.read(1 << 20):  # tarfile stops before the checksum at the end
            pass
    return files


def _admission(path: Path, max_entry: int | None) -> tuple[Files, Callable[..., None]]:
    """A table of entries and the function that admits one to it or refuses the archive."""
    files: Files = {}
    most = _room(path)
    total = 0

    def admit(name: str, size: int, opener: Callable[[], IO[bytes]], reason: str) -> None:
        nonlocal total
        total += size
        name = name.replace("\\", "/")  # as some packers on Windows write it
        reason = _bad_name(name) or reason
        name = posixpath.normpath(name)
        if not reason and max_entry is not None and size > max_entry:
            reason = f"expands to {size} bytes, more than {max_entry}"
        if not reason and name in files:
            reason = "stands there twice"
        if reason:
            raise UserError(f"{path}: {shown(name)}: {reason}; pack the archive again without it")
        if total > most:
            raise UserError(
                f"{path}: expands to {total} bytes or more, over {MAX_EXPANSION} times its own size; if you "
                "trust it, pack it without compression, or unpack it yourself and give the directory"
            )
        files[name] = Entry(f"{path}: {shown(name)}", size, opener)

    return files, admit


def _room(path: Path) -> int:
    """Bytes that an archive may expand to."""
    return max(MIN_ROOM, MAX_EXPANSION * path.stat().st_size)


def _bad_name(name: str) -> str:
    if name.startswith("/") or name[1:2] == ":":
        return "absolute path"
    if ".." in name.split("/"):
        return "path leaves the archive ('..')"
    return ""


class _Bounded(io.RawIOBase):
    """A decompressing stream that refuses to expand beyond a limit, and to be read in huge pieces.

    (tarfile reads extended headers whole, whatever length they claim.)
    """

    def __init__(self, stream: gzip.GzipFile, limit: int) -> None:
        self._stream, self._limit = stream, limit

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > MAX_ENTRY:
            raise ValueError(f"a piece of {size} bytes is asked for, more than {MAX_ENTRY}")
        data = self._stream.read(size)
        if self._stream.tell() > self._limit:
            raise ValueError(f"expands to more than {self._limit} bytes, over {MAX_EXPANSION} times its own size")
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset > self._limit:
            raise ValueError(f"position {offset} lies beyond {self._limit} bytes")
        return self._stream.seek(offset)

    def tell(self) -> int:
        return self._stream.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
