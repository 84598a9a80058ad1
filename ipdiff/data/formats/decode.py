"""One encoded image to pixels; its bytes say of what format it is, not its name.

The published data sets' images are taken as they are, or refused. A user's own (`own`) may need more: they are turned
as their EXIF data says, and converted where `Source.modes` asks for it. docs/inputs.md has the rules.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ipdiff.data.formats import filekind
from ipdiff.data.formats.resize import MAX_PIXELS, PREPROCESS
from ipdiff.data.spec import Source
from ipdiff.errors import UserError, brief

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]

MODES = {1: "L", 3: "RGB"}
"""Pillow's mode of images with so many channels."""
PUBLISHED = ("PNG", "JPEG", "WEBP")
"""Formats that published data sets come in."""
FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
}
"""Formats of a user's own images, and the ends of their names."""
MAX_SIDE = 2**16 - 1
"""Pixels of the longer side of an image."""
BLOCK = 256
"""Images decoded before they are handed on, where they are small."""
_BLOCK_BYTES = 2**25

_TRANSPARENT = ("RGBA", "LA", "PA")
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_CONVERTIBLE = ("1", "L", "P", "RGB", "CMYK", "YCbCr", *_TRANSPARENT, *_SIXTEEN_BITS)
_ORIENTATION = 274
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""EXIF orientation -> the `PIL.Image.Transpose` that undoes it."""
_QUARTER_TURNS = (5, 6, 7, 8)
"""Those that exchange width and height."""


Fault = Literal["unreadable", "mode", "size"]


class Unusable(Exception):
    """Why an image cannot be used, as the end of a sentence.

    Attributes:
        reason: it without what the decoder said.
        fault: says what there is to do about it.
    """

    def __init__(self, reason: str, fault: Fault = "unreadable", detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.fault = reason, fault


def image(data: bytes, where: str, source: Source, size: tuple[int, int] | None = None) -> Pixels:
    """Decode one image of a published data set and bring it to the data set's size.

    Args:
        data: the encoded image: png, jpeg or webp.
        where: what messages call it.
        source: image_size, channels and preprocessing.
        size: (width, height) that it must have before the preprocessing; any if None.

    Returns:
        [image_size, image_size, channels] uint8. Orientation tags are not applied.

    Raises:
        UserError: it is damaged, no still image, or of another size or mode.
    """
    try:
        picture = _opened(data, PUBLISHED)
        if size not in (None, picture.size):
            raise Unusable(f"is {picture.width}x{picture.height} pixels, not {size[0]}x{size[1]}", "size")
        if (found := mode(picture)) != MODES[source.channels]:
            raise _another_mode(found, source)
        return _fitted(picture, source)
    except Unusable as error:
        raise UserError(f"{where}: {error}") from error


def own(data: bytes, source: Source) -> tuple[Pixels, str]:
    """Decode one of a user's own images: upright, in the mode and size that the data set has.

    Args:
        data: the encoded image, of one of FORMATS.
        source: image_size, channels, preprocessing and modes.

    Returns:
        [image_size, image_size, channels] uint8, and the mode that the file has.

    Raises:
        Unusable: it is damaged, no still image, or of another size or mode.
    """
    picture = _opened(data, tuple(FORMATS))
    found, wanted, orientation = mode(picture), MODES[source.channels], _orientation(picture)
    if found != wanted:
        if source.modes == "refuse":
            raise _another_mode(found, source)
        picture = _converted(picture, found, wanted)
    return _fitted(_turned(picture, orientation), source), found


def upright_size(data: bytes) -> tuple[int, int]:
    """Width and height of one of a user's own images, turned as its EXIF data says; its pixels are not decoded.

    Raises:
        Unusable: its header cannot be read.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(data), formats=tuple(FORMATS))
    except Exception as error:  # as with decoders
        raise Unusable("is damaged", detail=brief(error)) from error
    width, height = picture.size
    return (height, width) if _orientation(picture) in _QUARTER_TURNS else (width, height)


def mode(picture: Image) -> str:
    """Pillow's mode; "RGB with a transparent colour" and the like where a png or gif names one beside its colours."""
    if picture.mode == "I" and picture.format in ("PNG", "PPM"):  # older Pillows' mode of 16 bits
        name = "I;16"
    else:
        name = picture.mode
    return f"{name} with a transparent colour" if "transparency" in picture.info else name


