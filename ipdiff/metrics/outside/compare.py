"""Metrics of images from outside the pipeline: `fid`, `kid`, and `ipdiff evaluate SAMPLES --reference FILE`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipdiff.data.arrays import save_npz
from ipdiff.data.formats import filekind
from ipdiff.device.spec import Compute
from ipdiff.errors import UserError, brief
from ipdiff.metrics import evaluate
from ipdiff.metrics.features.extractors import Extractor
from ipdiff.metrics.outside import cache as kept
from ipdiff.metrics.outside.function import PixelFeatures
from ipdiff.metrics.outside.networks import AnyFeatures, opened
from ipdiff.metrics.outside.sides import MOMENTS, RESIZED, Images, Side
from ipdiff.metrics.spec import METRICS, KernelDistance, Measured, with_logits

_BLOCK = 64
"""Images whose values are looked at together."""


def fid(
    images: Images,
    reference: Images,
    features: AnyFeatures = "inception",
    device: str = "cpu",
    threads: int | None = None,
    *,
    size: int | None = None,
    convert: bool = False,
    cache: bool = True,
) -> dict[str, Any]:
    """The Frechet distance between two sets of images: FID, where the features are those of Inception.

    It needs no project. What makes the figure doubtful (fewer images than features, images of 0 and 1) is a warning.
    Torch's threads and its deterministic algorithms are set for the whole process.

    Args:
        images: uint8 [N, H, W, C] with N >= 2 and C 1 or 3; a tensor of those, or of floats [N, C, H, W] in [-1, 1], as
            networks give them; or the path of a folder or .zip of images, of an npz with `arr_0` or with the statistics
            mu [d] and sigma [d, d] (see `save_statistics`), or of an npy.
        reference: the real images, as `images`; of the same shape [H, W, C].
        features: "inception", whose file is the one that IPDIFF_INCEPTION, raw/ or the cache has, or is downloaded; the
            path of another file, see `networks.network_of`; a `TorchScript` record of a network of your own; a function
            ([n, 3, H, W] float32 in [0, 1] -> [n, width]); or an `Extractor`.
        device: cpu or cuda.
        threads: CPU threads; all cores if None.
        size: resize images to this side first, see `Side.read`.
        convert: make all images RGB first, see `Side.read`.
        cache: keep features in the user's cache directory, and take them from there, see `cache.measured`.

    Returns:
        fid, and what it is of: dimensions (features of an image, by metric), features and features_digest, n and
        reference_n (None where a file does not say it), resized, the rule, where `size` is given, and converted, the
        mode, where `convert` is. On other features
        than Inception's it is no FID, whatever the key says; name the features beside it.

    Raises:
        UserError: the sets cannot be read, or not be compared.
        IntegrityError: the network's file has another digest.

    Source: Heusel et al., arXiv:1706.08500; guided-diffusion evaluations/evaluator.py (the resizing, the features).
    """
    return _only(
        "fid", images, reference, features, compute_of(device, threads), size=size, convert=convert, cache=cache
    )


def kid(
    images: Images,
    reference: Images,
    features: AnyFeatures = "inception",
    device: str = "cpu",
    threads: int | None = None,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
    size: int | None = None,
    convert: bool = False,
    cache: bool = True,
) -> dict[str, Any]:
    """The kernel distance between two sets of images: KID, where the features are those of Inception.

    Args:
        images: see `fid`; statistics alone do not do.
        reference: see `fid`.
        features: see `fid`.
        device: see `fid`.
        threads: see `fid`.
        subsets: random subsets of both sets, 2 or more.
        subset_size: images of each set in a subset, 2 or more; all of a set that has fewer.
        seed: of the subsets.
        size: see `fid`.
        convert: see `fid`.
        cache: see `fid`.

    Returns:
        kid, the mean over subsets; kid_se, its standard error over them (not there where both sets have no more than
        `subset_size` images, which are then compared once); and the rest as `fid` has it.

    Raises:
        UserError: see `fid`.
        IntegrityError: see `fid`.

    Source: Binkowski et al., arXiv:1801.01401, section 4.
    """
    asked = {"subsets": subsets, "subset_size": subset_size, "seed": seed}
    try:
        settings = {"kid": KernelDistance(**{name: _whole(name, value) for name, value in asked.items()})}
    except ValueError as error:
        raise UserError(str(error)) from None
    return _only(
        "kid",
        images,
        reference,
        features,
        compute_of(device, threads),
        settings,
        size=size,
        convert=convert,
        cache=cache,
    )


def save_statistics(
    images: Images,
    path: Path | str,
    features: AnyFeatures = "inception",
    device: str = "cpu",
    threads: int | None = None,
    *,
    size: int | None = None,
    convert: bool = False,
    cache: bool = True,
) -> None:
    """Write the moments of a set's features to an npz, which `fid` and `ipdiff evaluate` take in the set's place.

    It holds mu, sigma and, where the features have a spatial kind, mu_s, sigma_s (the ADM evaluator's names), mu_pixel,
    sigma_pixel, and what they are of: n, image_shape, features.

    Args:
        images: see `fid`.
        path: the file; replaced if it exists.
        features: see `fid`.
        device: see `fid`.
        threads: see `fid`.
        size: see `fid`.
        convert: see `fid`.
        cache: see `fid`.

    Raises:
        UserError: see `fid`; or `images` are statistics already, or the file cannot be written.
        IntegrityError: see `fid`.
    """
    compute, side = compute_of(device, threads), Side.read(images, "images", size, convert=convert)
    if side.images is None:
        raise UserError(f"{side.name}: holds statistics already; give images")
    found = kept.measured(opened(features, compute), side.images, pooled=False, device=compute.device, use=cache)
    _write_statistics(Path(path), found)


def _write_statistics(path: Path, found: Measured) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        save_npz(part, **found.statistics)
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)


def _only(
    metric: str,
    images: Images,
    reference: Images,
    features: AnyFeatures,
    compute: Compute,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    found = compare(images, reference, features, compute, [metric], settings, **options)
    for line in found.warnings:
        warnings.warn(line, stacklevel=3)
    return found.values


def compute_of(device: str, threads: int | None) -> Compute:
    """What to compute on; all cores if `threads` is None. Raises UserError where there is no such thing."""
    device = str(device)
    if device not in ("cpu", "cuda"):
        raise UserError(f"device is {brief(device)}; use cpu or cuda")
    count = _whole("threads", (os.cpu_count() or 1) if threads is None else threads)
    try:
        return Compute("cuda" if device == "cuda" else "cpu", count)
    except ValueError as error:
        raise UserError(str(error)) from None


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UserError(f"{name} is {brief(repr(value), 40)}; use a whole number")
    return int(value)


@dataclass(frozen=True)
class Comparison:
    """What two sets are measured to be, and what makes the figures doubtful, a line each."""

    values: dict[str, Any]
    warnings: list[str]


def compare(
    samples: Images,
    reference: Images,
    features: AnyFeatures,
    compute: Compute,
    metrics: Collection[str] = (),
    settings: Mapping[str, Any] | None = None,
    *,
    size: int | None = None,
    convert: bool = False,
    cache: bool = True,
    save: Path | None = None,
) -> Comparison:
    """Measure two sets against each other.

    Statistics in a file are used as they are; what is missing is computed from its images.

    Args:
        samples: see `Side.read`.
        reference: the real images, likewise.
        features: see `fid`; opened only if something has to be computed that looks at it.
        compute: device and threads.
        metrics: which of `METRICS`; all that the sets permit if empty.
        settings: of metrics that have some, by their key; defaults where it is not there.
        size: resize images to this side first.
        convert: make all images RGB first.
        cache: see `fid`.
        save: where the reference's statistics are written, for later.

    Returns:
        The metrics, and what they are of: dimensions, features, features_digest, n, reference_n (null where unknown),
        resized where a size is given, and converted where images are made RGB.
        Warnings of fewer images than features, and of images of 0 and 1 only.

    Raises:
        UserError: the files cannot be compared, or not by a metric that was asked for.
    """
    for source in (samples, reference):  # neither is read where the other is missing
        if isinstance(source, str | os.PathLike) and not Path(source).is_dir():
            filekind.head_of(Path(source))
    ours = Side.read(samples, "samples", size, convert=convert)
    theirs = Side.read(reference, "reference", size, convert=convert)
    shape, other = ours.shape, theirs.shape
    if shape is not None and other is not None and shape != other:
        remedies = "; --size N resizes both" if size is None and shape[:2] != other[:2] else ""
        remedies += "; --convert makes both RGB" if not convert and shape[2] != other[2] else ""
        raise UserError(f"{ours.name}: images are {shape} [H, W, C]; those of {theirs.name} are {other}{remedies}")
    wanted = [name for name in METRICS if name in (metrics or METRICS) and _permitted(name, ours, theirs)]
    _refuse_missing(metrics, wanted, ours, theirs)
    look = (
        ours.must_be_seen(wanted),
        theirs.must_be_seen([name for name in wanted if METRICS[name].needs != "logits"]) or save is not None,
    )
    extractor = _extractor(features, wanted, compute, save is not None) if any(look) else None
    name = _common_features(ours, theirs, extractor)
    pooled = any(METRICS[name].needs == "features" for name in wanted)

    def measured(side: Side, seen: bool) -> Measured:
        """What is known of a side; the file's own statistics come before computed ones."""
        if extractor is None or side.images is None or not seen:
            return Measured(side.statistics)
        found = kept.measured(extractor, side.images, pooled=pooled, device=compute.device, use=cache)
        own = {key: value for key, value in side.statistics.items() if key.startswith(("mu", "sigma"))}
        return Measured({**found.statistics, **own}, found.inception_score, found.pooled)

    with np.errstate(all="ignore"):  # what is not finite in the end is refused
        first, second = measured(ours, look[0]), measured(theirs, look[1])
        found = evaluate.values(first, second, evaluate.possible(wanted, first, second), compute, settings)
    _refuse_missing(metrics, found, ours, theirs)
    if save is not None:
        _write_statistics(save, second)
    values = {
        **found,
        "dimensions": (dimensions := evaluate.dimensions(found, second)),
        "features": name.rpartition(" ")[0] if name else None,
        "features_digest": name.rpartition(" ")[2] or None if name else None,
        "n": ours.n,
        "reference_n": theirs.n,
        **({} if size is None else {"resized": f"{RESIZED} to {size}x{size}"}),
        **({"converted": "RGB"} if convert else {}),
    }
    sizes = {metric: size for metric, size in dimensions.items() if metric in MOMENTS}
    return Comparison(values, [*_few_images(ours, theirs, sizes), *_cast(ours, theirs)])


def _extractor(features: AnyFeatures, wanted: Collection[str], compute: Compute, everything: bool) -> Extractor:
    """What has to look at the images: pixels alone need no network."""
    if not everything and all(METRICS[name].ending == "_pixel" for name in wanted):
        return PixelFeatures()
    return opened(features, compute)


def _permitted(metric: str, ours: Side, theirs: Side) -> bool:
    """Whether the files hold what the metric needs."""
    if METRICS[metric].needs == "logits":
        return ours.images is not None
    if METRICS[metric].needs == "features":
        return all(side.images is not None and len(side.images) >= METRICS[metric].least for side in (ours, theirs))
    return not any(side.images is None and side.lacks(metric) for side in (ours, theirs))


def _refuse_missing(metrics: Collection[str], there: Collection[str], ours: Side, theirs: Side) -> None:
    if missing := [metric for metric in (metrics or ("fid",)) if metric not in there]:
        raise UserError(f"{ours.name} against {theirs.name}: no {missing[0]}: {_needs(missing[0])}")


def _few_images(ours: Side, theirs: Side, sizes: Mapping[str, int]) -> list[str]:
    """A warning where a covariance is of fewer images than it has rows, so that it is singular."""
    counts = {name: side.n for name, side in (("samples", ours), ("reference", theirs)) if side.n is not None}
    few = {metric: size for metric, size in sizes.items() if size > min(counts.values(), default=size)}
    if not few:
        return []
    images = ", ".join(f"{name} {count}" for name, count in counts.items())
    features = ", ".join(f"{metric} {size}" for metric, size in few.items())
    return [f"fewer images than features, so the distance is biased: images: {images}; features: {features}"]


def _cast(ours: Side, theirs: Side) -> list[str]:
    """A warning where images have only the values to which floats in [0, 1] or [-1, 1] are cut off."""
    names = [
        name
        for name, side in (("samples", ours), ("reference", theirs))
        if side.images is not None and is_cut_off(side.images)
    ]
    if not names:
        return []
    return [f"hardly a value but 0 and 1 in {' and '.join(names)}: floats cast to uint8? expected 0..255"]


def is_cut_off(images: NDArray[np.uint8]) -> bool:
    """Whether all values are 0 or 1, or 255, which -1 becomes; black and white images (0 and 255) are none."""
    ones = whites = False
    for start in range(0, len(images), _BLOCK):
        block = images[start : start + _BLOCK]
        if ((block > 1) & (block < 255)).any():
            return False
        ones, whites = ones or bool((block == 1).any()), whites or bool((block == 255).any())
    return ones or not whites


def _common_features(ours: Side, theirs: Side, extractor: Extractor | None) -> str | None:
    """Name and digest of the features that the figures are of; None where nothing says it."""
    said = [brief(side.statistics["features"]) for side in (ours, theirs) if "features" in side.statistics]
    said += (
        [] if extractor is None or isinstance(extractor, PixelFeatures) else [f"{extractor.name} {extractor.digest}"]
    )
    if len(set(said)) > 1:
        raise UserError(
            f"{ours.name} against {theirs.name}: of different features: {' and '.join(dict.fromkeys(said))}"
        )
    return said[0] if said else None


def _needs(metric: str) -> str:
    if METRICS[metric].needs == "features":
        more = "; one of the sets must have more images than kid.subset_size" if metric == "kid_se" else ""
        return f"it needs the images of both (arr_0), {METRICS[metric].least} or more{more}"
    if METRICS[metric].needs == "logits":
        return f"it needs the samples' images (arr_0) and features {with_logits()}"
    network = " and a network with spatial features" if METRICS[metric].ending == "_s" else ""
    return f"both need {' and '.join(MOMENTS[metric])}, or images (arr_0){network}"
