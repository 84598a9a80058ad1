"""What is made of an image of another size, by the names that `Source.preprocessing` has for it.

Each takes an RGB or grey Pillow image and the wanted side, and returns [size, size, C] uint8, or raises ValueError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]

MAX_PIXELS = 3 * 2**24
"""Pixels (8192x6144) of an image, or of what a rule makes of it on the way: 1 GiB is then enough for every decoder."""
_CROP_TOP, _CROP_LEFT, _CROP_SIDE = 57, 25, 128
"""The face in an aligned CelebA image: 128 pixels around row 121, column 89."""


def none(image: Image, size: int) -> Pixels:
    """The image as it is. Raises ValueError if its size is another."""
    if image.size != (size, size):
        raise ValueError(f"is {image.width}x{image.height} pixels, not {size}x{size} (image_size)")
    return pixels(image)


def pixels(image: Image) -> Pixels:
    """A Pillow image as [H, W, C] uint8."""
    array = np.asarray(image, dtype=np.uint8)
    return array if array.ndim == 3 else array[:, :, None]


def center_crop(image: Image, size: int) -> Pixels:
    """Halve with a box filter while the shorter side is 2 size or more, then bicubic to size, then crop the centre.

    Source: guided-diffusion guided_diffusion/image_datasets.py (center_crop_arr).
    """
    from PIL.Image import Resampling

    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    return _centre(_shorter_side(image, size, Resampling.BICUBIC), size)


def box_crop(image: Image, size: int) -> Pixels:
    """Shorter side to size with a box filter, then crop the centre: the LSUN images of the paper.

    Source: DDPM-IP datasets/lsun_bedroom.py.
    """
    from PIL.Image import Resampling

    return _centre(_shorter_side(image, size, Resampling.BOX), size)


def crop128(image: Image, size: int) -> Pixels:
    """The 128x128 pixels around the face of an aligned CelebA image, bilinear with antialiasing to size.

    Source: ddim datasets/__init__.py.
    """
    from PIL.Image import Resampling

    right, bottom = _CROP_LEFT + _CROP_SIDE, _CROP_TOP + _CROP_SIDE
    face = image.crop((_CROP_LEFT, _CROP_TOP, right, bottom))
    return pixels(face.resize((size, size), Resampling.BILINEAR))


def resize(image: Image, size: int) -> Pixels:
    """Straight to size x size, whatever the aspect ratio, by OpenCV's INTER_LINEAR: the paper's CelebA images."""
    return linear(pixels(image), size, size)


def linear(image: Pixels, height: int, width: int) -> Pixels:
    """Bilinear without antialiasing, in the fixed point of OpenCV's `resize` (INTER_LINEAR, uint8): bit for bit.

    OpenCV weighs neighbours by integers out of 2048, first along x, then along y, and drops low bits between
    the two: a correctly rounded bilinear filter differs from it by 1 in many pixels.

    Args:
        image: [H, W, C] uint8.
        height: of the result, pixels.
        width: of the result, pixels.

    Returns:
        [height, width, C] uint8.
    """
    left, right, w_left, w_right = _taps(image.shape[1], width)
    wide = image.astype(np.int64)
    rows = (wide[:, left] * w_left[:, None] + wide[:, right] * w_right[:, None]) >> 4
    top, bottom, w_top, w_bottom = _taps(image.shape[0], height)
    sums = ((rows[top] * w_top[:, None, None]) >> 16) + ((rows[bottom] * w_bottom[:, None, None]) >> 16)
    return np.clip((sums + 2) >> 2, 0, 255).astype(np.uint8)


def _taps(length: int, wanted: int) -> tuple[NDArray[np.int64], ...]:
    """For each place of a resized line: its two neighbours in the line and their weights out of 2048."""
    place = ((np.arange(wanted) + 0.5) * (length / wanted) - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.int64)
    share = place - first.astype(np.float32)
    weights = [np.rint(part * np.float32(2048)).astype(np.int64) for part in (np.float32(1) - share, share)]
    return np.clip(first, 0, length - 1), np.clip(first + 1, 0, length - 1), *weights


def _shorter_side(image: Image, size: int, filter: int) -> Image:
    from PIL.Image import Resampling

    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"is {image.width}x{image.height} pixels: {width}x{height} with a shorter side of {size}, "
            f"more than {MAX_PIXELS}"
        )
    return image.resize((width, height), Resampling(filter))


def _centre(image: Image, size: int) -> Pixels:
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return pixels(image.crop((left, top, left + size, top + size)))


PREPROCESS: dict[str, Callable[[Image, int], Pixels]] = {
    "none": none,
    "center-crop": center_crop,
    "box-crop": box_crop,
    "resize": resize,
    "crop128": crop128,
}
