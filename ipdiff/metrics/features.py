"""Features of images and their moments: what a Frechet distance compares."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from ipdiff.compute import configure
from ipdiff.data.images import to_network
from ipdiff.errors import UserError
from ipdiff.metrics import classifier
from ipdiff.metrics.frechet import Moments
from ipdiff.spec import Classifier, Compute

Features = dict[str, NDArray[Any]]

NAMES = {"pool": "", "spatial": "_s", "pixel": "_pixel"}
"""Kind of feature -> ending of its mu and sigma in a statistics file (the ADM evaluator's names first)."""

PIXEL_SIZE = 32
"""Largest side of the pixel features: larger images are averaged down, or their covariance fits nowhere."""


class Extractor(Protocol):
    """Anything that turns images into features."""

    @property
    def name(self) -> str:
        """Name of the features, as metrics carry it."""
        ...

    def __call__(self, images: NDArray[np.uint8]) -> Features:
        """Features of images [n, H, W, C] uint8.

        Returns:
            pool [n, F] (FID), spatial [n, S] (sFID), pixel [n, P] (in [-1, 1]); float32 or float64.
        """
        ...


class ClassifierFeatures:
    """Features of the pipeline's own classifier."""

    name = "classifier"

    def __init__(self, path: Path, spec: Classifier, compute: Compute) -> None:
        """Load the net. Raises UserError where the file is not a net of `spec`, or the device is absent."""
        self._device = configure(compute)
        self._net = classifier.load(path, spec).to(self._device)

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


def pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Flattened pixels in [-1, 1]: [n, H, W, C] uint8 -> [n, P] float32; P = C H W up to 32x32 pixels.

    Larger images are averaged over squares of ceil(size / 32) pixels.
    """
    x = to_network(images)
    factor = math.ceil(max(images.shape[1:3]) / PIXEL_SIZE)
    return (F.avg_pool2d(x, factor) if factor > 1 else x).flatten(1).numpy()


def statistics(extractor: Extractor, images: NDArray[np.uint8], batch_size: int = 500) -> dict[str, NDArray[Any]]:
    """Moments of the features of a set of images.

    Means and covariances are accumulated in float64 (the official evaluator's means are float32).

    Args:
        extractor: what computes the features.
        images: [N, H, W, C] uint8, N >= 2.
        batch_size: images a call of the extractor.

    Returns:
        mu, sigma (pool), mu_s, sigma_s (spatial), mu_pixel, sigma_pixel, float64 (sigma with N - 1);
        n [] and image_shape [3], int64.

    Raises:
        UserError: fewer than 2 images, or images that the extractor refuses.

    Source: guided-diffusion evaluations/evaluator.py (the names of the first four).
    """
    if len(images) < 2:
        raise UserError(f"a Frechet distance needs 2 images or more; got {len(images)}")
    moments: dict[str, Moments] = {}
    for start in range(0, len(images), batch_size):
        for kind, rows in extractor(images[start : start + batch_size]).items():
            moments.setdefault(kind, Moments(rows.shape[1])).update(rows)
    out: dict[str, NDArray[Any]] = {
        "n": np.array(len(images), np.int64),
        "image_shape": np.array(images.shape[1:], np.int64),
    }
    for kind, ending in NAMES.items():
        out[f"mu{ending}"], out[f"sigma{ending}"] = moments[kind].mu, moments[kind].cov
    return out
