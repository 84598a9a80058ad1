"""What both networks share: layers and the handling of time.

A U-Net here is a function of an image and of one vector for each residual block, a linear map of the
embedded timestep. All blocks' maps are computed at once:

    t --time_embedding--> [N, E] (+ label) --project--> [N, P] --forward_projected--> output

`net(x, t)` walks the whole chain. A sampler, which meets the same few timesteps for every batch, calls
`net.at_timesteps(ts)` once; what it gets is called like the network itself and pays only for the last arrow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ipdiff.device import kernels

_TWICE = ContextVar("_TWICE", default=False)
"""Whether second derivatives are asked for: see `twice_differentiable`."""


class GroupNorm(nn.GroupNorm):
    """Group normalisation whose statistics and output are computed in float32 at least.

    channels_last images on a GPU go through `ipdiff.device.kernels.norm` (torch's own kernels copy them to the other
    layout and back), but not inside a compiled network, whose compiler fuses the operations itself, and not where
    second derivatives are asked for.

    Source: guided-diffusion guided_diffusion/nn.py@22e0df8 (GroupNorm32).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [N,C,...] of any float dtype; the result has the input's dtype."""
        if _takes_kernels(input):
            return self._by_kernels(input)
        return self._float32(input).to(input.dtype)

    def activated(self, input: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """silu(normalised * (1 + scale) + shift), rounded once to the input's dtype.

        Args:
            input: [N,C,H,W] of any float dtype.
            scale: [N,C,1,1] or [1,C,1,1]; may be None, with shift. One for the whole batch is folded into the
                norm's own weights, which saves a pass.
            shift: likewise.
        """
        if _takes_kernels(input):
            return self._by_kernels(input, scale, shift, silu=True)
        if scale is None or shift is None:
            h = self._float32(input)
        elif len(scale) == 1:
            factor = (1 + scale).flatten()
            h = self._float32(input, self.weight * factor, torch.addcmul(shift.flatten(), self.bias, factor))
        else:
            h = torch.addcmul(shift, self._float32(input), 1 + scale)
        return silu(h).to(input.dtype)

    def _float32(self, input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Normalise, with other weights than the norm's own if they are given; half precision becomes float32."""
        weight, bias = self.weight if weight is None else weight, self.bias if bias is None else bias
        if input.dtype in (torch.float16, torch.bfloat16):
            # The CPU's kernel for half images is four times slower than these conversions at 8 channels a group.
            input, weight, bias = input.float(), weight.float(), bias.float()
        return F.group_norm(input, self.num_groups, weight, bias, self.eps)

    def _by_kernels(
        self, input: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, *, silu: bool = False
    ) -> Tensor:
        from ipdiff.device.kernels.norm import group_norm

        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps, scale=scale, shift=shift, silu=silu)


def _takes_kernels(input: Tensor) -> bool:
    return (
        input.is_cuda
        and not torch.compiler.is_compiling()
        and input.ndim == 4
        and input.is_contiguous(memory_format=torch.channels_last)
        and not _TWICE.get()
        and kernels.available()
    )


def silu(x: Tensor) -> Tensor:
    """Return x * sigmoid(x), overwriting x where no gradient is recorded.

    For outputs of a norm or a linear layer, which nobody else holds: a large batch spends up to a third of
    its time in fresh memory.
    """
    return F.silu(x, inplace=not torch.is_grad_enabled())


class SiLU(nn.Module):
    """`silu` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor of any shape, in place where no gradient is recorded."""
        return silu(x)


class ZeroConv2d(nn.Conv2d):
    """A convolution that starts at zero, so that its residual branch starts as the identity."""

    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        _zero(self)


class PointwiseConv(nn.Conv1d):
    """A 1x1 convolution on images whose weight has a Conv1d's shape [out, in, 1].

    Run as a 2-d convolution: it takes either memory format without a copy and is faster than a matrix product
    wherever the BLAS is slower than the convolution library.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        """Map `in_channels` to `out_channels` at every pixel."""
        super().__init__(in_channels, out_channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Map [N,in,H,W] to [N,out,H,W]."""
        return F.conv2d(input, self.weight.unsqueeze(-1), self.bias)


class ZeroPointwiseConv(PointwiseConv):
    """A `PointwiseConv` that starts at zero."""

    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        _zero(self)


def _zero(layer: nn.Conv1d | nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution padded by one pixel on all sides."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)


def halve(x: Tensor) -> Tensor:
    """Average 2x2 pixels: [N,C,H,W] -> [N,C,H/2,W/2]."""
    return F.avg_pool2d(x, 2)


def double(x: Tensor) -> Tensor:
    """Repeat every pixel 2x2: [N,C,H,W] -> [N,C,2H,2W]."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Upsample(nn.Module):
    """Double the image: repeat the pixels, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        """Keep `channels` channels."""
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N,C,H,W] to [N,C,2H,2W]."""
        return self.conv(double(x))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention over the pixels within each head, scaled by 1/sqrt(D).

    Args:
        q: queries [N,heads,D,H,W] float: an image, cut along its channels.
        k: keys, likewise.
        v: values, likewise.

    Returns:
        [N,heads*D,H,W] in channels_last. For arguments cut from a channels_last image nothing is copied.
    """
    n, heads, depth, height, width = q.shape
    q, k, v = (_pixels_by_depth(part) for part in (q, k, v))
    if q.dtype == torch.bfloat16 and q.device.type == "cpu":
        # Matrix products in bfloat16 are so fast there that the fused kernel takes twice as long.
        mixed = (q * depth**-0.5 @ k.transpose(2, 3)).softmax(-1) @ v
    else:
        mixed = F.scaled_dot_product_attention(q, k, v)
    return mixed.transpose(2, 3).reshape(n, heads * depth, height, width)


def _pixels_by_depth(part: Tensor) -> Tensor:
    """[N,heads,D,H,W] as [N,heads,H*W,D] with D adjacent in memory, which the fused kernels ask for."""
    rows = part.flatten(3).transpose(2, 3)
    return rows if rows.stride(3) == 1 else rows.contiguous()


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """A context in which the networks have second derivatives (a gradient penalty needs them).

    Outside it, attention and norms run in fused kernels that have only first ones.
    """
    before = _TWICE.set(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        _TWICE.reset(before)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which layers on x's device compute in the dtype of their weights."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def sinusoids(t: Tensor, count: int, span: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of t at geometrically falling frequencies exp(-ln(10000) i / span), i = 0..count-1.

    Args:
        t: [N] timesteps, any dtype.
        count: number of frequencies.
        span: count for the ADM code base, count - 1 for the DDIM one.

    Returns:
        Two tensors [N,count] float32.
    """
    index = torch.arange(count, dtype=torch.float32, device=t.device)
    angle = t.float()[:, None] * torch.exp(index * (-math.log(10000) / span))
    return torch.cos(angle), torch.sin(angle)


class UNet(nn.Module):
    """A network of an image and a timestep: all that does not depend on the architecture.

    A subclass defines `time_embedding` and `forward_projected`, and calls `_project_with` at the end of its
    constructor. `num_classes` and `label_emb` are set by class-conditional networks.
    """

    num_classes: int | None = None
    label_emb: nn.Embedding

    def time_embedding(self, t: Tensor) -> Tensor:
        """Embed timesteps t [N] (any dtype) as [N,E]; depends on no image and no label."""
        raise NotImplementedError

    def forward_projected(self, x: Tensor, projected: Tensor) -> Tensor:
        """Run the U-Net on x [N,C,H,W], given `project`'s result [N,P] or [1,P]."""
        raise NotImplementedError

    @property
    def last_layer(self) -> nn.Module:
        """The convolution that makes the output: it computes in the images' dtype."""
        raise NotImplementedError

    def _cast(self, features: Tensor) -> Tensor:
        """Time features in the dtype of the weights."""
        return features.to(self._projections[0].weight.dtype)

    def _project_with(self, layers: Sequence[nn.Linear]) -> None:
        # A plain list: the blocks own these layers, and their state-dict names must not appear twice.
        self._projections = list(layers)
        self._widths = [layer.out_features for layer in layers]

    def project(self, emb: Tensor) -> Tensor:
        """Map an embedding [N,E] to what all residual blocks take from it, side by side: [N,P].

        One matrix product instead of one for each block: the same numbers with less overhead.
        """
        weight = torch.cat([layer.weight for layer in self._projections])
        bias = torch.cat([layer.bias for layer in self._projections])
        return F.linear(F.silu(emb), weight, bias)

    def _per_block(self, projected: Tensor) -> Iterator[Tensor]:
        """Cut [N,P] into one [N,K,1,1] for each residual block, in the order in which they run."""
        return iter(projected[:, :, None, None].split(self._widths, dim=1))

    def add_label(self, emb: Tensor, y: Tensor | None) -> Tensor:
        """Add the labels' embedding to emb [N,E].

        Args:
            emb: [N,E] float.
            y: [N] int64 labels in 0..num_classes-1, or None for an unconditional network.

        Raises:
            ValueError: y is given to an unconditional network or missing for a class-conditional one.
        """
        if (y is None) != (self.num_classes is None):
            raise ValueError(
                "this network is unconditional: call it without y"
                if self.num_classes is None
                else f"this network is class-conditional: call it with labels y in 0..{self.num_classes - 1}"
            )
        return emb if y is None else emb + self.label_emb(y)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict from noisy images.

        Args:
            x: [N,C,H,W] float, any range, contiguous or channels_last.
            t: [N] timesteps in 0..T-1, integer or float.
            y: [N] int64 labels; exactly where the network is class-conditional.

        Returns:
            [N,out_channels,H,W], in the dtype and memory format of x.

        Raises:
            ValueError: y is missing or superfluous.
        """
        with without_autocast(x):
            projected = self.project(self.add_label(self.time_embedding(t), y))
        return self.forward_projected(x, projected)

    def at_timesteps(self, ts: Sequence[int]) -> AtTimesteps:
        """The network at these timesteps only, with everything that depends on t computed now, once.

        The result is called like the network. It uses the time weights of this moment: make it anew after
        an update of the weights. It gives the same numbers for any batch size, and no gradient with respect
        to the time weights.

        Args:
            ts: distinct timesteps.
        """
        return AtTimesteps(self, ts)


class AtTimesteps:
    """A network whose time-dependent part is tabulated; see `UNet.at_timesteps`."""

    def __init__(self, net: UNet, ts: Sequence[int]) -> None:
        """Tabulate: block projections [len(ts),P], or [len(ts),E] where labels are still to be added."""
        self.net = net
        device = next(net.parameters()).device
        steps = torch.as_tensor([int(t) for t in ts], dtype=torch.int64)
        if len(steps) == 0 or int(steps.min()) < 0:
            raise ValueError(f"at_timesteps got {list(ts)}; give one or more timesteps >= 0")
        rows = torch.full((int(steps.max()) + 1,), len(steps))  # past the end of the table: an unlisted t
        rows[steps] = torch.arange(len(steps))
        self._rows = rows.to(device)
        with torch.no_grad():
            emb = net.time_embedding(steps.to(device))
            self._table = net.project(emb) if net.num_classes is None else emb

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """As `UNet.forward`, for integer t among the tabulated timesteps.

        One t expanded over the batch (`t[:1].expand(n)`) is looked up and applied once for all images.

        Raises:
            ValueError: y is missing or superfluous, or (on the CPU) some t was not tabulated.
        """
        if t.stride(0) == 0 and y is None:
            t = t[:1]
        try:
            row = self._table.index_select(0, self._rows[t])
        except IndexError:
            raise ValueError(f"t has values that at_timesteps was not given: {t.tolist()}") from None
        row = self.net.add_label(row, y)
        return self.net.forward_projected(x, row if y is None else self.net.project(row))
