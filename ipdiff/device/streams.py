"""The streams of `ipdiff.rng` as tensors on a device.

On the CPU numpy draws them. A GPU draws the same integers itself, by the kernel of `ipdiff.device.kernels.philox`, or
(where Triton is not installed) by the operations here: Philox4x64-10 in torch's int64 arithmetic, which wraps around
like unsigned numbers; products of 64 bits are put together from 32-bit halves. The transform to normals is the same
sequence of float64 operations, so that on the CPU even its bits are equal; the kernel fuses none of them either.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ipdiff import rng
from ipdiff.device import kernels
from ipdiff.rng import Indices, Purpose

Kind = Literal["words", "normals", "mask"]
_MASK = 0xFFFFFFFF


class Draws(Protocol):
    """What training and sampling need of random numbers.

    `index` and `step` may be tensors on the device: [n] int64, and int64 with one element.
    """

    def normals(
        self, seed: int, purpose: Purpose, index: Indices | Tensor, shape: tuple[int, ...], *, step: int | Tensor = 0
    ) -> Tensor:
        """As `rng.normals`: [n, *shape] float32."""
        ...

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
        ...


def draws_on(device: torch.device) -> Draws:
    """The draws for a device."""
    return DeviceDraws(device) if device.type == "cuda" else HostDraws()


class HostDraws:
    """Numpy's own numbers, on the CPU."""

    def normals(
        self, seed: int, purpose: Purpose, index: Indices | Tensor, shape: tuple[int, ...], *, step: int | Tensor = 0
    ) -> Tensor:
        """See `Draws`."""
        return torch.from_numpy(rng.normals(seed, purpose, np.asarray(index), shape, step=int(step)))

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
        return torch.from_numpy(rng.keep_mask(seed, np.asarray(index), shape, threshold, step=int(step), lane=lane))


class DeviceDraws:
    """The same numbers made on the device: nothing is copied from the host, and nothing waits for it.

    Tensors of images and steps are read when the device gets to them: work that was recorded once can be repeated for
    other images or another step.
    """

    def __init__(self, device: torch.device) -> None:
        """On a GPU an own kernel draws; on the CPU, and where Triton is not installed, torch's operations."""
        self.device, self._fill = device, fill
        if device.type == "cuda" and kernels.available():
            from ipdiff.device.kernels import philox

            self._fill = philox.fill

    def normals(
        self, seed: int, purpose: Purpose, index: Indices | Tensor, shape: tuple[int, ...], *, step: int | Tensor = 0
    ) -> Tensor:
        """See `Draws`."""
        drawn = self._draw("normals", seed, purpose, index, 2 * ((math.prod(shape) + 1) // 2), step)
        return drawn[:, : math.prod(shape)].reshape(len(index), *shape)

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
        count = (math.prod(shape) + 3) // 4
        drawn = self._draw("mask", seed, Purpose.DROPOUT, index, count, step, lane, threshold)
        return drawn[:, : math.prod(shape)].reshape(len(index), *shape)

    def words(
        self, seed: int, purpose: Purpose, index: Indices | Tensor, count: int, *, step: int | Tensor = 0, lane: int = 0
    ) -> Tensor:
        """As `rng.words`: [n, count] int64, the bits of the unsigned words."""
        return self._draw("words", seed, purpose, index, count, step, lane)[:, :count]

    def _draw(
        self,
        kind: Kind,
        seed: int,
        purpose: Purpose,
        index: Indices | Tensor,
        count: int,
        step: int | Tensor,
        lane: int = 0,
        threshold: int = 0,
    ) -> Tensor:
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}; use 0 <= seed < 2**64")
        if not isinstance(step, Tensor):
            step = torch.full((1,), _signed(step), dtype=torch.int64, device=self.device)
        return self._fill(
            kind, self._index(index), step, count, seed=seed, purpose=int(purpose), lane=lane, threshold=threshold
        )

    def _index(self, index: Indices | Tensor) -> Tensor:
        if isinstance(index, Tensor):
            return index
        if isinstance(index, range):  # made on the device
            return torch.arange(index.start, index.stop, index.step, device=self.device)
        return torch.from_numpy(np.array(index, dtype=np.int64)).to(self.device)


def fill(
    kind: Kind, index: Tensor, step: Tensor, count: int, *, seed: int, purpose: int, lane: int, threshold: int
) -> Tensor:
    """Draw whole blocks of one stream.

    Args:
        kind: "words", "normals" or "mask".
        index: [n] int64 on a device: images.
        step: int64 on the device, one element: optimiser update or reverse step.
        count: words an image.
        seed: 0 <= seed < 2**64.
        purpose: which stream.
        lane: third coordinate.
        threshold: a mask is true where 16 bits are at least this.

    Returns:
        With b = 4 ceil(count / 4): [n, b] int64 words, [n, b] float32 normals or [n, 4 b] bool.
    """
    blocks = torch.arange(1, (count + 3) // 4 + 1, device=index.device)
    raw = words((seed, purpose), index, blocks, step.reshape(1, 1), lane)
    if kind == "words":
        return raw
    if kind == "normals":
        return normals(raw)
    return torch.stack([(raw >> shift) & 0xFFFF for shift in (0, 16, 32, 48)], dim=-1).flatten(1) >= threshold


def words(key: tuple[int, int], index: Tensor, blocks: Tensor, step: Tensor, lane: int) -> Tensor:
    """Philox4x64-10, the bits of unsigned words in int64.

    Args:
        key: seed and purpose.
        index: [n] int64, the counter's second word.
        blocks: [b] int64, the counter's first word.
        step: [1, 1] int64, its third.
        lane: its fourth.

    Returns:
        [n, 4 b] int64.

    Source: Salmon et al. 2011.
    """
    key0, key1 = key
    c0, c1 = torch.broadcast_tensors(blocks[None, :], index[:, None])
    c2, c3 = step.expand_as(c0), torch.full_like(c0, lane)
    for _ in range(10):
        high0, low0 = _product(0xD2E7470EE14C6C93, c0)
        high1, low1 = _product(0xCA5A826395121157, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ _signed(key0), low1, high0 ^ c3 ^ _signed(key1), low0
        key0, key1 = (key0 + 0x9E3779B97F4A7C15) % 2**64, (key1 + 0xBB67AE8584CAA73B) % 2**64
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
