"""Pixels as features, and what every extractor of features returns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.nn import functional as F

from ipdiff.data.images import to_network

Features = dict[str, NDArray[Any]]
"""Kind of feature -> one row for each image."""

PIXEL_SIZE = 32
"""Largest side of the pixel features: larger images are averaged down, or their covariance fits nowhere."""


def pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Flattened pixels in [-1, 1]: [n, H, W, C] uint8 -> [n, P] float32; P = C H W up to 32x32 pixels.

    Larger images are averaged over squares of ceil(size / 32) pixels, cut off at an image's shorter side.
    """
    x = to_network(images)
    factor = math.ceil(max(images.shape[1:3]) / PIXEL_SIZE)
    square = tuple(min(factor, side) for side in images.shape[1:3])
    return (F.avg_pool2d(x, square) if factor > 1 else x).flatten(1).numpy()
