"""Features of a network of the user's own: any TorchScript file that maps images to rows of features."""

from __future__ import annotations

import hashlib
import json
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
from ipdiff.metrics.spec import TorchScript

TOLERANCE = 1e-3
"""Share of the largest feature by which an image's may differ between batches: rounding is far below."""


class TorchScriptFeatures:
    """Features of a TorchScript network, without logits and without spatial features.

    `digest` is the file's sha256, and after a `-` the first digits of that of its settings: other means or another
    size make other features.
    """

    name = "torchscript"
    batch_size = 64

    def __init__(self, path: Path | None, settings: TorchScript, compute: Compute) -> None:
        """Open the network and look at what it gives for three images.

        Args:
            path: not used: its settings say where it is.
            settings: the file and its digest, its width, and what is made of images for it.
            compute: device and threads.

        Raises:
            IntegrityError: the file has another digest; it is not opened then.
            UserError: it is no TorchScript file, cannot take such images, does not give [n, width], or gives an image
                other features in another batch; or the device is absent.
        """
        self._path, self._settings = Path(settings.path), settings
        self._device = configure(compute)
        self._network, sha256 = open_file(self._path, self._device, settings.sha256)
        mean, std = ([float(value) for value in values] for values in (settings.mean, settings.std))
        chosen = [settings.image_size, settings.resize, mean, std]
        self.digest = f"{sha256}-{hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:8]}"
        self._mean, self._std = (
            torch.tensor(values, device=self._device).reshape(1, 3, 1, 1) for values in (mean, std)
        )
        self._check()

    @torch.no_grad()
    def __call__(self, images: NDArray[np.uint8]) -> Features:
        """See `Extractor`. Grey images are repeated to three channels."""
        x = three_channels(images).to(self._device)
        return {"pool": self._features(self._prepared(x)).cpu().numpy(), "pixel": pixels(images)}

    def _prepared(self, x: Tensor) -> Tensor:
        """[n, 3, H, W] in 0..255 -> [n, 3, image_size, image_size], resized in float32 and normalised."""
        size = (self._settings.image_size, self._settings.image_size)
        if tuple(x.shape[2:]) != size:
            x = F.interpolate(x, size, mode=self._settings.resize, antialias=True, align_corners=False).clamp(0, 255)
        return (x / 255 - self._mean) / self._std

    def _features(self, x: Tensor) -> Tensor:
        """[n, width] float32."""
        try:
            with unfused():
                found = self._network(x)
        except Exception as error:  # a program may raise anything
            raise UserError(f"{self._path}: cannot take images {list(x.shape)} float32: {first_line(error)}") from None
        expected = [len(x), self._settings.width]
        if not isinstance(found, Tensor) or list(found.shape) != expected or not found.is_floating_point():
            is_tensor = isinstance(found, Tensor)
            got = f"{found.dtype} {list(found.shape)}" if is_tensor else f"a {type(found).__name__}"
            raise UserError(
                f"{self._path}: gives {got} for images {list(x.shape)}; expected floats {expected} [n, width]"
            )
        return found.to(torch.float32)

    @torch.no_grad()
    def _check(self) -> None:
        size = self._settings.image_size
        values = torch.arange(3 * 3 * size * size, device=self._device).reshape(3, 3, size, size)
        # three images that differ at every size; the one that is also looked at alone is not their mean
        shares = torch.tensor([1 / 3, 1, 2 / 3], device=self._device).reshape(3, 1, 1, 1)
        x = self._prepared(values.remainder(256) * shares)
        together, alone = self._features(x), self._features(x[1:2])
        if not together.isfinite().all():
            raise UserError(f"{self._path}: gives features that are not finite for an image of this size")
        if not torch.allclose(together[1:2], alone, rtol=0, atol=TOLERANCE * float(together.abs().max())):
            raise UserError(
                f"{self._path}: an image's features depend on the batch that it is in; trace the network in evaluation "
                "mode, without a fixed number of images"
            )
