"""Features that are the pixels themselves: no network, no file, no labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ipdiff.device.spec import Compute
from ipdiff.metrics.features.pixels import Features, pixels


class PixelFeatures:
    """The pooled features are those of `pixel_fd`, for whoever has neither labels nor a feature network."""

    name, digest, batch_size = "pixels", "1", 500

    def __init__(self, path: Path | None, settings: object, compute: Compute) -> None:
        """It has no file and no settings, and computes on the CPU."""

    def __call__(self, images: NDArray[np.uint8]) -> Features:
        """See `Extractor`."""
        found = pixels(images)
        return {"pool": found, "pixel": found}
