"""What an update of a network keeps for its gradient, counted on the meta device as a GPU would keep it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ipdiff.device import recompute
from ipdiff.nets import build, layers
from ipdiff.nets.dropout import dropout_masks
from ipdiff.pipeline import config
from ipdiff.spec import RunSpec

PAPER = {"cifar10": 17, "imagenet32": 17, "lsun_tower64": 112, "celeba64": 112, "ffhq128": 345}
"""The paper's data sets, and MiB an image that their networks may keep: about a tenth more than was found."""


def paper(dataset: str) -> RunSpec:
    """The paper's run of a data set."""
    return config.Studies().load("paper").run_spec(dataset, "adm-ip", 0)


class _Norm(torch.autograd.Function):
    """Keeps what the kernels keep: x, the weights, two numbers a channel and image."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *affine: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, *affine, *(torch.empty(x.shape[:2], device=x.device) for _ in "mr"))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        raise NotImplementedError


class _Attention(torch.autograd.Function):
    """Keeps what the fused attention keeps: its arguments, its result, a number for each row."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n, heads, rows, depth = q.shape
        out = q.new_empty(n, rows, heads, depth).transpose(1, 2)
        ctx.save_for_backward(q, k, v, out, torch.empty((n, heads, rows), device=q.device))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        raise NotImplementedError


def kept_for_backward(spec: RunSpec, batch: int = 4) -> float:
    """Bytes an image that a forward pass in bfloat16 keeps; weights and what belongs to no image are not counted."""
    with torch.device("meta"):
        net = build.network(spec).bfloat16().to(memory_format=torch.channels_last).train()  # pyright: ignore
    own = {parameter.untyped_storage()._cdata for parameter in net.parameters()}
    kept: dict[int, Tensor] = {}

    def note(value: object) -> None:
        if isinstance(value, Tensor) and value.ndim > 1 and len(value) == batch:
            storage = value.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = value

    def hooks(pack: Any, unpack: Any) -> saved_tensors_hooks:
        def noted(value: Tensor) -> Any:
            packed = pack(value)
            note(packed)
            for cell in getattr(packed, "__closure__", None) or ():  # what it is made of again
                for part in cell.cell_contents if isinstance(cell.cell_contents, list) else ():
                    note(part)
            return packed

        return saved_tensors_hooks(noted, unpack)

    def masks(layer: int, shape: torch.Size) -> Tensor:
        n, channels, height, width = shape
        return torch.empty((n, height, width, channels), dtype=torch.bool, device="meta").permute(0, 3, 1, 2)

    def norm(self: layers.GroupNorm, x: Tensor, scale: Any = None, shift: Any = None, *, silu: bool = False) -> Tensor:
        return _Norm.apply(x, self.weight, self.bias, scale, shift)  # pyright: ignore[reportReturnType]

    x = torch.empty((batch, spec.channels, *2 * [spec.image_size]), dtype=torch.bfloat16, device="meta")
    with pytest.MonkeyPatch.context() as patch, hooks(lambda value: value, lambda value: value):
        patch.setattr(layers, "_takes_kernels", lambda value: True)
        patch.setattr(layers.GroupNorm, "_by_kernels", norm)
        patch.setattr(recompute, "saved_tensors_hooks", hooks)
        patch.setattr(F, "scaled_dot_product_attention", _Attention.apply)
        with dropout_masks(net, masks):
            net(x.to(memory_format=torch.channels_last), torch.empty(batch, dtype=torch.int64, device="meta"))
    return sum(value.untyped_storage().nbytes() for value in kept.values()) / batch
