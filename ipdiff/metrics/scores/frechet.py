"""Frechet distance between Gaussians, and the moments it needs, in float64."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ipdiff.device.spec import Compute
from ipdiff.errors import UserError
from ipdiff.metrics.scores.linear import TOLERANCE, nuclear_norm, one_thread, root_of
from ipdiff.metrics.spec import METRICS, Measured

Array = NDArray[np.float64]


@one_thread()
def frechet_distance(mu1: ArrayLike, cov1: ArrayLike, mu2: ArrayLike, cov2: ArrayLike) -> float:
    """Squared Frechet distance ||mu1 - mu2||^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2) of two Gaussians, in float64.

    The last trace is the sum of the singular values of R1^T R2, where C = R R^T (`linear.root_of`): exact for singular
    covariances too, so nothing is added to their diagonals (the official evaluator adds 1e-6 where scipy's sqrtm
    fails; elsewhere both agree). Equal covariances are exactly 0 apart. One BLAS thread computes, so that the result
    does not depend on their number.

    Args:
        mu1: [d] finite mean of the first Gaussian.
        cov1: [d, d] finite, symmetric, positive semi-definite covariance.
        mu2: [d], the second Gaussian.
        cov2: [d, d].

    Returns:
        The distance, at least 0; off by some 1e-15 (tr C1 + tr C2), and of more than `linear.SMALL` dimensions by at
        most 1e-9 of that (`linear.ACCURACY`), usually a thousandth.

    Raises:
        ValueError: shapes differ, a value is not finite, a covariance is asymmetric or indefinite.

    Source: guided-diffusion evaluations/evaluator.py FIDStatistics.frechet_distance.
    """
    mean1, covariance1 = _checked(mu1, cov1, "1")
    mean2, covariance2 = _checked(mu2, cov2, "2")
    if mean1.shape != mean2.shape:
        raise ValueError(f"mu1 has {mean1.size} dimensions and mu2 has {mean2.size}; expected the same features")
    difference = mean1 - mean2
    between, root1 = float(difference @ difference), root_of(covariance1, "1")
    if np.array_equal(covariance1, covariance2):
        return between
    shared = nuclear_norm(root1.T @ root_of(covariance2, "2"))
    return max(0.0, between + float(np.trace(covariance1)) + float(np.trace(covariance2)) - 2.0 * shared)


def _checked(mu: ArrayLike, cov: ArrayLike, which: str) -> tuple[Array, Array]:
    """Validate one Gaussian: mean [d], covariance [d, d]."""
    mean, covariance = np.atleast_1d(np.asarray(mu, np.float64)), np.atleast_2d(np.asarray(cov, np.float64))
    if mean.ndim != 1 or covariance.shape != (mean.size, mean.size):
        raise ValueError(
            f"mu{which} is {list(mean.shape)} and cov{which} is {list(covariance.shape)}; expected [d] and [d, d]"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"mu{which} or cov{which} holds a value that is not finite")
    if np.abs(covariance - covariance.T).max() > TOLERANCE * np.abs(covariance).max():
        raise ValueError(f"cov{which} is not symmetric")
    return mean, covariance


class Moments:
    """Streaming mean and covariance; their bits depend neither on how rows were cut into batches nor on BLAS threads.

    Rows are gathered into blocks by their absolute index; each block's moments are taken about its own
    mean and merged into the total in order (Chan et al. 1983), so nothing cancels.
    """

    BLOCK = 1024

    STRIP = 64
    """Rows of the scatter matrix that are merged at a time: small enough to stay in a core's cache."""

    def __init__(self, dim: int) -> None:
        self._rows = np.empty((self.BLOCK, dim))
        self._filled = 0
        self._n, self._mean, self._scatter = 0, np.zeros(dim), np.zeros((dim, dim))

    def update(self, rows: ArrayLike) -> None:
        """Add rows: [n, dim], any float dtype. Raises ValueError for another shape."""
        rows = np.asarray(rows)
        if rows.ndim != 2 or rows.shape[1] != self._rows.shape[1]:
            raise ValueError(f"rows are {list(rows.shape)}; expected [n, {self._rows.shape[1]}]")
        while len(rows):
            part = rows[: self.BLOCK - self._filled]
            self._rows[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            rows = rows[len(part) :]
            if self._filled == self.BLOCK:
                self._merge()

    @property
    def n(self) -> int:
        """Number of rows seen."""
        return self._n + self._filled

    @property
    def mu(self) -> Array:
        """Mean: [dim] float64. Raises ValueError before the first row."""
        if self.n < 1:
            raise ValueError("no rows; expected 1 or more")
        return self._merged_mean(self._block_mean()) if self._filled else self._mean.copy()

    @property
    def cov(self) -> Array:
        """Covariance with N - 1 in the denominator: [dim, dim] float64. Raises ValueError below 2 rows."""
        if self.n < 2:
            raise ValueError(f"a covariance needs 2 rows or more; got {self.n}")
        scatter = self._scatter.copy()
        if self._filled:
            scatter = self._merged_scatter(scatter, self._block_mean())
        scatter /= self.n - 1
        return scatter

    def _merge(self) -> None:
        """Add the block to the total."""
        mean = self._block_mean()
        self._scatter = self._merged_scatter(self._scatter, mean)
        self._mean, self._n, self._filled = self._merged_mean(mean), self.n, 0

    def _block_mean(self) -> Array:
        return self._rows[: self._filled].sum(axis=0) / self._filled

    def _merged_mean(self, block_mean: Array) -> Array:
        """Mean of all rows, [dim]; the block holds one at least."""
        return self._mean + (block_mean - self._mean) * (self._filled / self.n) if self._n else block_mean

    @one_thread()
    def _merged_scatter(self, total: Array, block_mean: Array) -> Array:
        """Scatter matrix of all rows, [dim, dim]: the total before the block is written over."""
        centred = self._rows[: self._filled] - block_mean
        scatter = centred.T @ centred  # half a product: numpy sees that it is symmetric
        if not self._n:
            return scatter
        shift, weight = block_mean - self._mean, self._n * self._filled / self.n
        for start in range(0, len(total), self.STRIP):
            strip = slice(start, start + self.STRIP)
            between = np.outer(shift[strip], shift)
            between *= weight
            total[strip] += scatter[strip]
            total[strip] += between
        return total


def distances(ours: Measured, theirs: Measured, names: Iterable[str], compute: Compute) -> dict[str, float]:
    """The Frechet distances of these names: each of its own features' moments.

    Raises:
        UserError: the moments are of features of different numbers, or no covariances.
    """
    found: dict[str, float] = {}
    for name in names:
        mu, sigma = METRICS[name].moments
        ours_, theirs_ = ours.statistics, theirs.statistics
        try:
            found[name] = frechet_distance(ours_[mu], ours_[sigma], theirs_[mu], theirs_[sigma])
        except ValueError as error:
            raise UserError(f"{name} of samples (1) and reference (2) cannot be taken: {error}") from None
    return found
