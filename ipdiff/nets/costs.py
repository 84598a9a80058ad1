"""What a network costs, from its shape alone: weights, arithmetic, and the memory that a gradient needs; without torch.

A walk through the layers in the order in which they run, with one formula for each kind of layer. Arithmetic is that of
convolutions, matrix products and attention, two operations for each multiply-add; norms and activations have none.
Memory is what autograd keeps of one image from the forward pass to the backward pass on a GPU, where norms run in the
kernels of `ipdiff.device.kernels` and attention in torch's fused ones: a layer keeps what it takes. What a device
without room makes again in the backward pass (`ipdiff.device.recompute`) is counted by itself. What is the same for
every batch (weights, gradients, moments) is not part of it.

`tests/unit/nets/test_costs.py` holds every number against torch itself, on the meta device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from typing import Any, Self

from ipdiff.device.spec import Precision
from ipdiff.spec import ADMNetwork, DDPMNetwork, RunSpec

UPDATE = 3
"""Arithmetic of an update, in forward passes: the forward pass, and in the backward pass a product for the input's
gradient and one for the weights'. What is made again there are norms, activations and masks: no products."""
PENALTY = 9
"""The same with the gradient penalty, which differentiates twice: an estimate, not a count."""
COPIES = 6
"""float32 copies of the weights while a run trains: weights, gradients, two moments, the moving average, and the
difference that moves it. Below float32 a copy in the low precision is there besides."""
STATE_COPIES = 4
"""Copies of the weights in a train state: weights, moving average, two moments."""

