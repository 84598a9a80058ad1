"""Stage `prepare`: raw data -> images.npy and labels.npy."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from ipdiff.data.formats.files import shown
from ipdiff.data.npy import npy_rows
from ipdiff.data.readers import read
from ipdiff.data.spec import Source
from ipdiff.errors import UserError
from ipdiff.work import progress


def run(source: Source, out: Path, raw: Sequence[Path] = ()) -> dict[str, Any]:
    """Read a data set and write it as arrays, block by block.

    Args:
        source: what the data is and what its images are.
        out: existing directory; gets images.npy ([N, H, W, C] uint8) and labels.npy ([N] int64, -1: none).
        raw: the raw files: `source.raw` or those of `source.archives`; none for embedded data.

    Returns:
        what there is to record of a user's own files: how many were read, passed over and converted, and the labels'
        names; empty for published data sets.

    Raises:
        UserError: the raw data is missing or not what `source` says.
    """
    row = (source.image_size, source.image_size, source.channels)
    labels = [np.zeros(0, np.int64)]
    notes: dict[str, Any] = {}
    count = 0
    progress.begin("images", source.expected_images)
    with (
        tempfile.TemporaryDirectory(dir=out, prefix="scratch-") as scratch,
        npy_rows(out / "images.npy", row, np.uint8) as append,
        closing(read(source, raw, Path(scratch), notes)) as blocks,
    ):
        for images, its_labels in blocks:
            keep = len(images) if source.limit is None else min(len(images), source.limit - count)
            append(images[:keep])
            labels.append(its_labels[:keep])
            count += keep
            progress.tell(count)
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
    return notes


def summary(notes: Mapping[str, Any]) -> str:
    """What `run` returns in one line: `5 images read (2 RGBA); passed over: 1 .txt; labels: a, b`."""
    parts = [f"{notes['images']} images read"]
    if notes["converted"]:
        parts[0] += f" ({_counts(notes['converted'])} converted)"
    if notes["passed_over"]:
        parts.append(f"passed over: {_counts(notes['passed_over'])}")
    if notes["broken"]:
        parts.append(f"broken and skipped: {_first(notes['broken'])}")
    parts.append(f"labels: {_first(notes['labels'])}" if notes["labels"] else "no labels")
    return "; ".join(parts)


def _counts(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counted.items()))


def _first(names: Sequence[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + rest
