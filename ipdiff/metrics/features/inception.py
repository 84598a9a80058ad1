"""Features of the Inception network of 2015-12-05, with the paper's resizing.

The network is a TorchScript file and is run as it is. It holds its own copy of TensorFlow's old resizing, and
`network(images, return_features=True)` (what clean-fid's mode `legacy_tensorflow` calls) gives its pooled features
alone; here its layers are called one after another, for the inner map that sFID needs. That both ways agree
is checked whenever a file is opened.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ipdiff.device.compute import configure
from ipdiff.device.spec import Compute
from ipdiff.errors import UserError
from ipdiff.metrics.features.pixels import Features, pixels
from ipdiff.metrics.features.torchscript_file import first_line, open_file, three_channels, unfused
from ipdiff.metrics.spec import INCEPTION_SHA256, Inception

SIZE = 299
"""Side of the images that the layers take."""

SPATIAL_LAYER = "mixed_6"
SPATIAL_CHANNELS = 7
"""sFID's features: the first channels of this layer's branch `conv`, after its ReLU (17 x 17 x 7 = 2023)."""


class InceptionFeatures:
    """Features of a TorchScript Inception network."""

    batch_size = 64  # the official evaluator's; part of every artifact made from the features

    def __init__(self, path: Path, compute: Compute, sha256: str | None = None) -> None:
        """Open the network.

        Args:
            path: the TorchScript file.
            compute: device and threads.
            sha256: what the file's digest must be; anything if None.

        Raises:
            IntegrityError: the file has another digest.
            UserError: the file is no such network, or the device is absent.
        """
        self._device = configure(compute)
        what = "the Inception network of 2015-12-05"
        self._network, self.digest = open_file(path, self._device, sha256, what)
        self.name = "inception" if self.digest == INCEPTION_SHA256 else "other inception"
        try:
            self._layers = list(self._network.layers.named_children())
            self._check(path)
        except (AttributeError, RuntimeError, TypeError, NotImplementedError) as error:
            raise UserError(f"{path}: not the Inception network of 2015-12-05: {first_line(error)}") from None

    @torch.no_grad()
    def __call__(self, images: NDArray[np.uint8]) -> Features:
        """See `Extractor`; also `logits` [n, 1008], without the bias, as the official Inception Score wants.

        Grey images are repeated to three channels.
        """
        pool, spatial = self._features(three_channels(images).to(self._device))
        logits = F.linear(pool, self._network.output.weight)
        return {
            "pool": pool.cpu().numpy(),
            "spatial": spatial.cpu().numpy(),
            "pixel": pixels(images),
            "logits": logits.cpu().numpy(),
        }

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features [n, F] and spatial features [n, 7 * 17 * 17], flattened H, W, C as the evaluator does.

        Args:
            x: [n, 3, H, W] float32 in [0, 255].

        Source: guided-diffusion evaluations/evaluator.py (the names of the two layers).
        """
        x = ((resize(x) - 128) / 128).contiguous(memory_format=torch.channels_last)  # a third faster on CPUs
        spatial = None
        with unfused():
            for name, layer in self._layers:
                if name == SPATIAL_LAYER:
                    spatial = layer.conv(x)[:, :SPATIAL_CHANNELS]
                x = layer(x)
        if spatial is None:
            raise AttributeError(f"no layer {SPATIAL_LAYER}")
        return x.flatten(1), spatial.permute(0, 2, 3, 1).flatten(1)

    @torch.no_grad()
    def _check(self, path: Path) -> None:
        """Hold the layers' features against the network's own, on one image."""
        x = torch.arange(3 * 32 * 32, device=self._device).reshape(1, 3, 32, 32).remainder(256).to(torch.float32)
        own = self._network(x, return_features=True).flatten(1)
        pool, _ = self._features(x)
        if pool.shape != own.shape or not torch.allclose(pool, own, rtol=1e-3, atol=1e-4):
            raise UserError(
                f"{path}: its layers, called one after another, do not give the features that the whole network "
                "gives; it is not the Inception network of 2015-12-05"
            )
        F.linear(pool, self._network.output.weight)


def open_network(path: Path, settings: Inception, compute: Compute) -> InceptionFeatures:
    """The network of these settings; one that `settings.raw` names may be any."""
    return InceptionFeatures(path, compute, None if settings.raw else settings.sha256)


def resize(x: Tensor) -> Tensor:
    """Resize images to 299 x 299 as TensorFlow 1 did: pixel i samples the image at i * size / 299, bilinearly.

    Neither corners nor centres of pixels are aligned: the image moves by half a pixel, and the last pixels
    repeat the border. The features, and so the figures, depend on it.

    Args:
        x: [n, C, H, W] float32.

    Returns:
        [n, C, 299, 299] float32.

    Source: guided-diffusion evaluations/evaluator.py (ResizeBilinear of the graph, align_corners False).
    """
    n, channels, height, width = x.shape
    theta = torch.eye(2, 3, device=x.device)
    theta[0, 2] = 1 / width - 1 / SIZE
    theta[1, 2] = 1 / height - 1 / SIZE
    grid = F.affine_grid(theta.expand(n, 2, 3), [n, channels, SIZE, SIZE], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
