"""One encoded image to pixels: png, jpeg or webp, told apart by their bytes."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray

from ipdiff.data.files import Entry
from ipdiff.data.resize import PREPROCESS
from ipdiff.errors import UserError
from ipdiff.spec import Source

MODES = {1: "L", 3: "RGB"}
"""Pillow's mode of images with so many channels."""


def entry(file: Entry, source: Source, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """The image in a file of an archive; see `image`."""
    return image(file.read(), file.where, source, size)


def image(data: bytes, where: str, source: Source, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Decode one image and bring it to the data set's size.

    Args:
        data: the encoded image.
        where: what messages call it.
        source: image_size, channels and preprocessing.
        size: (width, height) that it must have before the preprocessing; any if None.

    Returns:
        [image_size, image_size, channels] uint8. Orientation tags are not applied.

    Raises:
        UserError: it is damaged, no still image, or of another size or mode.
    """
    from PIL import Image

    mode = MODES[source.channels]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
        if size not in (None, picture.size):
            raise UserError(f"{where}: is {picture.width}x{picture.height} pixels; expected {size[0]}x{size[1]}")
        if picture.mode != mode:
            raise UserError(
                f"{where}: has mode {picture.mode}; expected {mode} (channels is {source.channels}); convert it first"
            )
        if getattr(picture, "n_frames", 1) != 1:
            raise UserError(f"{where}: has more than one frame; expected a still image")
        preprocess = PREPROCESS[source.chosen_preprocessing]
        if preprocess is PREPROCESS["none"] and picture.size != (source.image_size, source.image_size):
            raise UserError(
                f"{where}: is {picture.width}x{picture.height} pixels; expected {source.image_size}x"
                f"{source.image_size} (image_size); resize it first, or choose a preprocessing"
            )
        return np.array(preprocess(picture, source.image_size))
    except UserError:
        raise
    except Exception as error:  # decoders raise many kinds on damaged bytes
        raise UserError(f"{where}: cannot be read as an image: {' '.join(str(error).split())}") from error
