"""Images side by side in one PNG, pixel by pixel: what is cut out of it is what a sample set holds."""

from __future__ import annotations

import math
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

COLUMNS = 8
"""Images a line."""


def sheet(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images [n, H, W, C] uint8 in lines of 8, without gaps: [lines * H, min(n, 8) * W, C]; what stays empty is 0."""
    count, height, width, channels = images.shape
    columns = min(count, COLUMNS)
    lines = math.ceil(count / columns)
    filled = np.zeros((lines * columns, height, width, channels), np.uint8)
    filled[:count] = images
    tiles = filled.reshape(lines, columns, height, width, channels).swapaxes(1, 2)
    return tiles.reshape(lines * height, columns * width, channels)


def png(images: NDArray[np.uint8]) -> bytes:
    """The sheet of images [n, H, W, 1 or 3] uint8, as a PNG; of one image, that image."""
    from PIL import Image

    stream = BytesIO()
    tiles = sheet(images)
    Image.fromarray(tiles[..., 0] if tiles.shape[-1] == 1 else tiles).save(stream, format="PNG")
    return stream.getvalue()
