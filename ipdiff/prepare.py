"""Stage `prepare`: raw data -> images.npy and labels.npy."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ipdiff.data.readers import read
from ipdiff.spec import Source


def run(source: Source, out: Path) -> None:
    """Read a data set and write it as arrays.

    Args:
        source: where the data comes from and what its images are.
        out: existing directory; gets images.npy ([N, H, W, C] uint8) and labels.npy ([N] int64, -1: none).

    Raises:
        UserError: the raw data is missing or not what `source` says.
    """
    images, labels = read(source)
    np.save(out / "images.npy", np.ascontiguousarray(images))
    np.save(out / "labels.npy", np.ascontiguousarray(labels))
