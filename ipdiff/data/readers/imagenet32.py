"""Downsampled ImageNet, 32x32: a zip of npz batches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipdiff.data.formats import files
from ipdiff.data.formats.planes import to_nhwc
from ipdiff.data.npy import Header
from ipdiff.data.spec import Source
from ipdiff.errors import UserError

BATCH = re.compile(r"train_data_batch_([1-9][0-9]?)(\.npz)?")
PIXELS = 3 * 32 * 32
CLASSES = 1000
MAX_BATCH = 2**30
"""Bytes that a batch may expand to (a published one has 0.4 GB)."""
BLOCK = 4096
"""Images a block."""


def read(
    source: Source, paths: Sequence[Path], scratch: Path, notes: dict[str, Any]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Imagenet32_train_npz.zip, or its directory: the batches in the order of their numbers; labels from 0."""
    with files.opened(paths[0], MAX_BATCH) as found:
        batches = files.named(found, lambda name: bool(BATCH.fullmatch(name)))
        for entry in _in_order(paths[0], batches):
            yield from _batch(entry, scratch)


def _in_order(raw: Path, batches: files.Files) -> list[files.Entry]:
    if not batches:
        raise UserError(f"{raw}: no train_data_batch_1.npz; expected Imagenet32_train_npz.zip")
    if any(not name.endswith(".npz") for name in batches):
        raise UserError(f"{raw}: is the edition in pickles, which may run code; get Imagenet32_train_npz.zip")
    numbers = sorted(int(name.removeprefix("train_data_batch_").removesuffix(".npz")) for name in batches)
    if numbers != list(range(1, len(numbers) + 1)):
        raise UserError(f"{raw}: has batches {numbers}; expected 1, 2, 3 and so on without a gap")
    return [batches[f"train_data_batch_{number}.npz"] for number in numbers]


def _batch(entry: files.Entry, scratch: Path) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    path = entry.local(scratch)
    try:
        with files.opened(path, MAX_BATCH) as arrays:
            missing = {"data.npy", "labels.npy"} - set(arrays)
            if missing:
                raise UserError(f"no {sorted(missing)[0]}; expected data.npy and labels.npy")
            yield from _rows(arrays["data.npy"], _labels(arrays["labels.npy"]))
    except UserError as error:
        raise UserError(f"{entry.where}: {error}".replace(f"{path}: ", "")) from error
    finally:
        if path != entry.path:
            path.unlink()


def _labels(entry: files.Entry) -> NDArray[np.int64]:
    with entry.open() as stream:
        header = Header.read(stream, entry.size)
        if header.dtype.kind not in "iu" or len(header.shape) != 1:
            raise ValueError(f"labels are {header.dtype} {list(header.shape)}; expected whole numbers [n]")
        labels = header.fill(stream).astype(np.int64)
        if len(labels) == 0 or labels.min() < 1 or labels.max() > CLASSES:
            raise ValueError(f"there are no labels, or one outside 1..{CLASSES}")
    return labels - 1


def _rows(entry: files.Entry, labels: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    with entry.open() as stream:
        header = Header.read(stream, entry.size)
        if header.dtype != np.uint8 or header.shape != (len(labels), PIXELS):
            raise ValueError(
                f"data is {header.dtype} {list(header.shape)}; expected uint8 [{len(labels)}, {PIXELS}], "
                "one row for each label"
            )
        start = 0
        for block in header.blocks(stream, BLOCK):
            yield to_nhwc(block, 32), labels[start : start + len(block)]
            start += len(block)
