"""Dropout whose masks can come from outside, so that a mask is a function of image, step and layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipdiff.device.recompute import remade

MaskSource = Callable[[int, torch.Size], Tensor]
"""(ordinal of the dropout layer, shape of its input) -> bool tensor of that shape, true where kept."""


class Dropout(nn.Module):
    """Dropout that can take its masks from outside (see `dropout_masks`)."""

    def __init__(self, p: float) -> None:
        """Drop each element with probability `p`, 0 <= p < 1."""
        super().__init__()
        keep_threshold(p)
        self.p = p
        self.masks: Callable[[torch.Size], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Identity in evaluation mode or at p = 0; else x * mask / keep, of x's shape and dtype."""
        return self.as_now()(x)

    def as_now(self) -> Callable[[Tensor], Tensor]:
        """This layer with its present masks: whoever calls it later has the same elements dropped."""
        if not self.training or self.p == 0:
            return lambda x: x
        if self.masks is None:
            return partial(F.dropout, p=self.p)
        return partial(self._drop, self.masks)

    @property
    def repeats(self) -> bool:
        """Whether it drops the same elements when called again: not where torch's generator chooses them."""
        return not self.training or self.p == 0 or self.masks is not None

    def _drop(self, masks: Callable[[torch.Size], Tensor], x: Tensor) -> Tensor:
        factor = partial(self._factor, masks, x.shape, x.device, x.dtype)
        kept = factor()
        with remade(kept, factor):
            return x * kept

    @classmethod
    def keep_out_of_graphs(cls) -> None:
        """Call before a network is compiled, or the compiler builds it anew for every source of masks.

        No decorator: naming the compiler when a module is imported costs a second.
        """
        cls._factor = torch.compiler.disable(cls._factor)  # pyright: ignore[reportAttributeAccessIssue]

    def _factor(
        self, masks: Callable[[torch.Size], Tensor], shape: torch.Size, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """0 or 1 / keep for every element."""
        keep = 1 - keep_threshold(self.p) / 65536
        return masks(shape).to(device, dtype).mul_(1 / keep)


def keep_threshold(p: float) -> int:
    """The number of 16-bit integers that mean "drop": an element is kept where its draw is >= this.

    Args:
        p: dropout probability, 0 <= p < 1.

    Raises:
        ValueError: p is out of range.
    """
    if not 0 <= p < 1 or (threshold := round(p * 65536)) == 65536:
        raise ValueError(f"dropout={p} is not a probability of dropping; use 0 <= dropout < 1")
    return threshold


@contextmanager
def dropout_masks(net: nn.Module, source: MaskSource) -> Iterator[None]:
    """Inside this context the dropout layers of `net` take their masks from `source` while training.

    Layers are numbered in the order of `net.modules()`. The share of kept elements that `source` must
    produce is 1 - keep_threshold(p) / 65536, by which the kept elements are divided. The masks may lie on any
    device. Layers with p = 0 and networks in evaluation mode never ask. Asked again, for a gradient and outside this
    context too, `source` must give the same mask.
    """
    layers = [module for module in net.modules() if isinstance(module, Dropout)]
    before = [layer.masks for layer in layers]
    for ordinal, layer in enumerate(layers):
        layer.masks = partial(source, ordinal)
    try:
        yield
    finally:
        for layer, masks in zip(layers, before, strict=True):
            layer.masks = masks
