"""Features that were computed before, in the user's cache directory, by the digest of the images."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ipdiff import __version__
from ipdiff.data.arrays import load_npz, save_npz
from ipdiff.errors import UserError
from ipdiff.metrics.features.extractors import Extractor
from ipdiff.metrics.sets import measure
from ipdiff.metrics.spec import Measured

VARIABLE = "IPDIFF_CACHE"
"""Environment variable that names the cache's directory; empty: nothing is kept."""

_BLOCK = 1024
"""Images whose bytes are hashed together."""


def folder() -> Path | None:
    """Where the cache is: $IPDIFF_CACHE, or `ipdiff` where the system keeps caches; None where there is none."""
    if (named := os.environ.get(VARIABLE)) is not None:
        return Path(named) if named else None
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base, "ipdiff")
    home = Path(os.path.expanduser("~"))
    if not home.is_absolute():
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "ipdiff"


def measured(
    extractor: Extractor, images: NDArray[np.uint8], *, pooled: bool, device: str, use: bool = True
) -> Measured:
    """Look at images, or say what was seen when they were looked at before.

    An entry is kept by the images' bytes, the features' name and digest, the kind of device, and the versions of this
    package and torch. Features without a digest are not kept. A damaged entry is made again; where nothing can be
    written nothing is kept.

    Args:
        extractor: what computes the features.
        images: [N, H, W, C] uint8, N >= 2.
        pooled: the pooled features are needed.
        device: cpu or cuda.
        use: read and write the cache.

    Raises:
        UserError: as `measure`.
    """
    place = folder() if use and extractor.digest else None
    if place is None:
        return measure(extractor, images, pooled=pooled)
    path = place / "features" / f"{_key(extractor, images, device)}.npz"
    if (found := _read(path)) is not None and not (pooled and found.pooled is None):
        return found
    seen = measure(extractor, images, pooled=pooled)
    _write(path, seen)
    return seen


def _key(extractor: Extractor, images: NDArray[np.uint8], device: str) -> str:
    about = [__version__, torch.__version__, extractor.name, extractor.digest, device, list(images.shape)]
    digest = hashlib.sha256(json.dumps(about).encode())
    for start in range(0, len(images), _BLOCK):
        digest.update(images[start : start + _BLOCK].tobytes())
    return digest.hexdigest()


def _read(path: Path) -> Measured | None:
    if not path.is_file():
        return None
    try:
        arrays = load_npz(path)
        score = arrays.pop("inception_score", None)
        pooled = arrays.pop("pooled", None)
        return Measured(arrays, None if score is None else float(score), pooled)
    except (UserError, OSError, ValueError):
        return None


def _write(path: Path, seen: Measured) -> None:
    more = {"inception_score": seen.inception_score, "pooled": seen.pooled}
    arrays = {**seen.statistics, **{name: value for name, value in more.items() if value is not None}}
    part = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=f".{path.stem[:16]}.", dir=path.parent)
        os.close(handle)
        save_npz(Path(part), **arrays)
        os.replace(part, path)
    except OSError:  # a full disk, a home that is read-only
        if part:
            Path(part).unlink(missing_ok=True)
