"""Stage `evaluate`: a sample set and the reference statistics -> metrics.json."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipdiff.data.arrays import load_npz
from ipdiff.data.images import check_images
from ipdiff.device.spec import Compute
from ipdiff.errors import UserError
from ipdiff.metrics.features.extractors import Extractor, Network, show
from ipdiff.metrics.halves import Half
from ipdiff.metrics.sets import measure, published_neighbours
from ipdiff.metrics.spec import METRICS, Measured, rounded
from ipdiff.parameters import resolve
from ipdiff.work.shards import Shards


def run(
    network: Network,
    compute: Compute,
    samples: Path,
    reference: Path,
    about: Mapping[str, Any],
    out: Path,
    *,
    metrics: Collection[str] = (),
    settings: Mapping[str, Any] | None = None,
    neighbours: Path | None = None,
    halves: Path | None = None,
    shards: Shards | None = None,
) -> dict[str, dict[str, str]]:
    """Measure a sample set, and write the numbers.

    Args:
        network: computes the features.
        compute: device and threads.
        samples: npz with arr_0, [N, H, W, C] uint8, N >= 2.
        reference: stats.npz of the stage `reference`.
        about: what the metrics are of (data set, model, seed, ...): numbers are written beside them.
        out: existing directory; gets metrics.json.
        metrics: those to measure besides the ones that always are.
        settings: of the metrics that have some, by their key; defaults where it is not there.
        neighbours: directory of the stage `neighbours`; None: no metric that needs it.
        halves: halves.npz of the stage `halves`; None: nothing is held against a half of the real images.
        shards: see `ipdiff.metrics.features.extractors.show`; process 0 alone writes.

    Returns:
        What the recipe adds: as `measured` what there is in words, that the numbers mean nothing without.

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
    near = (None, None) if neighbours is None else published_neighbours(neighbours)
    if shards is not None and not shards.first:
        show(extractor, images, shards=shards)
        return {}
    half = None if halves is None else Half(halves, str(stats["features"]), len(images))
    more = [] if half is None else [half.samples]
    found = measure(extractor, images, *more, pooled=neighbours is not None, shards=shards)
    real = Measured(stats, None, *near)
    wanted = [name for name, kind in METRICS.items() if kind.always or name in metrics]
    got = values(found, real, possible(wanted, found, real), compute, settings)
    measured = {
        **got,
        **({} if half is None else half.values()),
        "dimensions": dimensions(got, real),
        "n": len(images),
        "reference_n": int(stats["n"]),
        "features": extractor.name,
        "features_digest": extractor.digest,
    }
    if measured.keys() & about.keys():
        raise ValueError(f"about holds {sorted(measured.keys() & about.keys())}, which are measured here")
    both = {**about, **measured}
    words = {name: value for name, value in both.items() if isinstance(value, str)}
    numbers = {name: value for name, value in both.items() if name not in words}
    (out / "metrics.json").write_text(json.dumps(numbers, indent=1, sort_keys=True, allow_nan=False) + "\n")
    return {"measured": words}


def values(
    ours: Measured,
    theirs: Measured,
    names: Collection[str],
    compute: Compute,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Metrics of a set against the reference, in the order of the registry; ten digits.

    Args:
        ours: the samples.
        theirs: the real images.
        names: which metrics; what they need is there.
        compute: device and threads.
        settings: see `run`.

    Raises:
        UserError: one of them cannot be taken, or is not finite.
    """
    together: dict[tuple[str, str], list[str]] = {}
    for name, kind in METRICS.items():
        if name in names:
            _check_features(name, ours, theirs)
            together.setdefault((kind.function, kind.settings), []).append(name)
    found: dict[str, float] = {}
    for (function, key), members in together.items():
        own = {key: settings[key]} if settings and key in settings else {}
        found |= resolve(function)(ours, theirs, members, compute, **own)
    return {name: rounded(value) for name, value in found.items()}


def _check_features(name: str, ours: Measured, theirs: Measured) -> None:
    """Raise UserError where a metric of pooled features has too few of them, or those of two networks."""
    if METRICS[name].needs != "features":
        return
    first, second = ours.features(), theirs.features()
    if min(len(first), len(second)) < METRICS[name].least:
        raise UserError(
            f"{name} needs {METRICS[name].least} images or more on both sides; got {len(first)}, {len(second)}"
        )
    if first.shape[1] != second.shape[1]:
        raise UserError(
            f"the samples have {first.shape[1]} features and the reference {second.shape[1]}; expected the same network"
        )


def dimensions(names: Collection[str], theirs: Measured) -> dict[str, int]:
    """How many features of an image the metrics compare, of those that compare features."""
    found: dict[str, int] = {}
    for name in names:
        if METRICS[name].needs == "moments":
            found[name] = len(theirs.statistics[METRICS[name].moments[0]])
        elif METRICS[name].needs == "features":
            found[name] = theirs.features().shape[1]
    return found


def possible(names: Collection[str], ours: Measured, theirs: Measured) -> list[str]:
    """Those of the metrics whose needs both sets meet."""
    has = {
        "logits": ours.inception_score is not None,
        "features": ours.pooled is not None and theirs.pooled is not None,
    }
    return [
        name
        for name in names
        if has.get(
            METRICS[name].needs, all({*METRICS[name].moments} <= side.statistics.keys() for side in (ours, theirs))
        )
    ]


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
