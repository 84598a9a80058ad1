"""What a Frechet distance needs of linear algebra: roots of covariances, sums of singular values, and one thread."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from threadpoolctl import ThreadpoolController

Array = NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)

TOLERANCE = 1e-6
"""Asymmetry and negative eigenvalues a covariance may have, as a share of its largest entry."""

ACCURACY = 1e-9
"""Relative error that rounding may leave in a sum of singular values."""

SMALL = 512
"""Rows or columns up to which singular values take no time that matters (0.05 s), and are exact to some EPS."""

_LOCK = threading.RLock()
"""The number of threads is the process': who leaves must not set it back under another who computes."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, or within a function that this decorates, BLAS computes with one thread; then with as many as before.

    The bits of a sum depend on how many threads share it.
    """
    with _LOCK, _pools().limit(limits=1, user_api="blas"):
        yield


@functools.cache
def _pools() -> ThreadpoolController:
    """The libraries of numpy and scipy, which are loaded by now: looked for once."""
    return ThreadpoolController()


def root_of(covariance: Array, which: str) -> Array:
    """R with covariance = R R^T: [d, r], r the rank (what is below d EPS of the largest counts as 0).

    Cholesky's factor; where the covariance [d, d] is singular, its eigenvectors. Raises ValueError where it is
    indefinite, of which `which` it is.
    """
    symmetric, negligible = 0.5 * (covariance + covariance.T), len(covariance) * EPS
    try:
        root = linalg.cholesky(symmetric, lower=True, check_finite=False)
        if root.diagonal().min() ** 2 > negligible * symmetric.diagonal().max():
            return root
    except linalg.LinAlgError:
        pass
    values, vectors = linalg.eigh(symmetric, driver="evd", overwrite_a=True, check_finite=False)
    if values[0] < -TOLERANCE * np.abs(values).max():
        raise ValueError(f"cov{which} has the negative eigenvalue {values[0]:.3g}; expected a covariance")
    kept = values > negligible * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


def nuclear_norm(matrix: Array) -> float:
    """Sum of the singular values of a matrix [r, s], which is written over, to a relative error of `ACCURACY`.

    Of a large one they are roots of the Gram matrix's eigenvalues, in a quarter of the time. Such an eigenvalue is off
    by some EPS of the largest, and its root by that over twice the root: where that is too much in all, because many
    are small beside the largest, the singular values are computed themselves.
    """
    if min(matrix.shape) <= SMALL:
        return _by_decomposition(matrix)
    scale = max(matrix.max(initial=0.0), -matrix.min(initial=0.0))
    if not scale:
        return 0.0
    matrix /= scale  # squares neither overflow nor vanish
    gram = matrix @ matrix.T if len(matrix) <= len(matrix.T) else matrix.T @ matrix  # numpy halves the work
    squares = linalg.eigvalsh(gram, overwrite_a=True, check_finite=False)
    values, noise = np.sqrt(squares.clip(0)), EPS * squares[-1]
    doubt = np.sum(noise / np.maximum(2 * values, np.sqrt(noise)))
    quick = doubt <= ACCURACY * values.sum()
    return float(scale) * (float(values.sum()) if quick else _by_decomposition(matrix))


def _by_decomposition(matrix: Array) -> float:
    return float(np.sum(linalg.svdvals(matrix, overwrite_a=True, check_finite=False))) if matrix.size else 0.0
