"""Fashion-MNIST: gzipped idx files."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from ipdiff.data.formats import filekind, files
from ipdiff.data.spec import Source
from ipdiff.errors import UserError

IMAGES = "train-images-idx3-ubyte.gz"
LABELS = "train-labels-idx1-ubyte.gz"
CLASSES = 10
BLOCK = 4096
"""Images a block."""


def read(
    source: Source, paths: Sequence[Path], scratch: Path, notes: dict[str, Any]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """The training images and labels, as two archives or as a directory that holds both."""
    images, labels = (_find(paths, name) for name in (IMAGES, LABELS))
    with _idx(labels, (None,)) as (shape, stream):
        numbers = np.frombuffer(files.exactly(stream, shape[0]), np.uint8).astype(np.int64)
        if len(numbers) == 0 or numbers.max() >= CLASSES:
            raise ValueError(f"there are no labels, or one outside 0..{CLASSES - 1}")
    with _idx(images, (len(numbers), 28, 28)) as (_, stream):
        for start in range(0, len(numbers), BLOCK):
            part = numbers[start : start + BLOCK]
            data = files.exactly(stream, len(part) * 28 * 28)
            yield np.frombuffer(data, np.uint8).reshape(-1, 28, 28, 1), part


def _find(paths: Sequence[Path], name: str) -> files.Entry:
    for path in paths:
        if path.name == name:
            return files.plain(path)
        if path.is_dir() and (path / name).exists():
            return files.plain(path / name)
    raise UserError(f"{', '.join(map(str, paths))}: no {name}; expected {IMAGES} and {LABELS}")


@contextmanager
def _idx(entry: files.Entry, expected: tuple[int | None, ...]) -> Iterator[tuple[tuple[int, ...], BinaryIO]]:
    """The shape and the bytes of an idx file of uint8, which must end where its shape says."""
    with entry.open() as packed:
        kind = filekind.of(packed.read(filekind.HEAD))
        if kind.name != "gzip":
            raise ValueError(f"is no gzip file; it is {kind.words}")
        packed.seek(0)
        with gzip.open(packed) as unpacked:
            stream = cast(BinaryIO, unpacked)
            magic = int.from_bytes(files.exactly(stream, 4))
            if magic != 0x800 + len(expected):
                raise ValueError(f"has magic number {magic}; expected {0x800 + len(expected)}")
            shape = struct.unpack(f">{len(expected)}I", files.exactly(stream, 4 * len(expected)))
            if any(wanted not in (None, found) for wanted, found in zip(expected, shape, strict=True)):
                raise ValueError(f"has shape {list(shape)}; expected {list(expected)}")
            if np.prod(shape, dtype=object) > files.MAX_EXPANSION * entry.size:
                raise ValueError(f"says it has shape {list(shape)}, over {files.MAX_EXPANSION} times its own size")
            yield shape, stream
            if stream.read(1):
                raise ValueError(f"goes on after its shape {list(shape)} is filled")