def blocks(images: Iterable[tuple[Pixels, int]], source: Source) -> Iterator[tuple[Pixels, NDArray[np.int64]]]:
    """Images with their labels, stacked: [n, H, W, C] uint8 and [n] int64; n is smaller where images are large."""
    count = max(1, min(BLOCK, _BLOCK_BYTES // (source.image_size**2 * source.channels)))
    images = iter(images)
    while block := list(islice(images, count)):
        pixels, labels = zip(*block, strict=True)
        yield np.stack(pixels), np.array(labels, np.int64)


def _opened(data: bytes, formats: tuple[str, ...]) -> Image:
    """A still image of bounded size, decoded."""
    from PIL import Image, UnidentifiedImageError

    kind = filekind.of(data[: filekind.HEAD])
    if kind.name == "empty":
        raise Unusable("is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=formats)
            _check_size(picture)
            if getattr(picture, "n_frames", 1) != 1 and picture.format != "MPO":  # a JPEG with others behind it
                raise Unusable("has more than one frame")
            with _silenced() if picture.format == "TIFF" else nullcontext():
                picture.load()
        if picture.format == "PNG" and data[24] == 16 and "transparency" in picture.info:  # Pillow keeps 8 bits only
            raise Unusable("has a transparent colour of 16 bits", "mode")
        return picture
    except UnidentifiedImageError:
        if kind.name.upper() in formats:
            raise Unusable("is damaged", detail="its header") from None
        what = kind.words if kind.name != "unknown" else "of no known format"
        expected = "" if kind.stand_in else f", not {' or '.join(formats[:3])}"
        reason, _, detail = f"is {what}{expected}".partition(": ")
        raise Unusable(reason, detail=detail) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise Unusable(f"has more than {MAX_PIXELS} pixels") from None
    except Unusable:
        raise
    except Exception as error:  # decoders raise many kinds on damaged bytes
        raise Unusable("is damaged", detail=brief(error)) from error


@contextmanager
def _silenced() -> Iterator[None]:
    """For libtiff, which writes lines of its own on the process' stderr; what it found is in Pillow's error as well."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _check_size(picture: Image) -> None:
    """What decoding it will take is decided by its pixels, and for TIFF by those of a tile."""
    width, height = picture.size
    most = MAX_PIXELS // 2 if picture.format in ("WEBP", "AVIF") else MAX_PIXELS  # these keep several copies
    if width * height > most or max(width, height) > MAX_SIDE:
        raise Unusable(f"is {width}x{height} pixels, more than {most} or {MAX_SIDE} along a side")
    if picture.format == "TIFF":
        tags = getattr(picture, "tag_v2", {})
        tile = tags.get(322, 0) * tags.get(323, 0)
        if tile > MAX_PIXELS:
            raise Unusable(f"has tiles of {tile} pixels, more than {MAX_PIXELS}")


def _another_mode(found: str, source: Source) -> Unusable:
    return Unusable(f"is {found}, not {MODES[source.channels]} (channels: {source.channels})", "mode")


def _orientation(picture: Image) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return picture.getexif().get(_ORIENTATION, 1)
    except Exception as error:  # as with decoders
        raise Unusable("has damaged EXIF data", detail=brief(error)) from error


def _turned(picture: Image, orientation: int) -> Image:
    from PIL.Image import Transpose

    turn = _TURNS.get(orientation)
    return picture.transpose(Transpose[turn]) if turn else picture


def _converted(picture: Image, found: str, wanted: str) -> Image:
    """Transparency on white, 16-bit grey to its high byte, the rest by Pillow's `convert`."""
    from PIL import Image

    name, _, transparent = found.partition(" with ")
    if name not in _CONVERTIBLE:
        raise Unusable(f"is {found}, of which no conversion is known", "mode")
    if name in _SIXTEEN_BITS:
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if transparent or name in _TRANSPARENT:
        picture = picture.convert("RGBA")
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture.getchannel("A"))
        picture = white
    return picture.convert(wanted)


def _fitted(picture: Image, source: Source) -> Pixels:
    try:
        return np.array(PREPROCESS[source.chosen_preprocessing](picture, source.image_size))
    except ValueError as error:
        raise Unusable(str(error), "size") from error