SIZES: dict[Precision, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number between the layers."""


@dataclass(frozen=True)
class Added:
    """Numbers that are added field by field."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Cost(Added):
    """What a part of a network costs.

    Attributes:
        parameters: numbers that are trained.
        flops: operations of a forward pass of one image.
        kept: numbers in the precision of the convolutions that one image's gradient keeps in any case.
        kept_float32: those that are float32 in any precision.
        again: numbers in the precision of the convolutions that are kept too, or made again in the backward pass.
        again_float32: those that are float32 in any precision.
    """

    parameters: int = 0
    flops: int = 0
    kept: int = 0
    kept_float32: int = 0
    again: int = 0
    again_float32: int = 0

    @property
    def weight_bytes(self) -> int:
        """Of the weights, as a checkpoint has them."""
        return self.parameters * SIZES["float32"]

    def bytes_an_image(self, precision: Precision, *, everything: bool = False) -> int:
        """What a training step keeps for each image of a pass between forward and backward; 0: not known, see `of`.

        Args:
            precision: of the convolutions.
            everything: whether it keeps what it could make again, too.
        """
        kept = self.kept * SIZES[precision] + self.kept_float32 * SIZES["float32"]
        again = self.again * SIZES[precision] + self.again_float32 * SIZES["float32"]
        return kept + again if everything else kept

    def fixed_bytes(self, precision: Precision) -> int:
        """What a run that trains holds on its device whatever the batch is, workspaces and CUDA itself left out."""
        low = 0 if precision == "float32" else self.parameters * SIZES[precision]
        return COPIES * self.weight_bytes + low


def of(spec: RunSpec) -> Cost:
    """What a run's network costs. A family without a formula is counted by torch, its memory is then not known."""
    return walked(spec) or _counted(spec)


def walked(spec: RunSpec) -> Cost | None:
    """What a run's network costs by the formulas, without torch; None where its family has none."""
    if (walk := WALKS.get(spec.family)) is None:
        return None
    out_channels = spec.channels * (2 if spec.diffusion.learn_sigma else 1)
    return sum(walk(spec.network, spec.image_size, spec.channels, out_channels), Cost())


def passes(spec: RunSpec) -> int:
    """Forward passes whose arithmetic an update costs, for each of its images."""
    return PENALTY if spec.objective.gp_weight else UPDATE


def _counted(spec: RunSpec) -> Cost:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ipdiff.nets import build

    with torch.device("meta"):  # nothing is computed
        net = build.network(spec).eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            net(torch.zeros(1, spec.channels, spec.image_size, spec.image_size), torch.zeros(1, dtype=torch.int64))
    return Cost(sum(p.numel() for p in net.parameters()), counter.get_total_flops())


# Layers: `size` is the side of the image that a layer gives, or of the one it takes where that is said


def convolution(channels: int, out_channels: int, kernel: int, size: int, kept: int = 0) -> Cost:
    """A convolution that gives images of this size; `kept`: numbers of its input that nobody else keeps."""
    weights = channels * out_channels * kernel**2
    return Cost(weights + out_channels, 2 * weights * size**2, kept)


def linear(features: int, out_features: int, kept: int | None = None) -> Cost:
    """A linear layer of the embedded timestep, which is float32; it keeps its input, or `kept` numbers of it."""
    weights = features * out_features
    return Cost(weights + out_features, 2 * weights, 0, features if kept is None else kept)


def norm(channels: int, size: int) -> Cost:
    """A group norm over images of this size: it keeps its input, and mean and deviation of every channel."""
    return Cost(2 * channels, 0, channels * size**2, 2 * channels)


def normed_convolution(channels: int, out_channels: int, kernel: int, size: int, taken: int | None = None) -> Cost:
    """A norm, perhaps SiLU, and a convolution that gives images of this size; `taken`: the size that is normed.

    The convolution's input is made again. What is halved before it is kept: it is an intermediate result of making it.
    """
    halved = Cost(kept=channels * taken**2 if taken is not None and taken > size else 0)
    made = convolution(channels, out_channels, kernel, size) + Cost(again=channels * size**2)
    return norm(channels, taken or size) + halved + made


def dropout(channels: int, size: int, p: float) -> Cost:
    """Dropout before a convolution, whose input is counted there: the factors by which it multiplies."""
    return Cost(again=channels * size**2 if p else 0)


def attention(channels: int, heads: int, size: int) -> Cost:
    """Attention over all pixels of q, k and v, all of which it keeps, with its output and a number a head and pixel."""
    pixels = size**2
    return Cost(0, 4 * channels * pixels**2, 4 * channels * pixels, heads * pixels)


# Networks


def _residual(
    net: ADMNetwork | DDPMNetwork, channels: int, out_channels: int, size: int, taken: int | None = None
) -> Iterator[Cost]:
    """A residual block of either network; `taken`: the size of its input, where it resamples."""
    scaled = isinstance(net, ADMNetwork) and net.use_scale_shift_norm
    projected = out_channels * (2 if scaled else 1)
    yield linear(4 * net.model_channels, projected, projected if scaled else 0)  # norms keep their scale and shift
    yield normed_convolution(channels, out_channels, 3, size, taken)
    yield normed_convolution(out_channels, out_channels, 3, size)
    yield dropout(out_channels, size, net.dropout)
    if channels != out_channels:
        yield convolution(channels, out_channels, 1, size)  # of the block's input, which its first norm keeps


def _attends(net: ADMNetwork | DDPMNetwork, channels: int, size: int) -> Iterator[Cost]:
    """An attention block; the projection's input is the attention's output."""
    heads = 1
    if isinstance(net, ADMNetwork):
        heads = net.num_heads if net.num_head_channels is None else channels // net.num_head_channels
    yield normed_convolution(channels, 3 * channels, 1, size)
    yield attention(channels, heads, size)
    yield convolution(channels, channels, 1, size)


def _time(net: ADMNetwork | DDPMNetwork) -> Iterator[Cost]:
    """The embedded timestep, with two SiLUs that keep their inputs, and the input of all blocks' projections."""
    width = 4 * net.model_channels
    yield linear(net.model_channels, width)
    yield linear(width, width)
    yield Cost(kept_float32=3 * width)


def _last(channels: int, out_channels: int, size: int) -> Cost:
    """The last norm and convolution, which compute in float32 on a copy of their input."""
    cost = normed_convolution(channels, out_channels, 3, size)
    return Cost(cost.parameters, cost.flops, 0, cost.kept + cost.kept_float32, 0, cost.again)


def adm(net: ADMNetwork, size: int, in_channels: int, out_channels: int) -> Iterator[Cost]:
    """The layers of the ADM U-Net (`ipdiff.nets.adm.ADMUNet`) for images of `size` pixels a side."""

    def halved(channels: int, size: int) -> Iterator[Cost]:
        if net.resblock_updown:
            yield from _residual(net, channels, channels, size // 2, taken=size)
        else:
            yield convolution(channels, channels, 3, size // 2, channels * size**2)

    def doubled(channels: int, size: int) -> Iterator[Cost]:
        if net.resblock_updown:
            yield from _residual(net, channels, channels, size * 2, taken=size)
        else:
            yield _upsampled(channels, size)

    return _unet(net, net.widths[0], size, in_channels, out_channels, halved, doubled)


def ddpm(net: DDPMNetwork, size: int, in_channels: int, out_channels: int) -> Iterator[Cost]:
    """The layers of the DDIM code's U-Net (`ipdiff.nets.ddpm.DDPMUNet`) for images of `size` pixels a side."""

    def halved(channels: int, size: int) -> Iterator[Cost]:
        yield convolution(channels, channels, 3, size // 2, channels * (size + 1) ** 2)  # padded at two sides

    def doubled(channels: int, size: int) -> Iterator[Cost]:
        yield _upsampled(channels, size)

    return _unet(net, net.model_channels, size, in_channels, out_channels, halved, doubled)


def _upsampled(channels: int, size: int) -> Cost:
    """A convolution of an image whose pixels are repeated first."""
    return convolution(channels, channels, 3, size * 2, channels * (2 * size) ** 2)


_Resampling = Callable[[int, int], Iterator[Cost]]
"""(channels, size that is taken) -> the layers that change it."""


def _unet(
    net: ADMNetwork | DDPMNetwork,
    channels: int,
    size: int,
    in_channels: int,
    out_channels: int,
    halved: _Resampling,
    doubled: _Resampling,
) -> Iterator[Cost]:
    """Down and up again through the levels; `channels`: of the first convolution."""
    widths, attends = net.widths, net.attends(size)
    yield from _time(net)
    yield convolution(in_channels, channels, 3, size, in_channels * size**2)
    skips = [channels]
    for level, width in enumerate(widths):
        for _ in range(net.num_res_blocks):
            yield from _residual(net, channels, width, size)
            if attends[level]:
                yield from _attends(net, width, size)
            channels = width
            skips.append(channels)
        if level + 1 < len(widths):
            yield from halved(channels, size)
            size //= 2
            skips.append(channels)
    yield from _residual(net, channels, channels, size)
    yield from _attends(net, channels, size)
    yield from _residual(net, channels, channels, size)
    for level in reversed(range(len(widths))):
        for _ in range(net.num_res_blocks + 1):
            yield from _residual(net, channels + skips.pop(), widths[level], size)
            channels = widths[level]
            if attends[level]:
                yield from _attends(net, channels, size)
        if level:
            yield from doubled(channels, size)
            size *= 2
    yield _last(channels, out_channels, size)


WALKS: dict[str, Callable[[Any, int, int, int], Iterator[Cost]]] = {"adm": adm, "ddpm": ddpm}
"""The walk through each family's network: (network, size of its images, their channels, output channels) -> layers."""
