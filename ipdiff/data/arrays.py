"""npz files whose bytes depend on nothing but the arrays: no time stamps, no umask, no version of Python."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ipdiff.data.formats import filekind, files
from ipdiff.data.npy import Header
from ipdiff.errors import UserError

_EPOCH = (1980, 1, 1, 0, 0, 0)
_HEADER = 1 << 16
"""Room for what an npy file has before its data; an estimate of the size is all that zipfile wants."""


def save_npz(path: Path, **arrays: ArrayLike) -> None:
    """Write arrays as an uncompressed npz, by name in sorted order and without time stamps.

    Args:
        path: the file; replaced if it exists.
        arrays: any shape; any dtype but object.

    Raises:
        ValueError: an array holds Python objects.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            array = np.asarray(arrays[name], order="C")
            with _entry(archive, name, array.nbytes) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def stream_npz(path: Path, name: str, shape: tuple[int, ...], parts: Iterable[NDArray[np.uint8]]) -> None:
    """Write one uint8 array as `save_npz` does, one part in memory at a time.

    Args:
        path: the file; replaced if it exists.
        name: the array's name.
        shape: the whole array's.
        parts: its pieces along the first axis, in order.

    Raises:
        ValueError: the pieces do not make up `shape`.
    """
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
    size = math.prod(shape)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive, _entry(archive, name, size) as file:
        np.lib.format.write_array_header_1_0(file, header)
        rows = 0
        for part in parts:
            if part.dtype != np.uint8 or part.shape[1:] != shape[1:]:
                raise ValueError(f"a part is {part.dtype} of shape {part.shape}; the array is uint8 of shape {shape}")
            file.write(np.ascontiguousarray(part).data)
            rows += len(part)
        if rows != shape[0]:
            raise ValueError(f"the parts have {rows} rows; the array has {shape[0]}")


@contextmanager
def _entry(archive: zipfile.ZipFile, name: str, size: int) -> Iterator[IO[bytes]]:
    """An array's entry. zip64 only where it has to be (2 GB): there Python 3.11.3 and older write other headers."""
    entry = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
    entry.create_system = 3
    entry.external_attr = 0o644 << 16
    entry.file_size = size + _HEADER
    with archive.open(entry, "w") as file:
        yield file


class Npz:
    """An npz file of somebody else's: what its arrays are is known before one is read."""

    def __init__(self, path: Path, entries: files.Files) -> None:
        self.path = path
        self._entries = {name.removesuffix(".npy"): at for name, at in entries.items() if name.endswith(".npy")}

    @property
    def names(self) -> list[str]:
        """Of its arrays."""
        return list(self._entries)

    def header(self, name: str) -> Header:
        """Shape and dtype of an array; see `open_npz` for what is raised."""
        entry = self._entries[name]
        with entry.open() as stream:
            return Header.read(stream, entry.size)

    def read(self, name: str) -> NDArray[Any]:
        """An array; see `open_npz` for what is raised."""
        entry = self._entries[name]
        with entry.open() as stream:
            array = Header.read(stream, entry.size).fill(stream)
            stream.read(1)  # at its end the checksum is compared
            return array


@contextmanager
def open_npz(path: Path) -> Iterator[Npz]:
    """Open an npz file.

    Raises:
        UserError: it is missing, is something else (the line says what), is damaged, holds Python objects, or is an
            archive that `files.opened` refuses.
    """
    kind = filekind.look(path)
    if kind.name != "npz":
        raise UserError(f"{path}: is {kind.words}; expected an npz file, as np.savez writes it")
    with files.opened(path, max_entry=None) as entries:
        yield Npz(path, entries)


def load_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read every array of an npz: name -> array. Raises UserError where it cannot be read; see `open_npz`."""
    with open_npz(path) as file:
        return {name: file.read(name) for name in file.names}
