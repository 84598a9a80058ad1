"""npz files whose bytes depend on nothing but the arrays."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ipdiff.errors import UserError

_EPOCH = (1980, 1, 1, 0, 0, 0)


def save_npz(path: Path, **arrays: ArrayLike) -> None:
    """Write arrays as an uncompressed npz, by name in sorted order and without time stamps.

    Args:
        path: the file; replaced if it exists.
        arrays: any shape; any dtype but object.

    Raises:
        ValueError: an array holds Python objects.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            entry = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(arrays[name], order="C"), allow_pickle=False)


def load_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read every array of an npz: name -> array. Raises UserError where it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable npz file: {error}") from error
