"""npy files larger than memory: written and read block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


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


class NpyReader:
    """An npy file of somebody else's, read block by block and no further than it says."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        """Read the header.

        Args:
            stream: the file, at its start.
            size: its length in bytes.

        Raises:
            ValueError: it is no npy file, holds Python objects, is in Fortran order, or has another length.
        """
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"npy version {version} is not read")
        self.shape, fortran, self.dtype = readers[version](stream)
        if self.dtype.hasobject:
            raise ValueError("holds Python objects (a pickle), which may run code")
        if fortran and len(self.shape) > 1:
            raise ValueError("is in Fortran order; expected C order")
        needed = stream.tell() + math.prod(self.shape) * self.dtype.itemsize
        if needed != size:
            raise ValueError(f"has {size} bytes; its header says {needed}")
        self._stream = stream

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        """The array in blocks of at most `rows` rows. Raises EOFError where the bytes end early."""
        row = self.shape[1:]
        length = math.prod(row) * self.dtype.itemsize
        for start in range(0, self.shape[0], rows):
            size = min(rows, self.shape[0] - start) * length
            data = self._stream.read(size)
            if len(data) < size:
                raise EOFError("it ends early")
            yield np.frombuffer(data, self.dtype).reshape(-1, *row)
