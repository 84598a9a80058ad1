"""Metrics of images from outside the pipeline: `fid`, `kid`, and `ipdiff evaluate SAMPLES --reference FILE`."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipdiff.data.formats import filekind
from ipdiff.device.spec import Compute
from ipdiff.errors import UserError, brief
from ipdiff.metrics import evaluate
from ipdiff.metrics.features.extractors import Extractor, Network
from ipdiff.metrics.features.inception_file import obtain
from ipdiff.metrics.files import MOMENTS, Side
from ipdiff.metrics.sets import measure
from ipdiff.metrics.spec import (
    FEATURES,
    INCEPTION_SHA256,
    METRICS,
    Classifier,
    Inception,
    KernelDistance,
    Measured,
    TorchScript,
    with_logits,
)
from ipdiff.work import recipes
from ipdiff.work.recipes import RECIPE

Images = Path | str | NDArray[np.uint8]
"""Images, or where they or their statistics are; see `Side.read`."""

_BLOCK = 64
"""Images whose values are looked at together."""


def fid(
    images: Images,
    reference: Images,
    features: str | TorchScript = "inception",
    device: str = "cpu",
    threads: int | None = None,
) -> dict[str, Any]:
    """The Frechet distance between two sets of images: FID, where the features are those of Inception.

    It needs no project. What makes the figure doubtful (fewer images than features, images of 0 and 1) is a warning.
    Torch's threads and its deterministic algorithms are set for the whole process.

    Args:
        images: uint8 [N, H, W, C] with N >= 2 and C 1 or 3; or the path of a folder or .zip of images, of an npz with
            `arr_0` or with the statistics mu [d] and sigma [d, d], or of an npy.
        reference: the real images, as `images`; of the same shape [H, W, C].
        features: "inception", whose file is the one that IPDIFF_INCEPTION or raw/ has, or is downloaded; the path of
            another file, see `network_of`; or a `TorchScript` record of a network of your own.
        device: cpu or cuda.
        threads: CPU threads; all cores if None.

    Returns:
        fid, and what it is of: dimensions (features of an image, by metric), features and features_digest, n and
        reference_n (None where a file does not say it). With a `TorchScript` network it is no FID, whatever the key
        says; name the network beside it.

    Raises:
        UserError: the sets cannot be read, or not be compared.
        IntegrityError: the network's file has another digest.

    Source: Heusel et al., arXiv:1706.08500; guided-diffusion evaluations/evaluator.py (the resizing, the features).
    """
    return _only("fid", images, reference, features, device, threads)


def kid(
    images: Images,
    reference: Images,
    features: str | TorchScript = "inception",
    device: str = "cpu",
    threads: int | None = None,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
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
    return _only("kid", images, reference, features, device, threads, settings)


def _only(
    metric: str,
    images: Images,
    reference: Images,
    features: str | TorchScript,
    device: str,
    threads: int | None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    found = compare(images, reference, features, compute_of(str(device), threads), [metric], settings)
    for line in found.warnings:
        warnings.warn(line, stacklevel=3)
    return found.values


def compute_of(device: str, threads: int | None) -> Compute:
    """What to compute on; all cores if `threads` is None. Raises UserError where there is no such thing."""
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


def network_of(features: str | TorchScript) -> Network:
    """The network that `features` or `--features` names.

    Args:
        features: one of `FEATURES` by name; the path of a classifier.safetensors with its recipe beside it, of a .json
            with the settings of a `TorchScript` network, or of the published Inception file; or those settings.

    Raises:
        UserError: there is no such file, it does not say how the network was built, or it is another TorchScript file.
    """
    if isinstance(features, TorchScript):
        return Network("torchscript", None, features)
    if not isinstance(features, str | os.PathLike):
        raise UserError(
            f"features is {brief(repr(features))}; use inception, a path of a network, or a TorchScript record"
        )
    named = [name for name, kind in FEATURES.items() if kind.file in ("published", "none")]
    if features in named:
        published = Inception() if FEATURES[features].file == "published" else None
        return Network(features, published and obtain(published), published)
    path = Path(features)
    if not path.is_file():
        shown = brief(repr(str(features)))
        raise UserError(f"features {shown}: no such file; use {' or '.join(named)}, or a path of a network")
    if path.suffix == ".json":
        return network_of(_settings(path))
    if path.suffix != ".safetensors":
        return _published(path)
    params = recipes.read(path.parent / RECIPE).get("params", {})
    found = [value for key, value in params.items() if key.endswith(".classifier")]
    if not found:
        raise UserError(f"{path.parent / RECIPE}: not the recipe of a classifier")
    try:
        return Network("classifier", path, Classifier(**found[0]))
    except TypeError as error:
        raise UserError(f"{path.parent / RECIPE}: not the recipe of a classifier: {brief(error)}") from None


def _published(path: Path) -> Network:
    """The Inception network in a file of any name; another program is not opened, for nobody has named its digest."""
    spec = Inception(sha256=INCEPTION_SHA256)
    if filekind.look(path).name == "torchscript":
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != spec.sha256:
            raise UserError(
                f"{path}: sha256 {digest}, not that of the Inception network of 2015-12-05; the settings of "
                "another network, with its sha256, go into a .json (docs/metrics.md)"
            )
    return Network("inception", path, spec)


def _settings(path: Path) -> TorchScript:
    """The settings of a network in a JSON file: an object with all the keys of `TorchScript`."""
    kinds = {"path": str, "sha256": str, "image_size": int, "resize": str, "mean": list, "std": list, "width": int}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.keys() != kinds.keys():
            raise ValueError(f"expected an object with the keys {', '.join(kinds)}")
        for key, kind in kinds.items():
            value = found[key]
            if type(value) is not kind or (kind is list and not {type(item) for item in value} <= {int, float}):
                raise ValueError(f"{key} is {brief(value, 40)}; expected {_WORDS[kind]}")
        return TorchScript(**found)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: no settings of a TorchScript network: {brief(error, 160)}") from None


_WORDS = {str: "a text", int: "a whole number", list: "three numbers"}


def compare(
    samples: Images,
    reference: Images,
    features: str | TorchScript,
    compute: Compute,
    metrics: Collection[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Comparison:
    """Measure two sets against each other.

    Statistics in a file are used as they are; what is missing is computed from its images.

    Args:
        samples: see `Side.read`.
        reference: the real images, likewise.
        features: see `network_of`; opened only if something has to be computed.
        compute: device and threads.
        metrics: which of `METRICS`; all that the sets permit if empty.
        settings: of metrics that have some, by their key; defaults where it is not there.

    Returns:
        The metrics, and what they are of: dimensions, features, features_digest, n, reference_n (null where unknown).
        Warnings of fewer images than features, and of images of 0 and 1 only.

    Raises:
        UserError: the files cannot be compared, or not by a metric that was asked for.
    """
    ours, theirs = Side.read(samples, "samples"), Side.read(reference, "reference")
    if None not in (ours.shape, theirs.shape) and ours.shape != theirs.shape:
        raise UserError(f"{ours.name}: images are {ours.shape} [H, W, C]; those of {theirs.name} are {theirs.shape}")
    wanted = [name for name in METRICS if name in (metrics or METRICS) and _permitted(name, ours, theirs)]
    _refuse_missing(metrics, wanted, ours, theirs)
    look = (
        ours.must_be_seen(wanted),
        theirs.must_be_seen([name for name in wanted if METRICS[name].needs != "logits"]),
    )
    extractor = network_of(features).open(compute) if any(look) else None
    name = _common_features(ours, theirs, extractor)
    pooled = any(METRICS[name].needs == "features" for name in wanted)
    with np.errstate(all="ignore"):  # what is not finite in the end is refused
        first, second = (
            _measured(side, extractor if seen else None, pooled=pooled)
            for side, seen in zip((ours, theirs), look, strict=True)
        )
        found = evaluate.values(first, second, evaluate.possible(wanted, first, second), compute, settings)
    _refuse_missing(metrics, found, ours, theirs)
    values = {
        **found,
        "dimensions": (dimensions := evaluate.dimensions(found, second)),
        "features": name.rpartition(" ")[0] if name else None,
        "features_digest": name.rpartition(" ")[2] if name else None,
        "n": ours.n,
        "reference_n": theirs.n,
    }
    sizes = {metric: size for metric, size in dimensions.items() if metric in MOMENTS}
    return Comparison(values, [*_few_images(ours, theirs, sizes), *_cast(ours, theirs)])


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
    said += [] if extractor is None else [f"{extractor.name} {extractor.digest}"]
    if len(set(said)) > 1:
        raise UserError(
            f"{ours.name} against {theirs.name}: of different features: {' and '.join(dict.fromkeys(said))}"
        )
    return said[0] if said else None


def _measured(side: Side, extractor: Extractor | None, *, pooled: bool) -> Measured:
    """What is known of a side; the file's own statistics come before computed ones."""
    if extractor is None or side.images is None:
        return Measured(side.statistics)
    seen = measure(extractor, side.images, pooled=pooled)
    own = {key: value for key, value in side.statistics.items() if key.startswith(("mu", "sigma"))}
    return Measured({**seen.statistics, **own}, seen.inception_score, seen.pooled)


def _needs(metric: str) -> str:
    if METRICS[metric].needs == "features":
        more = "; one of the sets must have more images than kid.subset_size" if metric == "kid_se" else ""
        return f"it needs the images of both (arr_0), {METRICS[metric].least} or more{more}"
    if METRICS[metric].needs == "logits":
        return f"it needs the samples' images (arr_0) and features {with_logits()}"
    network = " and a network with spatial features" if METRICS[metric].ending == "_s" else ""
    return f"both need {' and '.join(MOMENTS[metric])}, or images (arr_0){network}"
