"""Stage `evaluate`: a sample set and the reference statistics -> metrics.json."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipdiff.data.arrays import load_npz
from ipdiff.data.images import check_images
from ipdiff.data.npy import load_npy
from ipdiff.device.spec import Compute
from ipdiff.errors import UserError
from ipdiff.metrics.features.extractors import NAMES, Extractor, Network, Observer, Pooled, Statistics, show
from ipdiff.metrics.frechet import frechet_distance
from ipdiff.metrics.inception_score import InceptionScore
from ipdiff.metrics.overlap import K, precision_recall, radii
from ipdiff.work.shards import Shards

DISTANCES = {"fid": "pool", "sfid": "spatial", "pixel_fd": "pixel"}
"""Metric -> kind of feature it is the Frechet distance of."""

DIGITS = 10
"""Significant digits of a published metric; what follows is rounding noise of the linear algebra."""


@dataclass(frozen=True)
class Neighbours:
    """What the stage `neighbours` published: features [M, F] and squared radii [M] of the real images, float32."""

    features: NDArray[np.float32]
    radii: NDArray[np.float32]

    @staticmethod
    def load(directory: Path) -> Neighbours:
        """Open its files. Raises UserError where they are not what they should be."""
        features, reach = load_npy(directory / "features.npy"), load_npy(directory / "radii.npy", mmap=False)
        if features.ndim != 2 or reach.shape != features.shape[:1]:
            raise UserError(f"{directory}: features {list(features.shape)} and radii {list(reach.shape)} do not agree")
        return Neighbours(features, reach)


@dataclass(frozen=True)
class Measured:
    """What is known of a set of images: statistics, and where asked for and possible score and features."""

    statistics: dict[str, NDArray[Any]]
    inception_score: float | None
    pooled: NDArray[np.float32] | None


def run(
    network: Network,
    compute: Compute,
    samples: Path,
    reference: Path,
    about: Mapping[str, Any],
    out: Path,
    *,
    neighbours: Path | None = None,
    shards: Shards | None = None,
) -> None:
    """Measure a sample set.

    Args:
        network: computes the features.
        compute: device and threads.
        samples: npz with arr_0, [N, H, W, C] uint8, N >= 2.
        reference: stats.npz of the stage `reference`.
        about: what the metrics are of (data set, model, seed, ...): JSON values, written beside them.
        out: existing directory; gets metrics.json.
        neighbours: directory of the stage `neighbours`; None: no precision and recall.
        shards: see `ipdiff.metrics.features.extractors.show`; process 0 alone writes.

    Raises:
        UserError: a file is not what it should be, fewer than 2 images, or images of another shape or statistics of
            other features than the reference's.
        IntegrityError: the network's file is another one.
        ValueError: `about` names something that is measured.
    """
    stats = load_npz(reference)
    if missing := {"n", "image_shape", "features"} - stats.keys():
        raise UserError(f"{reference}: not statistics of the stage `reference`: no {', '.join(sorted(missing))}")
    images = load_samples(samples)
    check_shape(images, stats, samples)
    extractor = network.open(compute)
    check_features(extractor, stats, reference)
    near = None if neighbours is None else Neighbours.load(neighbours)
    if shards is not None and not shards.first:
        show(extractor, images, shards=shards)
        return
    found = measure(extractor, images, pooled=near is not None, shards=shards)
    measured = {
        **distances(found.statistics, stats),
        **scores(found),
        **({} if near is None else overlaps(found, near, compute)),
        "n": len(images),
        "reference_n": int(stats["n"]),
        "features": extractor.name,
        "features_digest": extractor.digest,
    }
    if measured.keys() & about.keys():
        raise ValueError(f"about holds {sorted(measured.keys() & about.keys())}, which are measured here")
    text = json.dumps({**about, **measured}, indent=1, sort_keys=True, allow_nan=False)
    (out / "metrics.json").write_text(text + "\n")


def measure(
    extractor: Extractor, images: NDArray[np.uint8], *, pooled: bool = False, shards: Shards | None = None
) -> Measured:
    """Look at images once: [N, H, W, C] uint8, N >= 2; `pooled`: keep their pooled features; `shards`: see `show`."""
    moments, score, kept = Statistics(), InceptionScore(), Pooled(len(images))
    observers: list[Observer] = [moments, score, *([kept] if pooled else [])]
    show(extractor, images, *observers, shards=shards)
    return Measured(moments.arrays(extractor, images.shape[1:]), score.value, kept.array() if pooled else None)


def distances(
    stats: Mapping[str, NDArray[Any]],
    reference: Mapping[str, NDArray[Any]],
    wanted: Collection[str] = tuple(DISTANCES),
) -> dict[str, float]:
    """Those of fid, sfid and pixel_fd that are wanted and that both sets of statistics permit; ten digits.

    Raises:
        UserError: they are of features of different numbers, or hold no covariances.
    """
    out: dict[str, float] = {}
    for metric, kind in DISTANCES.items():
        mu, sigma = f"mu{NAMES[kind]}", f"sigma{NAMES[kind]}"
        if metric not in wanted or not all(key in side for key in (mu, sigma) for side in (stats, reference)):
            continue
        try:
            value = frechet_distance(stats[mu], stats[sigma], reference[mu], reference[sigma])
        except ValueError as error:
            raise UserError(f"{metric} of samples (1) and reference (2) cannot be taken: {error}") from None
        out[metric] = rounded(value)
    return out


def scores(found: Measured) -> dict[str, float]:
    """inception_score, where the network has logits."""
    return {} if found.inception_score is None else {"inception_score": rounded(found.inception_score)}


def overlaps(found: Measured, near: Neighbours, compute: Compute) -> dict[str, float]:
    """Precision and recall. Raises UserError for sets of fewer than four images, or of different features."""
    if found.pooled is None:
        raise ValueError("precision and recall need the pooled features; measure with pooled=True")
    counts = (len(found.pooled), len(near.features))
    if min(counts) <= K:
        raise UserError(f"precision and recall need {K + 1} images or more on both sides; got {counts[0]}, {counts[1]}")
    if found.pooled.shape[1] != near.features.shape[1]:
        raise UserError(
            f"the samples have {found.pooled.shape[1]} features and the reference {near.features.shape[1]}; "
            "expected the same network"
        )
    own = radii(found.pooled, compute)
    precision, recall = precision_recall(found.pooled, own, near.features, near.radii, compute)
    return {"precision": rounded(precision), "recall": rounded(recall)}


def rounded(value: float) -> float:
    """A metric as it is published: ten significant digits. Raises UserError where it is not finite."""
    if not math.isfinite(value):
        raise UserError(f"a metric came out as {value}: features or statistics are too large, or not finite")
    return float(f"{value:.{DIGITS}g}")


def load_samples(path: Path) -> NDArray[np.uint8]:
    """The images of a sample set, [N, H, W, C] uint8, N >= 2. Raises UserError for anything else."""
    arrays = load_npz(path)
    if "arr_0" not in arrays:
        raise UserError(f"{path}: expected the array arr_0, found {', '.join(arrays) or 'none'}")
    images = arrays["arr_0"]
    check_images(images.shape, images.dtype, path)
    if len(images) < 2:
        raise UserError(f"{path}: a Frechet distance needs 2 images or more; got {len(images)}")
    return images


def check_shape(images: NDArray[np.uint8], stats: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Raise UserError where images are of another shape than those of the statistics."""
    expected = [int(size) for size in stats["image_shape"]]
    if list(images.shape[1:]) != expected:
        raise UserError(f"{path}: images are {list(images.shape[1:])} [H, W, C]; the reference's are {expected}")


def check_features(extractor: Extractor, stats: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Raise UserError where statistics are of another network's features than the extractor's."""
    ours, theirs = f"{extractor.name} {extractor.digest}", str(stats["features"])
    if ours != theirs:
        raise UserError(f"{path}: statistics of the features {theirs}; the samples would be measured with {ours}")
