"""Which of a data set's images make its reference set."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ipdiff.errors import UserError
from ipdiff.metrics.spec import Reference
from ipdiff.rng import Purpose, permutation


def rows(reference: Reference, n: int) -> NDArray[np.int64] | None:
    """Rows of the reference images among `n`, ascending: [images] int64, or None for all.

    Raises:
        UserError: more are asked for than there are.
    """
    if reference.images is None:
        return None
    if reference.images > n:
        raise UserError(f"reference.images is {reference.images}, but the data set has {n}; use fewer, or leave it out")
    return np.sort(permutation(reference.seed, Purpose.REFERENCE_SUBSET, n)[: reference.images])
