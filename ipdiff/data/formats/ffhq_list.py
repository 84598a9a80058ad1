"""The published list of FFHQ's images, ffhq-dataset-v2.json: a digest of every image's pixels.

The list is large (268 MB), mostly of face landmarks: what is needed of it is found without reading it into memory.

Source: NVlabs/ffhq-dataset download_ffhq.py@193deb6, which holds every image it downloads against this list.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ipdiff.errors import IntegrityError, UserError

NAME = "ffhq-dataset-v2.json"
MD5 = "425ae20f06a4da1d4dc0f46d40ba5fd6"
"""Of the list itself, as its authors publish it."""

_THUMBNAIL = re.compile(rb'"thumbnail"\s*:\s*(\{[^{}]*\})')


def pixel_digests(path: Path) -> dict[int, str]:
    """Number of an image -> md5 of the pixels of its thumbnail ([128, 128, 3] uint8, rows of RGB).

    Raises:
        IntegrityError: the file is not the published list.
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            if (found := hashlib.file_digest(file, "md5").hexdigest()) != MD5:
                raise IntegrityError(str(path), f"md5 {MD5}", f"md5 {found}")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
                thumbnails = _THUMBNAIL.findall(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    entries = map(json.loads, thumbnails)
    return {int(PurePosixPath(entry["file_path"]).stem): entry["pixel_md5"] for entry in entries}


def check(images: NDArray[np.uint8], path: Path) -> None:
    """Hold images, in the order of their numbers from 0, against the published list.

    Args:
        images: [N, 128, 128, 3] uint8.
        path: the list.

    Raises:
        IntegrityError: an image is not what was published; the first is named. Or the list is not.
        UserError: the list cannot be read.
    """
    known = pixel_digests(path)
    for number, image in enumerate(images):
        found = hashlib.md5(image.tobytes(), usedforsecurity=False).hexdigest()
        if known.get(number) != found:
            expected = known.get(number, "none: it is not in the list")
            raise IntegrityError(f"image {number:05d}.png", f"pixel md5 {expected} of {path}", f"pixel md5 {found}")


def digest(images: NDArray[np.uint8]) -> str:
    """sha256 over the pixels of all images, in their order: what two people can compare who have no list."""
    found = hashlib.sha256()
    for image in images:
        found.update(image.tobytes())
    return found.hexdigest()
