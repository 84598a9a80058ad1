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

from ipdiff.data import readers
from ipdiff.data.arrays import Npz, open_npz
from ipdiff.data.formats import decode, filekind, files
from ipdiff.data.images import check_images, load_images
from ipdiff.data.readers.images import UnusableImages
from ipdiff.data.spec import Source
from ipdiff.errors import UserError, brief
from ipdiff.metrics.spec import METRICS

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
    def read(source: Path | str | NDArray[np.uint8], name: str) -> Side:
        """Take images as they are, or read a file or folder; its bytes decide what it is.

        Args:
            source: images, uint8 [N, H, W, C]; or the path of an npz (arr_0, or mu, sigma, mu_s, sigma_s, or both;
                other arrays are not read), of an npy of images, or of a folder, .zip or .tar.gz of square images of
                one size and mode (grey or RGB), read as docs/inputs.md says, without labels.
            name: what messages call an array.

        Raises:
            UserError: it is none of these, or is damaged; its images are not uint8 [N, H, W, C] with N >= 2 and C 1 or
                3; its statistics are not finite numbers [d] and [d, d].
        """
        if isinstance(source, np.ndarray):
            check_images(source.shape, source.dtype, name)
            return Side(name, _two_or_more(name, source), {})
        if not isinstance(source, str | os.PathLike):
            raise UserError(f"{name}: found {type(source).__name__}; expected images as a numpy array, or a path")
        path, name = Path(source), str(source)
        kind = filekind.Kind("folder", "a folder") if path.is_dir() else filekind.look(path)
        if kind.name in ("folder", "zip", "gzip"):
            return Side(name, _two_or_more(name, _folder(path, kind)), {})
        if kind.name == "npy":
            return Side(name, _two_or_more(name, load_images(path)), {})
        if kind.name != "npz":
            raise UserError(f"{path}: is {kind.words}; expected {_EXPECTED}")
        with open_npz(path) as file:
            pictures = "arr_0" in file.names
            if pictures:
                header = file.header("arr_0")
                check_images(header.shape, header.dtype, path)
            elif not {"mu", "sigma"} <= {*file.names}:
                raise UserError(f"{path}: expected {_EXPECTED}; found {brief(', '.join(file.names))}")
            statistics = _moments(file) | _about(file)
            images = _two_or_more(name, file.read("arr_0")) if pictures else None
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


def _two_or_more(name: str, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if len(images) < 2:
        raise UserError(f"{name}: a Frechet distance needs 2 images or more; got {len(images)}")
    return images


def _folder(path: Path, kind: filekind.Kind) -> NDArray[np.uint8]:
    """The images of a folder or archive, [N, H, W, C], all of the size and mode of the first."""
    size, channels = _first(path, kind)
    source = Source("folder", size, channels, raw=str(path), labels="none")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return np.concatenate([images for images, _ in readers.read(source, [path], Path(scratch), {})])
        except UnusableImages as error:  # a data set's settings do not exist here
            raise UserError(brief(error.found, 280)) from None


def _first(path: Path, kind: filekind.Kind) -> tuple[int, int]:
    """Side and channels of the first image of a folder or archive; what is no image says so when it is read."""
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
    if width != height:
        raise UserError(
            f"{path}: {files.shown(names[0])} is {width}x{height} pixels; a folder's images have to be square, others "
            "can be given as an npz"
        )
    return height, 1 if mode == "L" else 3


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
