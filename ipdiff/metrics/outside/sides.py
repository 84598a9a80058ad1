"""Sets of images from outside the pipeline: files, folders and arrays, with the statistics that they hold."""

from __future__ import annotations

import io
import math
import os
import re
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ipdiff.data import readers
from ipdiff.data.arrays import Npz, open_npz
from ipdiff.data.formats import decode, filekind, files
from ipdiff.data.formats.resize import PREPROCESS
from ipdiff.data.images import CHANNELS, check_images, load_images, to_uint8
from ipdiff.data.readers.images import UnusableImages
from ipdiff.data.spec import Source
from ipdiff.errors import UserError, brief
from ipdiff.metrics.spec import METRICS

Images = Path | str | NDArray[np.uint8] | Tensor
"""Images, or where they or their statistics are; see `Side.read`."""

RESIZED = "center-crop"
"""What is made of images of another size, where one is asked for: what `prepare` makes of a folder's."""

MOMENTS = {name: kind.moments for name, kind in METRICS.items() if kind.moments}
"""Metric -> the names of its moments in a file."""

_HIDDEN = r"(^|/)(\.|__MACOSX/)"

_EXPECTED = (
    "an npz with images (arr_0) or statistics (mu, sigma, mu_s, sigma_s), an npy of images, or a folder or zip of them"
)


@dataclass(frozen=True)
class Side:
    """One of two sets: its images and its statistics, as far as it has them; `name` is for messages."""

    name: str
    images: NDArray[np.uint8] | None
    statistics: Mapping[str, NDArray[Any]]

    @staticmethod
    def read(source: Images, name: str, size: int | None = None, *, convert: bool = False) -> Side:
        """Take images as they are, or read a file or folder; its bytes decide what it is.

        Args:
            source: images, uint8 [N, H, W, C], an array or a tensor; or a tensor of floats [N, C, H, W] in [-1, 1];
                or the path of an npz (arr_0, or mu, sigma, mu_s, sigma_s, or both; others are not read), of an npy
                of images, or of a folder, .zip or .tar.gz of square images of one size and mode (grey or RGB), read as
                docs/inputs.md says, without labels.
            name: what messages call an array.
            size: side of the square that images of another size are made: halved with a box filter while the shorter
                side is twice as long or more, bicubic to `size`, the centre cut out (guided-diffusion's rule). A folder
                may then hold images of any size.
            convert: make all images RGB, as `modes: convert` does: a folder may then hold images of any mode.

        Raises:
            UserError: it is none of these, or is damaged; its images are not uint8 [N, H, W, C] with N >= 2 and C 1 or
                3; its statistics are not finite numbers [d] and [d, d].
        """
        if size is not None and size < 1:
            raise UserError(f"size is {size}; use 1 or more pixels")
        source = _array_of(source, name)
        if isinstance(source, np.ndarray):
            check_images(source.shape, source.dtype, name)
            return Side(name, _usable(name, source, size, convert), {})
        if not isinstance(source, str | os.PathLike):
            raise UserError(f"{name}: found {type(source).__name__}; expected images as an array or tensor, or a path")
        path, name = Path(source), str(source)
        kind = filekind.Kind("folder", "a folder") if path.is_dir() else filekind.look(path)
        if kind.name in ("folder", "zip", "gzip"):
            return Side(name, _usable(name, _folder(path, kind, size, convert), size, convert), {})
        if kind.name == "npy":
            return Side(name, _usable(name, load_images(path), size, convert), {})
        if kind.name != "npz":
            raise UserError(f"{path}: is {kind.words}; expected {_EXPECTED}")
        with open_npz(path) as file:
            pictures = "arr_0" in file.names
            shape = file.header("arr_0").shape if pictures else ()
            if pictures:
                check_images(shape, file.header("arr_0").dtype, path)
            elif not {"mu", "sigma"} <= {*file.names}:
                raise UserError(f"{path}: expected {_EXPECTED}; found {brief(', '.join(file.names))}")
            statistics = _moments(file) | _about(file)
            images = _usable(name, file.read("arr_0"), size, convert) if pictures else None
        if size is not None and statistics and shape and shape[1:3] != (size, size):
            raise UserError(f"{path}: holds statistics of images {list(shape[1:])}; leave the size out")
        if convert and statistics and shape and shape[3] == 1:
            raise UserError(f"{path}: holds statistics of grey images; leave the conversion out")
        return Side(name, images, statistics)

    @property
    def shape(self) -> list[int] | None:
        """Of an image, [H, W, C]; None where the file does not say."""
        if self.images is not None:
            return list(self.images.shape[1:])
        return [int(size) for size in self.statistics["image_shape"]] if "image_shape" in self.statistics else None

    @property
    def n(self) -> int | None:
        """Number of images; None where the file does not say."""
        if self.images is not None:
            return len(self.images)
        return int(self.statistics["n"]) if "n" in self.statistics else None

    def lacks(self, metric: str) -> bool:
        """Whether the metric needs moments that the file does not hold."""
        return metric in MOMENTS and not self.statistics.keys() >= set(MOMENTS[metric])

    def must_be_seen(self, wanted: Collection[str]) -> bool:
        """Whether something that is wanted has to be computed from the images."""
        return self.images is not None and any(name not in MOMENTS or self.lacks(name) for name in wanted)


def _usable(name: str, images: NDArray[np.uint8], size: int | None, convert: bool) -> NDArray[np.uint8]:
    """Two images or more, of the size and number of channels that are asked for."""
    if len(images) < 2:
        raise UserError(f"{name}: a Frechet distance needs 2 images or more; got {len(images)}")
    if convert and images.shape[3] == 1:
        images = np.repeat(images, 3, axis=3)
    if size is None or images.shape[1:3] == (size, size):
        return images
    from PIL import Image

    made = PREPROCESS[RESIZED]
    try:
        return np.stack([made(Image.fromarray(one[:, :, 0] if one.shape[2] == 1 else one), size) for one in images])
    except ValueError as error:
        raise UserError(f"{name}: an image {brief(error)}") from None


