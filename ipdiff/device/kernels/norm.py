"""Group norm, scale and shift, SiLU: one function over channels_last images, with its gradients.

    n = (x - mean) / sqrt(variance + eps)      over the pixels and channels of a group
    z = (n * weight + bias) * (1 + scale) + shift
    y = silu(z), or z

x is read twice and y written once, in x's dtype; everything between is float32. x and the statistics are kept for the
gradients. Sums are taken in two stages of a fixed order (rows of a split, then splits), so that equal inputs give equal
bits.

A kernel sees an image as rows (pixels) of C numbers. Statistics are per group, tiles [rows, groups, channels a group];
the rest goes by channel, tiles [rows, channels].
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportOptionalOperand=false, reportIncompatibleMethodOverride=false
# pyright: reportGeneralTypeIssues=false
# (Triton's language is typed for its compiler)

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS_A_SPLIT, SPLITS = 256, 16
"""Pixels whose sums are one partial result, at least; and so many partial results of an image at most."""
TILE = 2048
"""Numbers of a tile: 16 a thread."""
CHANNELS = 64
"""Channels of a tile: a row of it fills whole memory sectors."""
BATCH = 32
"""Images of a tile of the weights' gradients."""


@triton.jit
def _silu(z, SILU: tl.constexpr):
    return z / (1.0 + tl.exp(-z)) if SILU else z


@triton.jit
def _silu_slope(z, SILU: tl.constexpr):
    sigmoid = 1.0 / (1.0 + tl.exp(-z))
    return sigmoid * (1.0 + z * (1.0 - sigmoid)) if SILU else z * 0.0 + 1.0


