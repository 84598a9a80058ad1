"""One reader for each kind of source: raw data in, uint8 NHWC images and int64 labels out."""

from __future__ import annotations

import io
import os
import stat
import warnings
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from ipdiff.errors import UserError
from ipdiff.spec import Source

Data = tuple[NDArray[np.uint8], NDArray[np.int64]]
Files = dict[str, Callable[[], bytes]]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_ENTRY = 64 * 2**20
"""Bytes that one image of a zip may expand to."""
MAX_EXPANSION = 100
"""How many times its own size a zip may expand to."""


def read(source: Source) -> Data:
    """Read a data set.

    Args:
        source: which reader, and what the images must be.

    Returns:
        images [N, H, W, C] uint8 and labels [N] int64, -1 where there is none; cut to `source.limit`.

    Raises:
        UserError: the raw data is missing or not what `source` says.
    """
    reader = READERS.get(source.reader)
    if reader is None:
        raise UserError(f"reader '{source.reader}' is unknown; use one of {', '.join(READERS)}")
    return reader(source)


def read_digits(source: Source) -> Data:
    """The 1797 handwritten digits inside scikit-learn: 8x8, grey levels 0..16 stretched to 0..255."""
    from sklearn.datasets import load_digits

    if (source.image_size, source.channels) != (8, 1):
        raise UserError(
            f"digits are 8x8 with 1 channel; image_size is {source.image_size}, channels is "
            f"{source.channels}; use 8 and 1"
        )
    values, labels = load_digits(return_X_y=True)
    images = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return images[: source.limit], labels[: source.limit].astype(np.int64)


def read_folder(source: Source) -> Data:
    """The png, jpg and webp images of a directory or .zip, in the sorted order of their paths.

    The label is the index of the first-level sub-directory where all images lie in sub-directories, else
    -1. Hidden files and `__MACOSX` are passed over; orientation tags are not applied.
    """
    raw = Path(source.raw or "")
    if not raw.exists():
        raise UserError(f"{raw}: no such file or directory; check `raw`")
    with ExitStack() as stack:
        files = _directory_files(raw) if raw.is_dir() else _zip_files(raw, stack)
        names = sorted(files)
        if not names:
            raise UserError(f"{raw}: no images; expected files ending in {', '.join(SUFFIXES)}")
        labels = _labels(names)[: source.limit]
        names = names[: source.limit]
        images = np.empty((len(names), source.image_size, source.image_size, source.channels), np.uint8)
        for index, name in enumerate(names):
            images[index] = _decode(files[name], f"{raw}: {name}", source)
    return images, labels


READERS: dict[str, Callable[[Source], Data]] = {"digits": read_digits, "folder": read_folder}


def _is_image(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return name.lower().endswith(SUFFIXES) and not any(p[0] == "." or p == "__MACOSX" for p in parts)


def _labels(names: list[str]) -> NDArray[np.int64]:
    """Index of each name's first directory among all; -1 for all names where one has no directory."""
    if not all("/" in name for name in names):
        return np.full(len(names), -1, np.int64)
    tops = [name.split("/", 1)[0] for name in names]
    index = {top: label for label, top in enumerate(sorted(set(tops)))}
    return np.array([index[top] for top in tops], np.int64)


def _directory_files(root: Path) -> Files:
    """Relative posix path -> bytes of every image under `root`; linked directories are not entered."""

    def refuse(error: OSError) -> NoReturn:
        raise UserError(f"{error.filename}: cannot be listed: {error.strerror}") from error

    files: Files = {}
    for folder, _, leaves in os.walk(root, onerror=refuse):
        for leaf in leaves:
            path = Path(folder, leaf)
            name = path.relative_to(root).as_posix()
            if _is_image(name):
                files[name] = path.read_bytes
    return files


def _zip_files(path: Path, stack: ExitStack) -> Files:
    """Path inside the archive -> bytes of every image; the archive stays open as long as `stack`."""
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"{path}: neither a directory nor a readable .zip: {error}") from error
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    for entry in entries:
        reason = _objection(entry)
        if reason:
            raise UserError(f"{path}: {entry.filename}: {reason}; pack the archive again without it")
    total = sum(entry.file_size for entry in entries)
    if total > MAX_EXPANSION * path.stat().st_size:
        raise UserError(
            f"{path}: expands to {total} bytes, over {MAX_EXPANSION} times its own size; unpack it "
            "yourself and give the directory if you trust it"
        )
    images = [entry for entry in entries if _is_image(entry.filename)]
    files: Files = {entry.filename: partial(archive.read, entry) for entry in images}
    if len(files) < len(images):
        raise UserError(f"{path}: {len(images) - len(files)} of its image names are there twice; pack it again")
    return files


def _objection(entry: zipfile.ZipInfo) -> str | None:
    """Why an archive with this entry is refused; None if it is not."""
    name = entry.filename.replace("\\", "/")
    if name.startswith("/") or name[1:2] == ":":
        return "absolute path"
    if ".." in name.split("/"):
        return "path leaves the archive ('..')"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "is a link"
    if entry.flag_bits & 1:
        return "is encrypted"
    if entry.file_size > MAX_ENTRY:
        return f"expands to {entry.file_size} bytes, more than {MAX_ENTRY}"
    return None


def _decode(load: Callable[[], bytes], where: str, source: Source) -> NDArray[np.uint8]:
    """Decode one image: [H, W, C] uint8. Raises UserError that names the file and the reason."""
    from PIL import Image

    size, mode = (source.image_size, source.image_size), {1: "L", 3: "RGB"}[source.channels]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is checked below
            image = Image.open(io.BytesIO(load()), formats=("PNG", "JPEG", "WEBP"))
        if image.size != size:
            raise UserError(
                f"{where}: is {image.width}x{image.height} pixels; expected {size[0]}x{size[1]} "
                "(image_size); resize it first"
            )
        if image.mode != mode:
            raise UserError(
                f"{where}: has mode {image.mode}; expected {mode} (channels is {source.channels}); convert it first"
            )
        if getattr(image, "n_frames", 1) != 1:
            raise UserError(f"{where}: has more than one frame; expected a still image")
        return np.asarray(image, dtype=np.uint8).reshape(*size, source.channels)
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders and zlib raise many kinds on damaged bytes
        raise UserError(f"{where}: cannot be read as an image: {error}") from error
