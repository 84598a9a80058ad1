"""Stage `evaluate`: a sample set and the reference statistics -> metrics.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipdiff.data.arrays import load_npz
from ipdiff.data.images import check_images
from ipdiff.errors import UserError
from ipdiff.metrics.features import NAMES, ClassifierFeatures, statistics
from ipdiff.metrics.frechet import frechet_distance
from ipdiff.spec import Classifier, Compute

METRICS = {"fid": "pool", "sfid": "spatial", "pixel_fd": "pixel"}
"""Metric -> kind of feature it is the Frechet distance of."""

DIGITS = 10
"""Significant digits of a published metric; what follows is rounding noise of the linear algebra."""


def run(
    spec: Classifier,
    compute: Compute,
    samples: Path,
    reference: Path,
    classifier: Path,
    about: Mapping[str, Any],
    out: Path,
) -> None:
    """Measure a sample set.

    Args:
        spec: how the feature network was built.
        compute: device and threads.
        samples: npz with arr_0, [N, H, W, C] uint8, N >= 2.
        reference: stats.npz of the stage `reference`.
        classifier: classifier.safetensors.
        about: what the metrics are of (data set, model, seed, ...): JSON values, written beside them.
        out: existing directory; gets metrics.json.

    Raises:
        UserError: a file is not what it should be, fewer than 2 images, or images of another shape than
            the reference's.
        ValueError: `about` names something that is measured.
    """
    stats = load_npz(reference)
    images = _load_samples(samples, stats, reference)
    extractor = ClassifierFeatures(classifier, spec, compute)
    measured = {
        **distances(statistics(extractor, images), stats),
        "n": len(images),
        "reference_n": int(stats["n"]),
        "features": extractor.name,
    }
    if measured.keys() & about.keys():
        raise ValueError(f"about holds {sorted(measured.keys() & about.keys())}, which are measured here")
    text = json.dumps({**about, **measured}, indent=1, sort_keys=True, allow_nan=False)
    (out / "metrics.json").write_text(text + "\n")


def distances(stats: Mapping[str, NDArray[Any]], reference: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """fid, sfid and pixel_fd between two sets of statistics, rounded to ten significant digits."""
    out: dict[str, float] = {}
    for metric, kind in METRICS.items():
        mu, sigma = f"mu{NAMES[kind]}", f"sigma{NAMES[kind]}"
        value = frechet_distance(stats[mu], stats[sigma], reference[mu], reference[sigma])
        out[metric] = float(f"{value:.{DIGITS}g}")
    return out


def _load_samples(path: Path, stats: Mapping[str, NDArray[Any]], reference: Path) -> NDArray[np.uint8]:
    """The images of a sample set, [N, H, W, C] uint8. Raises UserError where they cannot be compared."""
    if missing := {"n", "image_shape"} - stats.keys():
        raise UserError(f"{reference}: not statistics of the stage `reference`: no {', '.join(sorted(missing))}")
    arrays = load_npz(path)
    if "arr_0" not in arrays:
        raise UserError(f"{path}: expected the array arr_0, found {', '.join(arrays) or 'none'}")
    images = check_images(arrays["arr_0"], path)
    expected = [int(size) for size in stats["image_shape"]]
    if list(images.shape[1:]) != expected:
        raise UserError(f"{path}: images are {list(images.shape[1:])} [H, W, C]; the reference's are {expected}")
    if len(images) < 2:
        raise UserError(f"{path}: a Frechet distance needs 2 images or more; got {len(images)}")
    return images
