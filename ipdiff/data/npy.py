"""npy files: what they hold is known from their first bytes, and those larger than memory are taken block by block."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ipdiff.data.formats import filekind
from ipdiff.data.formats.files import exactly
from ipdiff.errors import UserError, brief

_PIECE = 1 << 20


@contextmanager
def npy_rows(path: Path, row: tuple[int, ...], dtype: Any) -> Iterator[Callable[[NDArray[Any]], None]]:
    """Write an npy file block by block; its bytes are those of `np.save` of all blocks in one array.

    Args:
        path: the file; replaced if it exists.
        row: shape of one row.
        dtype: of the array.

    Yields:
        a function that appends a block [n, *row]; ValueError if its shape or dtype is another.
    """
    kind = np.dtype(dtype)
    with path.open("wb") as file:
        count = 0
        _write_header(file, kind, (0, *row))
        start = file.tell()

        def append(block: NDArray[Any]) -> None:
            nonlocal count
            if block.shape[1:] != row or block.dtype != kind:
                raise ValueError(f"block is {block.dtype} {list(block.shape)}; expected {kind} [n, {row}]")
            file.write(np.ascontiguousarray(block).data)
            count += len(block)

        yield append
        file.seek(0)
        _write_header(file, kind, (count, *row))
        if file.tell() != start:
            raise RuntimeError(f"{path}: the header grew from {start} to {file.tell()} bytes")


def _write_header(file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Write a header; numpy pads it so that the first number may grow to 21 digits."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


@dataclass(frozen=True)
class Header:
    """What an npy file says that it holds, held against its length: an array of this shape and dtype is there."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    @staticmethod
    def read(stream: IO[bytes], size: int) -> Header:
        """Read no further than the header.

        Args:
            stream: the file, at its start.
            size: its length in bytes.

        Raises:
            ValueError: it is no npy file, holds Python objects, or has another length.
        """
        try:
            version = np.lib.format.read_magic(stream)
        except ValueError:
            raise ValueError("is no npy file") from None
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"npy version {version} is not read")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # headers that Python 2 wrote
                shape, fortran, dtype = readers[version](stream)
        except Exception as error:  # numpy's parser raises many kinds on damaged bytes
            raise ValueError(f"has a damaged header: {brief(error, 60)}") from None
        if dtype.hasobject:
            raise ValueError("holds Python objects (a pickle), which may run code")
        if any(length < 0 for length in shape):
            raise ValueError("has a damaged header: a negative length")
        needed = stream.tell() + math.prod(shape) * dtype.itemsize
        if needed != size:
            raise ValueError(f"has {size} bytes; its header says {brief(needed, 30)}")
        return Header(shape, dtype, fortran and len(shape) > 1)

    def fill(self, stream: IO[bytes]) -> NDArray[Any]:
        """The whole array, from a stream that stands behind the header.

        Raises:
            EOFError: the stream ends early.
            ValueError: numpy makes no such array, or there is no memory for it.
        """
        try:
            array = np.empty(self.shape, self.dtype, "F" if self.fortran else "C")
        except MemoryError:
            raise ValueError(f"there is no memory for {math.prod(self.shape)} x {self.dtype.itemsize} bytes") from None
        room = array.reshape(-1, order="A").view(np.uint8).data if array.nbytes else memoryview(b"")
        for start in range(0, len(room), _PIECE):
            piece = exactly(stream, min(_PIECE, len(room) - start))
            room[start : start + len(piece)] = piece
        return array

    def blocks(self, stream: IO[bytes], rows: int) -> Iterator[NDArray[Any]]:
        """The array in blocks of at most `rows` rows, from a stream that stands behind the header.

        Raises:
            EOFError: the stream ends early.
            ValueError: the array is in Fortran order.
        """
        if self.fortran:
            raise ValueError("is in Fortran order; expected C order")
        row = self.shape[1:]
        length = math.prod(row) * self.dtype.itemsize
        for start in range(0, self.shape[0], rows):
            data = exactly(stream, min(rows, self.shape[0] - start) * length)
            yield np.frombuffer(data, self.dtype).reshape(-1, *row)


def load_npy(path: Path, mmap: bool = True) -> NDArray[Any]:
    """An array of an npy file, as a read-only memory map or in memory.

    Raises:
        UserError: the file is missing, is something else (the line says what), or is damaged.
    """
    kind = filekind.look(path)
    if kind.name != "npy":
        raise UserError(f"{path}: is {kind.words}; expected an npy file")
    try:
        with path.open("rb") as stream:
            header = Header.read(stream, path.stat().st_size)
            if not mmap or math.prod(header.shape) == 0:
                return header.fill(stream)
            order = "F" if header.fortran else "C"
            return np.memmap(path, header.dtype, "r", stream.tell(), header.shape, order)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a readable npy file: {brief(error)}") from None
