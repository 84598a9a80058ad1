"""Where DVC's cache keeps a file: by its md5. Asked of DVC's configuration alone, which is quick to read."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path


def root() -> Path:
    """Where DVC's cache keeps files by their md5; where it would without DVC."""
    folder = None
    if Path(".dvc").is_dir() and find_spec("dvc") is not None:
        from dvc.config import Config

        folder = Config(dvc_dir=".dvc")["cache"].get("dir")
    return Path(os.path.relpath(folder or Path(".dvc", "cache")), "files", "md5")


def path_in(cache: Path, digest: str) -> Path:
    """Where a cache with this root keeps a file of this md5."""
    return cache / digest[:2] / digest[2:]
