"""Counter-based named random streams: a number depends on what it is for, never on who draws it.

Philox4x64-10 (Salmon et al., SC'11) with key = (seed, purpose) and counter = (block, index, step, lane):

* `purpose` names the use (noise of a training batch, timesteps, a sample's starting point, ...);
* `index` is the image (its place in the global batch while training, its number in a sample set);
* `step` is the optimiser update, or the reverse step of the chain;
* `lane` separates draws of one purpose (dropout layers, tensors of a network);
* `block` runs from 1 (numpy's Philox advances its counter before the first draw) over the 4 words a block.

Image i is therefore the same in any batch, shard, process or restart. Normals come from a Box-Muller
transform that uses only +, -, *, / and sqrt in float64, so their bits are the same on every IEEE machine
(libm's log, sin and cos differ between instruction sets); the result is rounded to float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Indices = Sequence[int] | NDArray[np.int64] | range


class Purpose(IntEnum):
    """What a stream is for. Numbers are part of every artifact: add, never renumber."""

    INIT = 1
    ORDER = 2
    TIMESTEP = 3
    FLIP = 4
    EPS = 5
    XI = 6
    PROBE = 7
    DROPOUT = 8
    SAMPLE_START = 9
    SAMPLE_STEP = 10
    EXPOSURE_ORDER = 11
    EXPOSURE_EPS = 12
    CLASSIFIER_INIT = 13
    CLASSIFIER_ORDER = 14
    SUBSET = 15
    REFERENCE_SUBSET = 16
    KID_SUBSETS = 17
    ANALYSIS_ORDER = 20
    ANALYSIS_EPS = 21
    ANALYSIS_PICK = 22


def words(
    seed: int, purpose: Purpose, index: Indices, count: int, *, step: int = 0, lane: int = 0
) -> NDArray[np.uint64]:
    """Raw 64-bit words of one stream.

    Args:
        seed: run or sample seed, 0 <= seed < 2**64.
        purpose: which stream.
        index: image indices, [n].
        count: words an image.
        step: optimiser update or reverse step.
        lane: third coordinate, for purposes that need one.

    Returns:
        [n, count] uint64.

    Source: Philox4x64-10, Salmon et al. 2011, as implemented by numpy.random.Philox.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; use 0 <= seed < 2**64")
    out = np.empty((len(index), count), dtype=np.uint64)
    bits = np.random.Philox(key=np.array([seed, int(purpose)], dtype=np.uint64))  # a list would pass through float64
    state = bits.state
    counter = np.array([0, 0, step, lane], dtype=np.uint64)
    state["state"]["counter"] = counter
    for row, image in enumerate(index):
        counter[1] = image
        bits.state = state
        out[row] = bits.random_raw(count)
    return out


def uniforms(
    seed: int, purpose: Purpose, index: Indices, count: int, *, step: int = 0, lane: int = 0
) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) with 53 random bits: [n, count] float64."""
    return _unit(words(seed, purpose, index, count, step=step, lane=lane))


def normals(
    seed: int, purpose: Purpose, index: Indices, shape: tuple[int, ...], *, step: int = 0, lane: int = 0
) -> NDArray[np.float32]:
    """Standard normals: [n, *shape] float32, two of them from two words (Box-Muller)."""
    count = int(np.prod(shape))
    pairs = (count + 1) // 2
    raw = words(seed, purpose, index, 2 * pairs, step=step, lane=lane)
    return box_muller(raw)[:, :count].reshape(len(index), *shape)


def keep_mask(
    seed: int, index: Indices, shape: tuple[int, ...], threshold: int, *, step: int, lane: int
) -> NDArray[np.bool_]:
    """Dropout mask: True where a 16-bit random number is at least `threshold`; [n, *shape] bool."""
    count = int(np.prod(shape))
    raw = words(seed, Purpose.DROPOUT, index, (count + 3) // 4, step=step, lane=lane)
    return (raw.view(np.uint16)[:, :count] >= threshold).reshape(len(index), *shape)


def permutation(seed: int, purpose: Purpose, n: int, *, epoch: int = 0) -> NDArray[np.int64]:
    """A random order of n things: [n] int64 (sorted by a random word each; ties keep their order)."""
    return np.argsort(words(seed, purpose, [0], n, step=epoch)[0], kind="stable")


def _unit(raw: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


_CHUNK = 4096
"""Pairs a pass of Box-Muller: its temporaries then stay in the cache."""


def box_muller(raw: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Normals from words: word 2k gives the radius, word 2k+1 the angle; same shape, float32.

    Only correctly rounded operations are used, so the bits do not depend on the machine.
    """
    flat = raw.reshape(-1, 2)
    out = np.empty(flat.shape, dtype=np.float32)
    for start in range(0, len(flat), _CHUNK):
        part = slice(start, start + _CHUNK)
        radius = np.sqrt(-2.0 * _log(_unit(flat[part, 0]) + 2.0**-54))
        cos, sin = _cos_sin_turns(_unit(flat[part, 1]))
        out[part, 0] = radius * cos
        out[part, 1] = radius * sin
    return out.reshape(raw.shape)


ATANH = [2.0 / (2 * k + 1) for k in range(11)]
LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10


def _log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(x), x > 0 and normal: x = m 2**e with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh((m-1)/(m+1))."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < 0.7071067811865476
    mantissa = np.where(low, 2.0 * mantissa, mantissa)
    power = exponent - low
    s = (mantissa - 1.0) / (mantissa + 1.0)
    return power * LN2_HIGH + (s * _polynomial(s * s, ATANH) + power * LN2_LOW)


SIN = [1.0, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880, -1 / 39916800, 1 / 6227020800, -1 / 1307674368000]
COS = [1.0, -1 / 2, 1 / 24, -1 / 720, 1 / 40320, -1 / 3628800, 1 / 479001600, -1 / 87178291200]


def _cos_sin_turns(u: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """cos(2 pi u) and sin(2 pi u), u in [0, 1): quadrant and Taylor series on [-pi/4, pi/4]."""
    quadrant = np.floor(4.0 * u + 0.5)
    angle = (u - 0.25 * quadrant) * 6.283185307179586
    square = angle * angle
    sin, cos = angle * _polynomial(square, SIN), _polynomial(square, COS)
    odd = (quadrant == 1.0) | (quadrant == 3.0)
    c, s = np.where(odd, sin, cos), np.where(odd, cos, sin)
    c = np.where((quadrant == 1.0) | (quadrant == 2.0), -c, c)
    s = np.where((quadrant == 2.0) | (quadrant == 3.0), -s, s)
    return c, s


def _polynomial(x: NDArray[np.float64], coefficients: list[float]) -> NDArray[np.float64]:
    """Horner's rule, in place."""
    value = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value *= x
        value += coefficient
    return value
