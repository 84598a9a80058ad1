"""Kernel distance: the unbiased squared maximum mean discrepancy of two sets of features, a mean over subsets (KID)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ipdiff.device.compute import configure
from ipdiff.device.spec import Compute
from ipdiff.metrics.spec import KernelDistance, Measured
from ipdiff.rng import Purpose, permutation

DEFAULT = KernelDistance()

_ROWS = 2048
"""Rows of a kernel matrix in memory at a time."""


def kernel_distance(first: ArrayLike | Tensor, second: ArrayLike | Tensor) -> float:
    """Unbiased estimate of MMD^2 under the kernel (x.y / d + 1)^3, in float64.

    Args:
        first: [n, d], n >= 2, any float dtype.
        second: [m, d], m >= 2.

    Returns:
        sum_{i != j} k(x_i, x_j) / (n (n-1)) + sum_{i != j} k(y_i, y_j) / (m (m-1)) - 2 sum k(x_i, y_j) / (n m). Its
        expectation is the distance of the distributions, so it is below 0 at times where they are close.

    Source: Binkowski et al., arXiv:1801.01401, section 4 (the kernel); Gretton et al. 2012, lemma 6 (the estimate).
    """
    x, y = (torch.as_tensor(side).to(torch.float64) for side in (first, second))
    within = (_without_diagonal(side) / (len(side) * (len(side) - 1)) for side in (x, y))
    return float(sum(within) - 2 * _kernel(x, y) / (len(x) * len(y)))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """Sum of the kernel over all pairs."""
    parts = [(rows @ y.T / x.shape[1] + 1).pow(3).sum() for rows in x.split(_ROWS)]
    return torch.stack(parts).sum()


def _without_diagonal(x: Tensor) -> Tensor:
    """Sum of the kernel over all pairs of different rows."""
    return _kernel(x, x) - ((x * x).sum(dim=1) / x.shape[1] + 1).pow(3).sum()


def subset_distances(
    first: NDArray[np.float32], second: NDArray[np.float32], settings: KernelDistance, compute: Compute
) -> NDArray[np.float64]:
    """`kernel_distance` of random subsets, drawn without replacement within each.

    Args:
        first: [N, d] float32, of the samples.
        second: [M, d] float32, of the real images; a memory map is read a subset at a time.
        settings: number and size of the subsets, and their seed.
        compute: device and threads.

    Returns:
        [subsets] float64; [1] where every subset would be the whole of both sets.

    Source: Binkowski et al., arXiv:1801.01401, section 4; torch-fidelity metric_kid.py (the defaults).
    """
    device = configure(compute)
    size = settings.subset_size
    count = 1 if max(len(first), len(second)) <= size else settings.subsets
    found = np.empty(count)
    for n in range(count):
        chosen = (
            torch.from_numpy(side[np.sort(permutation(settings.seed, Purpose.KID_SUBSETS, len(side), epoch=at)[:size])])
            for side, at in ((first, 2 * n), (second, 2 * n + 1))
        )
        found[n] = kernel_distance(*(part.to(device) for part in chosen))
    return found


def distances(
    ours: Measured, theirs: Measured, names: Iterable[str], compute: Compute, kid: KernelDistance = DEFAULT
) -> dict[str, float]:
    """`kid`, the mean over subsets, and `kid_se`, its standard error over them, which one subset does not have."""
    found = subset_distances(ours.features(), theirs.features(), kid, compute)
    mean = {"kid": float(found.mean())}
    return mean | ({"kid_se": float(found.std(ddof=1)) / math.sqrt(len(found))} if len(found) > 1 else {})
