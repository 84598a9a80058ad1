"""Noise schedules and respaced chains: numpy float64 in, numpy out, no torch.

Index convention: `t` and every kept timestep are 0-based, 0..T-1 (the paper counts 1..T).
"""

from __future__ import annotations

import math
import re
from itertools import accumulate, repeat
from typing import Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_SPEC: Final = re.compile(r"(?P<rule>ddim|uniform|quad|logsnr|karras)?(?P<counts>\d+(?:,\d+)*)")
_MAX_BETA: Final = 0.999
_LEAST_HALF_LOG_SNR: Final = -5.1
_RHO: Final = 7


def make_betas(schedule: str, T: int) -> FloatArray:
    """Compute the noise variances of a forward process.

    Args:
        schedule: "cosine" (every ADM model of the paper) or "linear" (the DDIM code base).
        T: number of train steps, T >= 1; "linear" needs T >= 21, where its last beta is below 1.

    Returns:
        betas: [T] float64, in (0, 1). With T=1000, "linear" is exactly `linspace(1e-4, 0.02, 1000)`.

    Raises:
        ValueError: unknown schedule, or T too small for it.

    Source: guided-diffusion guided_diffusion/gaussian_diffusion.py@22e0df8; arXiv:2102.09672 Eq. 17 (cosine).
    """
    if T < 1:
        raise ValueError(f"T={T}: expected at least 1 train step; use T=1000 for the paper's models")
    if schedule == "cosine":
        return _cosine_betas(T)
    if schedule == "linear":
        return _linear_betas(T)
    raise ValueError(f"unknown noise schedule {schedule!r}; use 'cosine' or 'linear'")


def _cosine_betas(T: int) -> FloatArray:
    def f(s: float) -> float:
        # arXiv:2102.09672 Eq. 17, with s = t/T and the offset 0.008
        return math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - f((i + 1) / T) / f(i / T), _MAX_BETA) for i in range(T)], dtype=np.float64)


def _linear_betas(T: int) -> FloatArray:
    # The end points are those of T=1000; 1000/T keeps the total noise about equal for other T.
    scale = 1000 / T
    if scale * 0.02 >= 1:
        raise ValueError(f"linear schedule with T={T} ends at beta={scale * 0.02:g}, not below 1; use T >= 21")
    return np.linspace(scale * 1e-4, scale * 0.02, T, dtype=np.float64)


def half_log_snr(alphas_cumprod: FloatArray) -> FloatArray:
    """log(sqrt(alpha-bar) / sqrt(1 - alpha-bar)): half the logarithm of the signal-to-noise ratio, float64."""
    return (np.log(alphas_cumprod) - np.log1p(-alphas_cumprod)) / 2


