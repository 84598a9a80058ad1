"""Features that a function of the user's own computes, or that are the pixels themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipdiff.device.compute import configure
from ipdiff.device.spec import Compute
from ipdiff.errors import UserError, brief
from ipdiff.metrics.features.pixels import Features, pixels
from ipdiff.metrics.features.torchscript_file import three_channels
from ipdiff.nets.execution import evaluating

Function = Callable[[Tensor], Any]
"""[n, 3, H, W] float32 in [0, 1] -> [n, width], a tensor or an array; grey images are repeated to three channels."""


class FunctionFeatures:
    """Features of a function. It has no digest: nothing it gives is kept, or known again.

    Attributes:
        name: `function` and its module and name, or its own `name`.
    """

    digest = ""
    batch_size = 64

    def __init__(self, function: Function, compute: Compute) -> None:
        """`function`: see `Function`; a `torch.nn.Module` is called in evaluation mode. UserError: no such device."""
        self._device, self._function = configure(compute), function
        kind = function if hasattr(function, "__qualname__") else type(function)
        self.name = brief(f"function {kind.__module__}.{kind.__qualname__}", 80)

    @torch.no_grad()
    def __call__(self, images: NDArray[np.uint8]) -> Features:
        """See `Extractor`. Raises UserError where the function does not give [n, width] numbers."""
        with evaluating(self._function):
            found = self._function((three_channels(images) / 255).to(self._device))
        rows = found.detach().float().cpu().numpy() if isinstance(found, Tensor) else np.asarray(found)
        if rows.ndim != 2 or len(rows) != len(images) or rows.dtype.kind not in "fiu":
            expected = f"{len(images)} rows of numbers [n, width]"
            raise UserError(f"{self.name}: gives {brief(rows.dtype, 20)} {list(rows.shape)}; expected {expected}")
        return {"pool": rows.astype(np.float32), "pixel": pixels(images)}


class PixelFeatures:
    """Pixels alone, for metrics that look at nothing else."""

    name, digest, batch_size = "pixels", "1", 500

    def __call__(self, images: NDArray[np.uint8]) -> Features:
        """See `Extractor`."""
        found = pixels(images)
        return {"pool": found, "pixel": found}
