"""Where the file of the Inception network is: found, or got, or one line that says what to do."""

from __future__ import annotations

import os
from pathlib import Path

from ipdiff.data import download
from ipdiff.data.spec import Archive
from ipdiff.errors import UserError
from ipdiff.metrics.spec import Inception

VARIABLE = "IPDIFF_INCEPTION"
"""Environment variable that may name the file."""


def obtain(spec: Inception, cache: Path | None = None) -> Path:
    """The network's file, downloaded if it is nowhere. Its digest is checked by whoever opens it.

    Args:
        spec: which file.
        cache: a directory in which it is looked for too, and downloaded to where there is no raw/.

    Raises:
        UserError: it is not where it was said to be, or cannot be downloaded.
        IntegrityError: what was downloaded is another file.
    """
    place = download.place(_archive(spec))
    if spec.raw is not None or VARIABLE in os.environ or place.exists():
        return find(spec)
    kept = cache and cache / spec.file
    if kept is not None and (kept.exists() or not place.parent.is_dir()):
        return download.obtain(_archive(spec), kept)
    return download.obtain(_archive(spec))


def find(spec: Inception) -> Path:
    """The network's file if it is on this machine. Its digest is checked by whoever opens it.

    Raises:
        UserError: it is not where it was said to be, or nowhere.
    """
    if spec.raw is not None:
        return Path(spec.raw)
    if VARIABLE in os.environ:
        path = Path(os.environ[VARIABLE])
        if not path.is_file():
            raise UserError(f"{VARIABLE} is '{path}', where no file is; set it to the path of {spec.file}")
        return path
    if (path := download.place(_archive(spec))).is_file():
        return path
    raise UserError(
        f"{spec.file} is missing: get it from {spec.url} and put it into raw/, or set {VARIABLE} to its path"
    )


def _archive(spec: Inception) -> Archive:
    return Archive(file=spec.file, sha256=spec.sha256, url=spec.url)