def _array_of(source: Images, name: str) -> Any:
    """A tensor as an array of images; anything else as it is."""
    if not isinstance(source, Tensor):
        return source
    if not source.is_floating_point():
        return source.detach().cpu().numpy()
    shape = list(source.shape)
    if len(shape) != 4 or shape[1] not in CHANNELS or 0 in shape:
        raise UserError(f"{name}: floats {shape}; expected [N, C, H, W] in [-1, 1], C 1 or 3, as networks give them")
    least, most = float(source.min()), float(source.max())
    if not (-1.001 <= least < 0 and most <= 1.001):
        remedy = "x * 2 - 1 if they are in [0, 1]" if 0 <= least <= most <= 1 else "clamp them, or scale them"
        raise UserError(f"{name}: floats from {least:.4g} to {most:.4g}; expected [-1, 1]: {remedy}")
    return to_uint8(source)


def _folder(path: Path, kind: filekind.Kind, size: int | None, convert: bool) -> NDArray[np.uint8]:
    """The images of a folder or archive, [N, H, W, C], all of the first's mode or RGB, of its size if none is asked."""
    height, width, channels = _first(path, kind)
    channels = 3 if convert else channels
    if height != width and size is None:
        raise UserError(
            f"{path}: the first image is {width}x{height} pixels; a folder's images have to be square, or a size is "
            "asked for (--size); others can be given as an npz"
        )
    made = None if size is None else RESIZED
    modes = "convert" if convert else "refuse"
    source = Source("folder", size or height, channels, raw=str(path), preprocessing=made, modes=modes, labels="none")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return np.concatenate([images for images, _ in readers.read(source, [path], Path(scratch), {})])
        except UnusableImages as error:  # a data set's settings do not exist here
            setting = f" (channels: {channels})"
            sizes, mixed = " (image_size)" in error.found, setting in error.found
            found = brief(error.found.replace(" (image_size)", "").replace(setting, ""), 220)
            remedies = "; --size N makes them one size" * (size is None and sizes)
            raise UserError(found + remedies + "; --convert makes all RGB" * mixed) from None


def _first(path: Path, kind: filekind.Kind) -> tuple[int, int, int]:
    """Height, width, channels of the first image of a folder or archive; what is no image says so when it is read."""
    from PIL import Image, UnidentifiedImageError

    suffixes = tuple(suffix for ends in decode.FORMATS.values() for suffix in ends)
    with files.opened(path) as found:
        names = sorted(name for name in found if name.lower().endswith(suffixes) and not re.search(_HIDDEN, name))
        if not names:
            raise UserError(f"{path}: is {kind.words}, without images; expected {_EXPECTED}")
        data = found[names[0]].read()
    try:
        with Image.open(io.BytesIO(data), formats=tuple(decode.FORMATS)) as picture:  # its header alone
            width, height, mode = *picture.size, picture.mode
    except UnidentifiedImageError:
        what = filekind.of(data[: filekind.HEAD]).words
        raise UserError(f"{path}: {files.shown(names[0])} cannot be read as an image; it is {what}") from None
    except Exception as error:  # Pillow raises many kinds on damaged bytes
        raise UserError(f"{path}: {files.shown(names[0])}: cannot be read: {brief(error)}") from None
    return height, width, 1 if mode == "L" else 3


def _moments(file: Npz) -> dict[str, NDArray[Any]]:
    """The means and covariances in a file: mu [d] and sigma [d, d], finite real numbers."""
    found: dict[str, NDArray[Any]] = {}
    for pair in MOMENTS.values():
        there = [name for name in pair if name in file.names]
        if len(there) == 1:
            raise UserError(f"{file.path}: holds {there[0]} alone; expected both {' and '.join(pair)}, or neither")
        if not there:
            continue
        mu, sigma = headers = [file.header(name) for name in pair]
        real = all(header.dtype.kind in "fiu" for header in headers)
        if not real or len(mu.shape) != 1 or 0 in mu.shape or sigma.shape != mu.shape * 2:
            shown = " and ".join(
                f"{name} {brief(header.dtype, 20)} {brief(list(header.shape), 30)}"
                for name, header in zip(pair, headers, strict=True)
            )
            raise UserError(f"{file.path}: holds {shown}; expected real numbers [d] and [d, d]")
        for name in pair:
            found[name] = file.read(name)
            if bad := int((~np.isfinite(found[name])).sum()):
                raise UserError(f"{file.path}: {name} has {bad} values that are not finite, of {found[name].size}")
    return found


def _about(file: Npz) -> dict[str, NDArray[Any]]:
    """What a file says of its images: n [], image_shape [3], features []."""
    found: dict[str, NDArray[Any]] = {}
    for name, kinds, size in (("n", "iu", 1), ("image_shape", "iu", 3), ("features", "U", 1)):
        if name not in file.names:
            continue
        header = file.header(name)
        if header.dtype.kind not in kinds or math.prod(header.shape) != size:
            expected = "a text" if kinds == "U" else f"{size} whole number{'s' * (size > 1)}"
            shown = f"{brief(header.dtype, 20)} {brief(list(header.shape), 30)}"
            raise UserError(f"{file.path}: {name} is {shown}; expected {expected}")
        found[name] = file.read(name).reshape(-1) if size > 1 else file.read(name).reshape(())
    return found
