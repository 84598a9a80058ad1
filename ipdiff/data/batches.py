"""Which image stands at which place of which training batch: a function of (seed, step) alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ipdiff import rng


@lru_cache(maxsize=4)
def _order(seed: int, n: int, epoch: int) -> NDArray[np.int64]:
    return rng.permutation(seed, rng.Purpose.ORDER, n, epoch=epoch)


def batch_indices(seed: int, n: int, batch_size: int, step: int) -> NDArray[np.int64]:
    """Data indices of the batch of update `step`: [batch_size] int64 in 0..n-1.

    Epochs follow each other without a gap: place g = step * batch_size + b of the run reads entry g mod n
    of the order of epoch g // n. (guided-diffusion drops the last partial batch of an epoch instead.)
    """
    place = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = np.divmod(place, n)
    indices = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = _order(seed, n, int(epoch))[offsets[here]]
    return indices


def flips(seed: int, batch_size: int, step: int) -> NDArray[np.bool_]:
    """Which images of the batch are mirrored (probability 1/2): [batch_size] bool."""
    return rng.uniforms(seed, rng.Purpose.FLIP, range(batch_size), 1, step=step)[:, 0] < 0.5
