"""The streams of `ipdiff.rng` as tensors on a device.

On the CPU numpy draws them. A GPU draws the same integers itself: Philox4x64-10 in torch's int64 arithmetic, which
wraps around like unsigned numbers; products of 64 bits are put together from 32-bit halves. The transform to normals is
the same sequence of float64 operations, so that on the CPU even its bits are equal; a GPU's compiler may fuse a product
with a sum and differ in the last bit.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ipdiff import rng
from ipdiff.rng import Indices, Purpose

_MASK = 0xFFFFFFFF


class Draws(Protocol):
    """What training and sampling need of random numbers."""

    def normals(self, seed: int, purpose: Purpose, index: Indices, shape: tuple[int, ...], *, step: int = 0) -> Tensor:
        """As `rng.normals`: [n, *shape] float32."""
        ...

    def keep_mask(
        self, seed: int, index: Indices, shape: tuple[int, ...], threshold: int, *, step: int, lane: int
    ) -> Tensor:
        """As `rng.keep_mask`: [n, *shape] bool."""
        ...


def draws_on(device: torch.device) -> Draws:
    """The draws for a device; on a GPU they are compiled, which takes some seconds at the first use of each."""
    return DeviceDraws(device, compiled=True) if device.type == "cuda" else HostDraws()


class HostDraws:
    """Numpy's own numbers, on the CPU."""

    def normals(self, seed: int, purpose: Purpose, index: Indices, shape: tuple[int, ...], *, step: int = 0) -> Tensor:
        """See `Draws`."""
        return torch.from_numpy(rng.normals(seed, purpose, index, shape, step=step))

    def keep_mask(
        self, seed: int, index: Indices, shape: tuple[int, ...], threshold: int, *, step: int, lane: int
    ) -> Tensor:
        """See `Draws`."""
        return torch.from_numpy(rng.keep_mask(seed, index, shape, threshold, step=step, lane=lane))


class DeviceDraws:
    """The same numbers made on the device, without a copy from the host."""

    def __init__(self, device: torch.device, *, compiled: bool) -> None:
        """`compiled`: one kernel a call instead of some hundred operations."""
        self.device = device
        self._words = torch.compile(words, dynamic=True) if compiled else words
        self._normals = torch.compile(normals, dynamic=True) if compiled else normals

    def normals(self, seed: int, purpose: Purpose, index: Indices, shape: tuple[int, ...], *, step: int = 0) -> Tensor:
        """See `Draws`."""
        count = math.prod(shape)
        raw = self._raw(seed, purpose, index, 2 * ((count + 1) // 2), step, 0)
        return self._normals(raw)[:, :count].reshape(len(index), *shape)

    def keep_mask(
        self, seed: int, index: Indices, shape: tuple[int, ...], threshold: int, *, step: int, lane: int
    ) -> Tensor:
        """See `Draws`."""
        count = math.prod(shape)
        raw = self._raw(seed, Purpose.DROPOUT, index, (count + 3) // 4, step, lane)
        parts = torch.stack([(raw >> shift) & 0xFFFF for shift in (0, 16, 32, 48)], dim=-1).flatten(1)
        return (parts[:, :count] >= threshold).reshape(len(index), *shape)

    def _raw(self, seed: int, purpose: Purpose, index: Indices, count: int, step: int, lane: int) -> Tensor:
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}; use 0 <= seed < 2**64")
        fixed = np.array([seed, int(purpose), step, lane], dtype=np.uint64).view(np.int64)
        images = torch.from_numpy(np.asarray(index, dtype=np.int64).copy()).to(self.device)
        blocks = torch.arange(1, (count + 3) // 4 + 1, device=self.device)
        return self._words(torch.from_numpy(fixed).to(self.device), images, blocks)[:, :count]


def words(fixed: Tensor, index: Tensor, blocks: Tensor) -> Tensor:
    """Philox4x64-10, the bits of unsigned words in int64.

    Args:
        fixed: [4] int64: seed, purpose (the key), step, lane (the counter's last two words).
        index: [n] int64, the counter's second word.
        blocks: [b] int64, the counter's first word.

    Returns:
        [n, 4 b] int64.

    Source: Salmon et al. 2011.
    """
    key0, key1, step, lane = fixed.unbind()
    c0, c1 = torch.broadcast_tensors(blocks[None, :], index[:, None])
    c2, c3 = step.expand_as(c0), lane.expand_as(c0)
    for _ in range(10):
        high0, low0 = _product(0xD2E7470EE14C6C93, c0)
        high1, low1 = _product(0xCA5A826395121157, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = key0 + _signed(0x9E3779B97F4A7C15), key1 + _signed(0xBB67AE8584CAA73B)
    return torch.stack([c0, c1, c2, c3], dim=-1).flatten(1)


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number."""
    return value - 2**64 if value >= 2**63 else value


def _high(x: Tensor) -> Tensor:
    return (x >> 32) & _MASK


def _product(factor: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 64 bits of the unsigned 128-bit product, by schoolbook multiplication of 32-bit halves."""
    a, b = factor >> 32, factor & _MASK
    c, d = _high(x), x & _MASK
    ad, bc, bd = a * d, b * c, b * d
    middle = _high(bd) + (ad & _MASK) + (bc & _MASK)
    return a * c + _high(ad) + _high(bc) + _high(middle), x * _signed(factor)


def normals(raw: Tensor) -> Tensor:
    """Box-Muller as in `rng.box_muller`: [n, 2k] int64 words -> [n, 2k] float32."""
    radius_word, angle_word = raw.unflatten(1, (-1, 2)).unbind(-1)
    radius = torch.sqrt(-2.0 * _log(_unit(radius_word) + 2.0**-54))
    cos, sin = _cos_sin_turns(_unit(angle_word))
    return torch.stack([radius * cos, radius * sin], dim=-1).flatten(1).to(torch.float32)


def _unit(raw: Tensor) -> Tensor:
    return ((raw >> 11) & (2**53 - 1)).to(torch.float64) * 2.0**-53


def _log(x: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(x)
    low = mantissa < 0.7071067811865476
    mantissa = torch.where(low, 2.0 * mantissa, mantissa)
    power = (exponent - low.to(exponent.dtype)).to(torch.float64)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    return power * rng.LN2_HIGH + (s * _polynomial(s * s, rng.ATANH) + power * rng.LN2_LOW)


def _cos_sin_turns(u: Tensor) -> tuple[Tensor, Tensor]:
    quadrant = torch.floor(4.0 * u + 0.5)
    angle = (u - 0.25 * quadrant) * 6.283185307179586
    square = angle * angle
    sin, cos = angle * _polynomial(square, rng.SIN), _polynomial(square, rng.COS)
    odd = (quadrant == 1.0) | (quadrant == 3.0)
    c, s = torch.where(odd, sin, cos), torch.where(odd, cos, sin)
    c = torch.where((quadrant == 1.0) | (quadrant == 2.0), -c, c)
    s = torch.where((quadrant == 2.0) | (quadrant == 3.0), -s, s)
    return c, s


def _polynomial(x: Tensor, coefficients: list[float]) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value
