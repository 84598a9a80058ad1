"""Sets of images as metrics know them, and which of a data set's images make its reference set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ipdiff.data.npy import load_npy
from ipdiff.errors import UserError
from ipdiff.metrics.features.extractors import Extractor, Observer, Pooled, Statistics, show
from ipdiff.metrics.scores.inception_score import InceptionScore
from ipdiff.metrics.spec import NEAREST, Measured, Reference
from ipdiff.rng import Purpose, permutation
from ipdiff.work.shards import Shards


def measure(
    extractor: Extractor,
    images: NDArray[np.uint8],
    *more: Observer,
    pooled: bool = False,
    shards: Shards | None = None,
) -> Measured:
    """Look at images once, [N, H, W, C] uint8, N >= 2, with `more` observers; `pooled`: keep their pooled features."""
    moments, score, kept = Statistics(), InceptionScore(), Pooled(len(images))
    observers: list[Observer] = [moments, score, *more, *([kept] if pooled else [])]
    show(extractor, images, *observers, shards=shards)
    return Measured(moments.arrays(extractor, images.shape[1:]), score.value, kept.array() if pooled else None)


def published_neighbours(directory: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What the stage `neighbours` published: features [M, F] of the real images, and squared distances [M, NEAREST] of
    each to its nearest other ones; float32.

    Raises:
        UserError: they are not what they should be.
    """
    features, reach = load_npy(directory / "features.npy"), load_npy(directory / "radii.npy", mmap=False)
    if features.ndim != 2 or reach.shape != (len(features), NEAREST):
        raise UserError(f"{directory}: features {list(features.shape)} and radii {list(reach.shape)} do not agree")
    return features, reach


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