def respace(T: int, spec: str, alphas_cumprod: FloatArray | None = None) -> IntArray:
    """Choose which of the T train steps a shortened sampling chain keeps.

    | spec | rule |
    |---|---|
    | "100" | N steps from 0 to T-1 inclusive, fractional stride, rounded half to even |
    | "10,20,30" | the same in each of the equal sections of 0..T-1, first section least noisy |
    | "ddim50" | 0, s, 2s, ... with the smallest integer s that gives exactly N steps |
    | "uniform50" | 0, s, 2s, ... below T with s = T // N; more than N steps where N does not divide T |
    | "quad50" | floor of N squares from 0 to 0.8 T; duplicates dropped, so possibly fewer than N steps |
    | "logsnr20" | nearest to N logarithms of the signal-to-noise ratio at equal distances; duplicates dropped |
    | "karras20" | nearest to N noise levels whose 7th roots are at equal distances; duplicates dropped |

    The last two end at t = 0 and begin where half the log SNR is at least -5.1: before that a cosine schedule has next
    to no signal, and its steps are far apart.

    Args:
        T: number of train steps, T >= 1.
        spec: one of the forms above, every N in 1..T.
        alphas_cumprod: [T] float64, alpha-bar of the train steps; "logsnrN" and "karrasN" need it.

    Returns:
        kept timesteps: [K] int64, strictly increasing, in 0..T-1.

    Raises:
        ValueError: unknown spec, N < 1, N > T, more steps than a section holds, "ddimN" without an
            integer stride, or alphas_cumprod missing or of another length.

    Source: guided-diffusion guided_diffusion/respace.py@22e0df8 ("100", "ddim50");
        ermongroup/ddim runners/diffusion.py@e8df66c ("uniform50", "quad50", there for T=1000 only);
        arXiv:2206.00927 section 3.3 and appendix D ("logsnr20"; the published code cuts the cosine schedule there);
        arXiv:2206.00364 Eq. 5 with rho = 7 ("karras20").
    """
    if T < 1:
        raise ValueError(f"T={T}: expected at least 1 train step")
    match = _SPEC.fullmatch(spec)
    if match is None or (match["rule"] and "," in match["counts"]):
        raise ValueError(
            f"unknown respacing {spec!r}; use 'N', 'N,N,...', 'ddimN', 'uniformN', 'quadN', 'logsnrN' or 'karrasN', "
            "such as '100'"
        )
    counts = [int(count) for count in match["counts"].split(",")]
    _check_counts(T, spec, counts)
    if match["rule"] == "ddim":
        return _integer_stride(T, spec, counts[0])
    if match["rule"] == "uniform":
        return np.arange(0, T, T // counts[0], dtype=np.int64)
    if match["rule"] == "quad":
        return _quadratic(T, counts[0])
    if match["rule"] in ("logsnr", "karras"):
        if alphas_cumprod is None:
            raise ValueError(f"respacing {spec!r} needs alphas_cumprod")
        if len(alphas_cumprod) != T:
            raise ValueError(f"alphas_cumprod has {len(alphas_cumprod)} values, expected T={T}")
        return _by_noise(half_log_snr(alphas_cumprod), match["rule"], counts[0])
    return _sections(T, spec, counts)


def _check_counts(T: int, spec: str, counts: list[int]) -> None:
    if min(counts) < 1:
        raise ValueError(f"respacing {spec!r} asks for {min(counts)} steps; use at least 1")
    if sum(counts) > T:
        raise ValueError(f"respacing {spec!r} asks for {sum(counts)} steps, more than train steps T={T}; use 1..{T}")


def _integer_stride(T: int, spec: str, count: int) -> IntArray:
    for stride in range(1, T):
        if len(range(0, T, stride)) == count:
            return np.arange(0, T, stride, dtype=np.int64)
    raise ValueError(f"respacing {spec!r}: no integer stride keeps {count} of T={T} steps; use '{count}' or another N")


def _quadratic(T: int, count: int) -> IntArray:
    roots = np.linspace(0, math.sqrt(0.8 * T), count)
    return np.unique((roots**2).astype(np.int64))


def _by_noise(half_log_snrs: FloatArray, rule: str, count: int) -> IntArray:
    """The steps nearest, in log SNR, to `count` of them between the noisiest that is used and t = 0."""
    first, last = max(half_log_snrs[-1], _LEAST_HALF_LOG_SNR), half_log_snrs[0]
    if rule == "logsnr":
        wanted = np.linspace(first, last, count)
    else:  # sigma / alpha = exp(-half log SNR)
        wanted = -_RHO * np.log(np.linspace(math.exp(-first / _RHO), math.exp(-last / _RHO), count))
    distances = np.abs(half_log_snrs[:, None] - wanted)
    distances[half_log_snrs < first] = np.inf
    return np.unique(distances.argmin(0)).astype(np.int64)


def _sections(T: int, spec: str, counts: list[int]) -> IntArray:
    share, extra = divmod(T, len(counts))
    kept: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        size = share + (section < extra)
        if count > size:
            raise ValueError(
                f"respacing {spec!r}: section {section + 1} of {len(counts)} holds {size} steps, "
                f"{count} asked for; use 1..{size}"
            )
        kept.extend(start + round(offset) for offset in _offsets(size, count))
        start += size
    return np.array(kept, dtype=np.int64)


def _offsets(size: int, count: int) -> list[float]:
    # The stride is added up, not multiplied: the published code does so, and a half may round the other way.
    stride = (size - 1) / (count - 1) if count > 1 else 1.0
    return list(accumulate(repeat(stride, count - 1), initial=0.0))
