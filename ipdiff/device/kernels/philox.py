"""The streams of `ipdiff.rng` as one kernel: Philox4x64-10, then normals or dropout masks.

A thread makes one block of the counter: four words. The operations of Box-Muller are those of `rng.box_muller` in
float64, none fused with another, so that a GPU's normals have numpy's bits.

Source: Philox4x64-10, Salmon et al. 2011.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false
# (Triton's language is typed for its compiler)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256
"""Counters a program."""


@triton.jit
def _words(key0, key1, c0, c1, c2, c3):
    """Ten rounds: the four words of each counter, uint64."""
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2E7470EE14C6C93), c0 * 0xD2E7470EE14C6C93
        high1, low1 = tl.umulhi(c2, 0xCA5A826395121157), c2 * 0xCA5A826395121157
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0 += 0x9E3779B97F4A7C15
        key1 += 0xBB67AE8584CAA73B
    return c0, c1, c2, c3


@triton.jit
def _unit(word):
    """The upper 53 bits as a float64 in [0, 1)."""
    return (word >> 11).to(tl.float64) * 1.1102230246251565e-16  # 2**-53


@triton.jit
def _log(x):
    """`rng._log`, with the exponent and the mantissa taken from the bits."""
    bits = x.to(tl.int64, bitcast=True)
    exponent = (bits >> 52) - 1022
    mantissa = ((bits & 0x000FFFFFFFFFFFFF) | 0x3FE0000000000000).to(tl.float64, bitcast=True)
    low = mantissa < 0.7071067811865476
    mantissa = tl.where(low, 2.0 * mantissa, mantissa)
    power = (exponent - low.to(tl.int64)).to(tl.float64)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    q = s * s
    value = q * (2.0 / 21) + (2.0 / 19)
    value = value * q + (2.0 / 17)
    value = value * q + (2.0 / 15)
    value = value * q + (2.0 / 13)
    value = value * q + (2.0 / 11)
    value = value * q + (2.0 / 9)
    value = value * q + (2.0 / 7)
    value = value * q + (2.0 / 5)
    value = value * q + (2.0 / 3)
    value = value * q + 2.0
    return power * 6.93147180369123816490e-01 + (s * value + power * 1.90821492927058770002e-10)


@triton.jit
def _cos_sin_turns(u):
    """`rng._cos_sin_turns`: quadrant and Taylor series."""
    quadrant = (4.0 * u + 0.5).to(tl.int32)  # truncated, of a number >= 0
    angle = (u - 0.25 * quadrant.to(tl.float64)) * 6.283185307179586
    q = angle * angle
    sin = q * (-1 / 1307674368000) + (1 / 6227020800)
    sin = sin * q + (-1 / 39916800)
    sin = sin * q + (1 / 362880)
    sin = sin * q + (-1 / 5040)
    sin = sin * q + (1 / 120)
    sin = sin * q + (-1 / 6)
    sin = angle * (sin * q + 1.0)
    cos = q * (-1 / 87178291200) + (1 / 479001600)
    cos = cos * q + (-1 / 3628800)
    cos = cos * q + (1 / 40320)
    cos = cos * q + (-1 / 720)
    cos = cos * q + (1 / 24)
    cos = cos * q + (-1 / 2)
    cos = cos * q + 1.0
    odd = (quadrant == 1) | (quadrant == 3)
    c, s = tl.where(odd, sin, cos), tl.where(odd, cos, sin)
    c = tl.where((quadrant == 1) | (quadrant == 2), -c, c)
    s = tl.where((quadrant == 2) | (quadrant == 3), -s, s)
    return c, s


@triton.jit
def _pair(radius_word, angle_word):
    """Two normals, float32."""
    radius = tl.sqrt(-2.0 * _log(_unit(radius_word) + 5.551115123125783e-17))  # 2**-54
    cos, sin = _cos_sin_turns(_unit(angle_word))
    return (radius * cos).to(tl.float32), (radius * sin).to(tl.float32)


@triton.jit
def _kept(word, threshold):
    """Four bytes, each 1 where its 16 bits of the word are at least the threshold: int32."""
    bits = tl.zeros_like(word)
    for part in tl.static_range(4):
        keep = ((word >> (16 * part)) & 0xFFFF) >= threshold
        bits = bits | (keep.to(tl.uint64) << (8 * part))
    return bits.to(tl.int32)


@triton.jit(do_not_specialize=["seed", "purpose", "lane", "threshold"])
def _fill(out, index, step, seed, purpose, lane, threshold, blocks, total, MASK: tl.constexpr, BLOCK: tl.constexpr):
    """Four numbers of `out` for each of `total` counters, `blocks` of them an image."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < total
    zero = tl.zeros([BLOCK], tl.uint64)
    image = tl.load(index + place // blocks, inside, other=0).to(tl.uint64)
    w0, w1, w2, w3 = _words(
        zero + seed.to(tl.uint64),
        zero + purpose.to(tl.uint64),
        (place % blocks).to(tl.uint64) + 1,
        image,
        zero + tl.load(step).to(tl.uint64),
        zero + lane.to(tl.uint64),
    )
    if MASK:
        v0, v1 = _kept(w0, threshold), _kept(w1, threshold)
        v2, v3 = _kept(w2, threshold), _kept(w3, threshold)
    else:
        v0, v1 = _pair(w0, w1)
        v2, v3 = _pair(w2, w3)
    four = tl.interleave(tl.interleave(v0, v2), tl.interleave(v1, v3))
    to = tl.program_id(0).to(tl.int64) * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
    tl.store(out + to, four, to < 4 * total)


def fill(
    index: Tensor, step: Tensor, count: int, *, seed: int, purpose: int, lane: int = 0, threshold: int | None = None
) -> Tensor:
    """Draw whole blocks of one stream.

    Args:
        index: [n] int64 on the GPU: images.
        step: int64 on the GPU, one element: optimiser update or reverse step.
        count: numbers an image.
        seed: 0 <= seed < 2**64.
        purpose: which stream.
        lane: third coordinate.
        threshold: draw a mask, true where 16 bits are at least this; normals if None.

    Returns:
        [n, 4 b] float32 normals or [n, 16 b] bool, b the blocks that hold `count`.
    """
    mask = threshold is not None
    blocks = triton.cdiv(count, 16 if mask else 4)
    total = len(index) * blocks
    out = torch.empty((len(index), 4 * blocks), dtype=torch.int32 if mask else torch.float32, device=index.device)
    _fill[(triton.cdiv(total, BLOCK),)](
        out, index, step, seed, purpose, lane, threshold or 0, blocks, total, mask, BLOCK, enable_fp_fusion=False
    )
    return out.view(torch.bool) if mask else out
