"""CIFAR-10: the binary version, and the python version without running its pickles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipdiff.data.formats import files
from ipdiff.data.formats.pickled import read_batch
from ipdiff.data.formats.planes import to_nhwc
from ipdiff.data.spec import Source
from ipdiff.errors import UserError

BINARY = [f"data_batch_{n}.bin" for n in range(1, 6)]
PYTHON = [f"data_batch_{n}" for n in range(1, 6)]
PIXELS = 3 * 32 * 32
CLASSES = 10
BLOCK = 2000
"""Images a block."""


def read(
    source: Source, paths: Sequence[Path], scratch: Path, notes: dict[str, Any]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """cifar-10-binary.tar.gz or cifar-10-python.tar.gz, or the directory of either: training batches 1 to 5."""
    with files.opened(paths[0]) as found:
        batches = files.named(found, lambda name: name in (*BINARY, *PYTHON))
        names = BINARY if set(BINARY) <= set(batches) else PYTHON
        missing = [name for name in names if name not in batches]
        if missing:
            raise UserError(
                f"{paths[0]}: no {missing[0]}; expected {BINARY[0]} to {BINARY[-1]} (cifar-10-binary.tar.gz) or "
                f"{PYTHON[0]} to {PYTHON[-1]} (cifar-10-python.tar.gz)"
            )
        for name in names:
            for values, labels in (_binary if names is BINARY else _python)(batches[name]):
                if labels.min() < 0 or labels.max() >= CLASSES:
                    raise UserError(f"{batches[name].where}: has a label outside 0..{CLASSES - 1}")
                yield to_nhwc(values, 32), labels


def _binary(batch: files.Entry) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Records of one label byte and 3072 pixel bytes."""
    record = 1 + PIXELS
    count, rest = divmod(batch.size, record)
    if rest or not count:
        kind = batch.kind()
        hint = f"; it is {kind.words}" if kind.stand_in else ""
        raise UserError(f"{batch.where}: has {batch.size} bytes, no whole number of records of {record}{hint}")
    with batch.open() as stream:
        for start in range(0, count, BLOCK):
            data = files.exactly(stream, min(BLOCK, count - start) * record)
            records = np.frombuffer(data, np.uint8).reshape(-1, record)
            yield records[:, 1:], records[:, 0].astype(np.int64)


def _python(batch: files.Entry) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    kind = batch.kind()
    if kind.name != "pickle":
        raise UserError(f"{batch.where}: cannot be read: it is {kind.words}; expected the published pickle")
    if batch.size > files.MAX_ENTRY:
        raise UserError(f"{batch.where}: has {batch.size} bytes, more than any published one")
    with files.reading(batch.where):
        data, labels = read_batch(batch.read())
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != PIXELS or data.shape != (len(labels), PIXELS):
        raise UserError(
            f"{batch.where}: data is {data.dtype} {list(data.shape)} with {len(labels)} labels; expected uint8 "
            f"[n, {PIXELS}] with n labels"
        )
    yield data, labels
