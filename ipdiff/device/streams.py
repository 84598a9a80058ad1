"""The streams of `ipdiff.rng` as tensors on a device.

A GPU draws them itself, by the kernel of `ipdiff.device.kernels.philox`; elsewhere numpy draws them, and a GPU without
Triton gets copies.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ipdiff import rng
from ipdiff.device import kernels
from ipdiff.rng import Indices, Purpose


def draws_on(device: torch.device) -> Draws:
    """The draws for a device."""
    return KernelDraws(device) if device.type == "cuda" and kernels.available() else Draws(device)


class Draws:
    """What training and sampling need of random numbers: numpy's, copied to the device.

    `index` and `step` may be tensors on the device: [n] int64, and int64 with one element.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def normals(
        self, seed: int, purpose: Purpose, index: Indices | Tensor, shape: tuple[int, ...], *, step: int | Tensor = 0
    ) -> Tensor:
        """As `rng.normals`: [n, *shape] float32."""
        drawn = rng.normals(seed, purpose, _on_host(index), shape, step=int(step))
        return torch.from_numpy(drawn).to(self.device)

    def keep_mask(
        self,
        seed: int,
        index: Indices | Tensor,
        shape: tuple[int, ...],
        threshold: int,
        *,
        step: int | Tensor,
        lane: int,
    ) -> Tensor:
        """As `rng.keep_mask`: [n, *shape] bool."""
        drawn = rng.keep_mask(seed, _on_host(index), shape, threshold, step=int(step), lane=lane)
        return torch.from_numpy(drawn).to(self.device)


def _on_host(index: Indices | Tensor) -> Indices:
    return index.cpu().numpy() if isinstance(index, Tensor) else index


class KernelDraws(Draws):
    """The same numbers made on the device: nothing is copied from the host, and nothing waits for it.

    Tensors of images and steps are read when the device gets to them: work that was recorded once can be repeated for
    other images or another step.
    """

    def normals(
        self, seed: int, purpose: Purpose, index: Indices | Tensor, shape: tuple[int, ...], *, step: int | Tensor = 0
    ) -> Tensor:
        """See `Draws`."""
        return self._draw(seed, purpose, index, shape, step)

    def keep_mask(
        self,
        seed: int,
        index: Indices | Tensor,
        shape: tuple[int, ...],
        threshold: int,
        *,
        step: int | Tensor,
        lane: int,
    ) -> Tensor:
        """See `Draws`."""
        return self._draw(seed, Purpose.DROPOUT, index, shape, step, lane, threshold)

    def _draw(
        self,
        seed: int,
        purpose: Purpose,
        index: Indices | Tensor,
        shape: tuple[int, ...],
        step: int | Tensor,
        lane: int = 0,
        threshold: int | None = None,
    ) -> Tensor:
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}; use 0 <= seed < 2**64")
        if isinstance(index, range):  # made on the device
            index = torch.arange(index.start, index.stop, index.step, device=self.device)
        elif not isinstance(index, Tensor):
            index = torch.tensor(index, dtype=torch.int64, device=self.device)
        if not isinstance(step, Tensor):
            signed = step - 2**64 if step >= 2**63 else step  # the int64 of the same bits
            step = torch.full((1,), signed, dtype=torch.int64, device=self.device)
        count = math.prod(shape)
        drawn = self._fill(index, step, count, seed=seed, purpose=int(purpose), lane=lane, threshold=threshold)
        return drawn[:, :count].reshape(len(index), *shape)

    def _fill(self, index: Tensor, step: Tensor, count: int, **stream: Any) -> Tensor:
        from ipdiff.device.kernels import philox

        return philox.fill(index, step, count, **stream)
