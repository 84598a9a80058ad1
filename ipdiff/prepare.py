"""Stage `prepare`: raw data -> images.npy and labels.npy."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from ipdiff.data.npy import npy_rows
from ipdiff.data.readers import read
from ipdiff.errors import UserError
from ipdiff.spec import Source


def run(
    source: Source, out: Path, raw: Sequence[Path] = (), progress: Callable[[int], None] = lambda done: None
) -> None:
    """Read a data set and write it as arrays, block by block.

    Args:
        source: what the data is and what its images are.
        out: existing directory; gets images.npy ([N, H, W, C] uint8) and labels.npy ([N] int64, -1: none).
        raw: the raw files: `source.raw` or those of `source.archives`; none for embedded data.
        progress: is told how many images are written.

    Raises:
        UserError: the raw data is missing or not what `source` says.
    """
    row = (source.image_size, source.image_size, source.channels)
    labels = [np.zeros(0, np.int64)]
    count = 0
    with (
        tempfile.TemporaryDirectory(dir=out, prefix="scratch-") as scratch,
        npy_rows(out / "images.npy", row, np.uint8) as append,
        closing(read(source, raw, Path(scratch))) as blocks,
    ):
        for images, its_labels in blocks:
            keep = len(images) if source.limit is None else min(len(images), source.limit - count)
            append(images[:keep])
            labels.append(its_labels[:keep])
            count += keep
            progress(count)
            if count == source.limit:
                break
    where = ", ".join(map(str, raw))
    if not count:
        raise UserError(f"{where}: holds no images")
    if source.limit is None and source.num_images not in (None, count):
        raise UserError(
            f"{where}: holds {count} images; expected {source.num_images} (num_images): incomplete, or another edition"
        )
    np.save(out / "labels.npy", np.concatenate(labels))
