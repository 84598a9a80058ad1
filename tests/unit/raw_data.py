"""Helpers of the readers' tests: prepare a source, and the one line with which it is refused."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipdiff.data import prepare
from ipdiff.data.spec import Source
from ipdiff.errors import UserError

SIZES = {"cifar10": (32, 3), "imagenet32": (32, 3), "lsun": (64, 3), "celeba": (64, 3), "ffhq": (128, 3)}
SIZES |= {"fashion_mnist": (28, 1), "folder": (8, 1)}


def source(reader: str, raw: Path, **fields: Any) -> Source:
    """A data set of this reader with its usual size."""
    size, channels = SIZES[reader]
    return Source(**{"reader": reader, "image_size": size, "channels": channels, "raw": str(raw), **fields})


def prepared(chosen: Source) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels that `prepare` writes; it must leave nothing else behind."""
    with tempfile.TemporaryDirectory() as folder:
        prepare.run(chosen, Path(folder), [Path(chosen.raw)] if chosen.raw else [])
        assert sorted(path.name for path in Path(folder).iterdir()) == ["images.npy", "labels.npy"]
        images, labels = (np.load(Path(folder) / f"{name}.npy") for name in ("images", "labels"))
    assert (images.dtype, labels.dtype, labels.shape) == (np.uint8, np.int64, images.shape[:1])
    return images, labels


def refusal(chosen: Source) -> str:
    """The one line with which a source is refused; it names the raw file."""
    with pytest.raises(UserError) as caught:
        prepared(chosen)
    text = str(caught.value)
    assert "\n" not in text
    assert chosen.raw is None or chosen.raw in text
    assert "scratch-" not in text
    return text
