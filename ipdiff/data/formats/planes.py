"""Flat rows of colour planes, as CIFAR-10 and the downsampled ImageNet store images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def to_nhwc(rows: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """[n, 3 size size] uint8, the red plane first, each row-major -> [n, size, size, 3] uint8, contiguous."""
    return np.ascontiguousarray(rows.reshape(-1, 3, size, size).transpose(0, 2, 3, 1))
