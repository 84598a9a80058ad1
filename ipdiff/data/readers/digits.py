"""The 1797 handwritten digits inside scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipdiff.data.spec import Source


def read(
    source: Source, paths: Sequence[Path], scratch: Path, notes: dict[str, Any]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """8x8, grey levels 0..16 stretched to 0..255."""
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    images = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    yield images, np.asarray(labels, np.int64)
