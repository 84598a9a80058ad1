"""Features of the pipeline's own classifier."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ipdiff.data.images import to_network
from ipdiff.device.compute import configure
from ipdiff.device.spec import Compute
from ipdiff.errors import UserError
from ipdiff.metrics.features import classifier_net
from ipdiff.metrics.features.pixels import Features, pixels
from ipdiff.metrics.spec import Classifier


class ClassifierFeatures:
    """Features of the pipeline's own classifier."""

    name = "classifier"
    batch_size = 500

    def __init__(self, path: Path, spec: Classifier, compute: Compute) -> None:
        """Load the net. Raises UserError where the file is not a net of `spec`, or the device is absent."""
        self._device = configure(compute)
        self._net = classifier_net.load(path, spec).to(self._device)
        self.digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()

    @torch.no_grad()
    def __call__(self, images: NDArray[np.uint8]) -> Features:
        """See `Extractor`. Raises UserError for images of another shape than the net was trained on."""
        expected = (self._net.image_size, self._net.image_size, self._net.channels)
        if images.shape[1:] != expected:
            raise UserError(
                f"images are {list(images.shape[1:])} [H, W, C]; the classifier was trained on {list(expected)}"
            )
        pool, spatial = self._net.features(to_network(images).to(self._device))
        return {"pool": pool.cpu().numpy(), "spatial": spatial.cpu().numpy(), "pixel": pixels(images)}