@triton.jit
def _statistics(
    x, means, squares, pixels, splits,
    C: tl.constexpr, G: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, D2: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of each group over the pixels of a split: [N, splits, G] float32.

    Sums are of differences to the split's first pixel, so that a mean far from zero costs no digits.
    """
    D: tl.constexpr = C // G
    image, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    g = tl.program_id(2) * GROUPS + tl.arange(0, GROUPS)
    d = tl.arange(0, D2)
    real = (g[:, None] < G) & (d[None, :] < D)
    first = split * SPLIT
    rows = tl.minimum(pixels - first, SPLIT)
    base = x + (image * pixels + first) * C + g[:, None] * D + d[None, :]
    origin = tl.load(base, real, other=0.0).to(tl.float32)
    one, two = tl.zeros([ROWS, GROUPS, D2], tl.float32), tl.zeros([ROWS, GROUPS, D2], tl.float32)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None, None] & real[None, :, :]
        value = tl.load(base[None, :, :] + row[:, None, None] * C, inside, other=0.0).to(tl.float32)
        value = tl.where(inside, value - origin[None, :, :], 0.0)
        one += value
        two += value * value
    one, two = tl.sum(one, 0), tl.sum(two, 0)
    mean = origin + one / rows  # of each channel
    group_mean = tl.sum(tl.where(real, mean, 0.0), 1) / D
    away = tl.where(real, mean - group_mean[:, None], 0.0)
    square = tl.sum(two - one * one / rows + rows * away * away, 1)
    to = (image * splits + split) * G + g
    tl.store(means + to, group_mean, g < G)
    tl.store(squares + to, square, g < G)


@triton.jit
def _joined(means, squares, image, pixels, splits, g, real, eps, D: tl.constexpr, G: tl.constexpr, SPLIT: tl.constexpr):
    """Mean and 1/sqrt(variance + eps) of the group `g` of each channel of a tile (Chan et al. 1979)."""
    base = image * splits * G + g
    mean = tl.zeros_like(g).to(tl.float32)
    for split in range(splits):
        share = tl.minimum(pixels - split * SPLIT, SPLIT) / pixels
        mean += share * tl.load(means + base + split * G, real, other=0.0)
    square = tl.zeros_like(mean)
    for split in range(splits):
        away = tl.load(means + base + split * G, real, other=0.0) - mean
        rows = tl.minimum(pixels - split * SPLIT, SPLIT)
        square += tl.load(squares + base + split * G, real, other=0.0) + rows * D * away * away
    return mean, 1.0 / tl.sqrt_rn(tl.maximum(square / (pixels * D), 0.0) + eps)


@triton.jit
def _affine(weight, bias, scale, shift, image, scale_row, shift_row, c, real, AFFINE: tl.constexpr):
    """Weight and bias of each channel, with the image's scale and shift in them; and 1 + scale."""
    w = tl.load(weight + c, real, other=0.0).to(tl.float32)
    b = tl.load(bias + c, real, other=0.0).to(tl.float32)
    factor = tl.zeros_like(w) + 1.0
    if AFFINE:
        factor += tl.load(scale + image * scale_row + c, real, other=0.0).to(tl.float32)
        b = b * factor + tl.load(shift + image * shift_row + c, real, other=0.0).to(tl.float32)
        w = w * factor
    return w, b, factor


@triton.jit
def _apply(
    x, y, mean_of, rstd_of, means, squares, weight, bias, scale, shift, scale_row, shift_row, pixels, splits, eps,
    C: tl.constexpr, G: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    AFFINE: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """The result for a tile of rows and channels; the first rows' programs also keep each channel's statistics."""
    D: tl.constexpr = C // G
    image = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    real = c < C
    mean, rstd = _joined(means, squares, image, pixels, splits, c // D, real, eps, D, G, SPLIT)
    if tl.program_id(1) == 0:
        tl.store(mean_of + image * C + c, mean, real)
        tl.store(rstd_of + image * C + c, rstd, real)
    w, b, _ = _affine(weight, bias, scale, shift, image, scale_row, shift_row, c, real, AFFINE)
    inside = (row < pixels)[:, None] & real[None, :]
    at = (image * pixels + row)[:, None] * C + c[None, :]
    z = (tl.load(x + at, inside, other=0.0).to(tl.float32) - mean[None, :]) * (rstd * w)[None, :] + b[None, :]
    tl.store(y + at, _silu(z, SILU).to(y.dtype.element_ty), inside)


@triton.jit
def _slopes(x, dy, at, inside, mean, rstd, w, b, SILU: tl.constexpr):
    """N and dz of a tile."""
    n = (tl.load(x + at, inside, other=0.0).to(tl.float32) - mean[None, :]) * rstd[None, :]
    dz = tl.load(dy + at, inside, other=0.0).to(tl.float32) * _silu_slope(n * w[None, :] + b[None, :], SILU)
    return n, dz


@triton.jit
def _partial(
    x, dy, ones, twos, mean_of, rstd_of, weight, bias, scale, shift, scale_row, shift_row, pixels, splits,
    C: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    AFFINE: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Sums of dz and dz * n of each channel over the pixels of a split: [N, splits, C] float32."""
    image, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    real = c < C
    mean = tl.load(mean_of + image * C + c, real, other=0.0)
    rstd = tl.load(rstd_of + image * C + c, real, other=0.0)
    w, b, _ = _affine(weight, bias, scale, shift, image, scale_row, shift_row, c, real, AFFINE)
    one, two = tl.zeros([ROWS, CHANNELS], tl.float32), tl.zeros([ROWS, CHANNELS], tl.float32)
    first = split * SPLIT
    last = tl.minimum(first + SPLIT, pixels)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < last)[:, None] & real[None, :]
        at = (image * pixels + row)[:, None] * C + c[None, :]
        n, dz = _slopes(x, dy, at, inside, mean, rstd, w, b, SILU)
        one += dz
        two += dz * n
    to = (image * splits + split) * C + c
    tl.store(ones + to, tl.sum(one, 0), real)
    tl.store(twos + to, tl.sum(two, 0), real)


@triton.jit
def _fold(
    ones, twos, of_group, of_bias, of_weight, dscale, dshift, weight, bias, scale, scale_row, pixels, splits,
    C: tl.constexpr, G: tl.constexpr, GROUPS: tl.constexpr, D2: tl.constexpr, AFFINE: tl.constexpr,
):  # fmt: skip
    """Join the splits: gradients of scale and shift, an image's part of weight's and bias', the groups' two means.

    of_group: [N, 2, G], the means of w dz and w dz n over the group; the others [N, C]; all float32.
    """
    D: tl.constexpr = C // G
    image = tl.program_id(0).to(tl.int64)
    g = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    d = tl.arange(0, D2)
    real = (g[:, None] < G) & (d[None, :] < D)
    c = g[:, None] * D + d[None, :]
    one, two = tl.zeros([GROUPS, D2], tl.float32), tl.zeros([GROUPS, D2], tl.float32)
    for split in range(splits):
        at = (image * splits + split) * C + c
        one += tl.load(ones + at, real, other=0.0)
        two += tl.load(twos + at, real, other=0.0)
    w = tl.load(weight + c, real, other=0.0).to(tl.float32)
    factor = tl.zeros_like(w) + 1.0
    to = image * C + c
    if AFFINE:
        factor += tl.load(scale + image * scale_row + c, real, other=0.0).to(tl.float32)
        b = tl.load(bias + c, real, other=0.0).to(tl.float32)
        tl.store(dshift + to, one, real)
        tl.store(dscale + to, w * two + b * one, real)
    tl.store(of_bias + to, factor * one, real)
    tl.store(of_weight + to, factor * two, real)
    count = pixels * D
    at = image * 2 * G + g
    tl.store(of_group + at, tl.sum(w * factor * one, 1) / count, g < G)
    tl.store(of_group + at + G, tl.sum(w * factor * two, 1) / count, g < G)


@triton.jit
def _input_gradient(
    x, dy, dx, of_group, mean_of, rstd_of, weight, bias, scale, shift, scale_row, shift_row, pixels,
    C: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    AFFINE: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Dx = (w dz - mean(w dz) - n mean(w dz n)) / sqrt(variance + eps), the means over the group."""
    D: tl.constexpr = C // G
    image = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    real = c < C
    mean = tl.load(mean_of + image * C + c, real, other=0.0)
    rstd = tl.load(rstd_of + image * C + c, real, other=0.0)
    w, b, _ = _affine(weight, bias, scale, shift, image, scale_row, shift_row, c, real, AFFINE)
    group = of_group + image * 2 * G + c // D
    one, two = tl.load(group, real, other=0.0), tl.load(group + G, real, other=0.0)
    inside = (row < pixels)[:, None] & real[None, :]
    at = (image * pixels + row)[:, None] * C + c[None, :]
    n, dz = _slopes(x, dy, at, inside, mean, rstd, w, b, SILU)
    result = rstd[None, :] * (dz * w[None, :] - one[None, :] - n * two[None, :])
    tl.store(dx + at, result.to(dx.dtype.element_ty), inside)


@triton.jit
def _over_images(ones, twos, sum_one, sum_two, images, C: tl.constexpr, BATCH: tl.constexpr, CHANNELS: tl.constexpr):
    """Two sums over the images in their order: [N, C] -> [C] float32."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    real = c < C
    one, two = tl.zeros([BATCH, CHANNELS], tl.float32), tl.zeros([BATCH, CHANNELS], tl.float32)
    for start in range(0, images, BATCH):
        image = start + tl.arange(0, BATCH)
        inside = (image < images)[:, None] & real[None, :]
        at = image[:, None] * C + c[None, :]
        one += tl.load(ones + at, inside, other=0.0)
        two += tl.load(twos + at, inside, other=0.0)
    tl.store(sum_one + c, tl.sum(one, 0), real)
    tl.store(sum_two + c, tl.sum(two, 0), real)


def _parts(whole: int, size: int) -> int:
    return -(-whole // size)


def _power_of_two(n: int) -> int:
    """The smallest one that is at least n."""
    return 1 << (n - 1).bit_length()


class _Tiles(NamedTuple):
    """How images [N, C, H, W] with G groups are cut."""

    images: int
    pixels: int
    channels: int
    groups: int

    @property
    def splits(self) -> int:
        return _parts(self.pixels, self.rows_a_split)

    @property
    def rows_a_split(self) -> int:
        """Pixels of a split: every tile of the result joins them all."""
        return max(ROWS_A_SPLIT, _power_of_two(_parts(self.pixels, SPLITS)))

    @property
    def width(self) -> int:
        """Channels of a tile by channel."""
        return min(CHANNELS, _power_of_two(self.channels))

    @property
    def rows(self) -> int:
        """Pixels of a tile by channel."""
        return TILE // self.width

    @property
    def depth(self) -> int:
        """Channels a group, rounded up to a power of two."""
        return _power_of_two(self.channels // self.groups)

    @property
    def groups_a_tile(self) -> int:
        return min(max(1, CHANNELS // self.depth), _power_of_two(self.groups))

    @property
    def group_rows(self) -> int:
        """Pixels of a tile by group."""
        return max(1, TILE // (self.groups_a_tile * self.depth))

    def by_split(self) -> tuple[int, int, int]:
        return self.images, self.splits, _parts(self.channels, self.width)

    def by_rows(self) -> tuple[int, int, int]:
        return self.images, _parts(self.pixels, self.rows), _parts(self.channels, self.width)

    def group_tiles(self) -> int:
        return _parts(self.groups, self.groups_a_tile)


class _Norm(torch.autograd.Function):
    """See `group_norm`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None,
        groups: int, eps: float, silu: bool,
    ) -> Tensor:  # fmt: skip
        tiles = _Tiles(len(x), x.shape[2] * x.shape[3], x.shape[1], groups)
        y = torch.empty_like(x, memory_format=torch.channels_last)
        means, squares = _floats(x, 2, tiles.images, tiles.splits, groups)
        mean, rstd = _floats(x, 2, tiles.images, tiles.channels)
        affine = _affine_arguments(weight, bias, scale, shift)
        _statistics[(tiles.images, tiles.splits, tiles.group_tiles())](
            x, means, squares, tiles.pixels, tiles.splits,
            tiles.channels, groups, tiles.rows_a_split, tiles.group_rows, tiles.groups_a_tile, tiles.depth,
        )  # fmt: skip
        _apply[tiles.by_rows()](
            x, y, mean, rstd, means, squares, *affine, tiles.pixels, tiles.splits, eps,
            tiles.channels, groups, tiles.rows_a_split, tiles.rows, tiles.width, scale is not None, silu,
        )  # fmt: skip
        ctx.save_for_backward(x, weight, bias, scale, shift, mean, rstd)
        ctx.tiles, ctx.silu = tiles, silu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, scale, shift, mean, rstd = ctx.saved_tensors
        tiles: _Tiles = ctx.tiles
        dy = grads[0].contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        ones, twos = _floats(x, 2, tiles.images, tiles.splits, tiles.channels)
        of_bias, of_weight, dscale, dshift = _floats(x, 4, tiles.images, tiles.channels)
        (of_group,) = _floats(x, 1, tiles.images, 2, tiles.groups)
        dweight, dbias = _floats(x, 2, tiles.channels)
        affine = _affine_arguments(weight, bias, scale, shift)
        scaled = scale is not None
        cut = (tiles.rows, tiles.width, scaled, ctx.silu)
        _partial[tiles.by_split()](
            x, dy, ones, twos, mean, rstd, *affine, tiles.pixels, tiles.splits,
            tiles.channels, tiles.rows_a_split, *cut,
            num_warps=8,  # of 4 each would hold so many registers that half as many ran at a time
        )  # fmt: skip
        _fold[(tiles.images, tiles.group_tiles())](
            ones, twos, of_group, of_bias, of_weight, dscale, dshift, weight, bias, affine[2], affine[4],
            tiles.pixels, tiles.splits, tiles.channels, tiles.groups, tiles.groups_a_tile, tiles.depth, scaled,
        )  # fmt: skip
        _input_gradient[tiles.by_rows()](
            x, dy, dx, of_group, mean, rstd, *affine, tiles.pixels, tiles.channels, tiles.groups, *cut
        )
        _over_images[(_parts(tiles.channels, tiles.width),)](
            of_weight, of_bias, dweight, dbias, tiles.images, tiles.channels, BATCH, tiles.width
        )
        return (
            dx, dweight.to(weight.dtype), dbias.to(bias.dtype),
            _like(dscale, scale), _like(dshift, shift), None, None, None,
        )  # fmt: skip


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool,
) -> Tensor:
    """Normalise, scale, shift and (if asked) apply SiLU; differentiable once.

    Args:
        x: [N,C,H,W] float32, bfloat16 or float16, dense in channels_last.
        groups: divides C.
        weight: [C] float, adjacent in memory.
        bias: [C] float, likewise.
        eps: added to the variance.
        scale: [N,C,1,1] or [1,C,1,1] float, an image's channels adjacent in memory; may be None, with shift.
        shift: likewise.
        silu: whether SiLU follows.

    Returns:
        [N,C,H,W] in x's dtype, channels_last.
    """
    return _Norm.apply(x, weight, bias, scale, shift, groups, eps, silu)


def _floats(like: Tensor, count: int, *shape: int) -> tuple[Tensor, ...]:
    return torch.empty((count, *shape), dtype=torch.float32, device=like.device).unbind()


def _affine_arguments(weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None) -> tuple[Any, ...]:
    """Pointers and, of scale and shift, how far one image's row is from the next (0: one for all)."""
    if scale is None or shift is None:
        return weight, bias, weight, bias, 0, 0
    return weight, bias, scale, shift, *(0 if len(part) == 1 else part.stride(0) for part in (scale, shift))


def _like(gradient: Tensor, of: Tensor | None) -> Tensor | None:
    """The gradient [N,C] in the shape and dtype of what it belongs to."""
    if of is None:
        return None
    return (gradient.sum(0) if len(of) == 1 else gradient).reshape(of.shape).to(of.dtype)
