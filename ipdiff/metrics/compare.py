"""Metrics of files from outside the pipeline: `ipdiff evaluate SAMPLES --reference FILE`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipdiff.data.arrays import Npz, open_npz
from ipdiff.data.formats import filekind
from ipdiff.data.images import check_images, load_images
from ipdiff.device.spec import Compute
from ipdiff.errors import UserError, brief
from ipdiff.metrics import evaluate
from ipdiff.metrics.features.extractors import Extractor, Network
from ipdiff.metrics.features.inception_file import obtain
from ipdiff.metrics.scores.overlap import K
from ipdiff.metrics.sets import measure
from ipdiff.metrics.spec import FEATURES, METRICS, Classifier, Inception, Measured, with_logits
from ipdiff.work import recipes
from ipdiff.work.recipes import RECIPE

MOMENTS = {name: kind.moments for name, kind in METRICS.items() if kind.moments}
"""Metric -> the names of its moments in a file."""

_BLOCK = 64
"""Images whose values are looked at together."""


_EXPECTED = "an npz with images (arr_0) or statistics (mu, sigma, mu_s, sigma_s), or an npy of images"


@dataclass(frozen=True)
class Comparison:
    """What two files are measured to be, and what makes the figures doubtful, a line each."""

    values: dict[str, Any]
    warnings: list[str]


@dataclass(frozen=True)
class Side:
    """One of the two files: its images and its statistics, as far as it has them."""

    path: Path
    images: NDArray[np.uint8] | None
    statistics: Mapping[str, NDArray[Any]]

    @staticmethod
    def read(path: Path) -> Side:
        """Read an npz (arr_0, or mu, sigma, mu_s, sigma_s, or both) or an npy of images; its bytes decide which.

        Other arrays of an npz are not read.

        Raises:
            UserError: it is neither, or is damaged; its images are not uint8 [N, H, W, C] with N >= 2 and C 1 or 3; its
                statistics are not finite numbers [d] and [d, d].
        """
        kind = filekind.look(path)
        if kind.name == "npy":
            return Side(path, _two_or_more(path, load_images(path)), {})
        if kind.name != "npz":
            raise UserError(f"{path}: is {kind.words}; expected {_EXPECTED}")
        with open_npz(path) as file:
            pictures = "arr_0" in file.names
            if pictures:
                header = file.header("arr_0")
                check_images(header.shape, header.dtype, path)
            elif not {"mu", "sigma"} <= {*file.names}:
                raise UserError(f"{path}: expected {_EXPECTED}, found {brief(', '.join(file.names))}")
            statistics = _moments(file) | _about(file)
            images = _two_or_more(path, file.read("arr_0")) if pictures else None
        return Side(path, images, statistics)

    @property
    def shape(self) -> list[int] | None:
        """Of an image, [H, W, C]; None where the file does not say."""
        if self.images is not None:
            return list(self.images.shape[1:])
        return [int(size) for size in self.statistics["image_shape"]] if "image_shape" in self.statistics else None

    @property
    def n(self) -> int | None:
        """Number of images; None where the file does not say."""
        if self.images is not None:
            return len(self.images)
        return int(self.statistics["n"]) if "n" in self.statistics else None

    def lacks(self, metric: str) -> bool:
        """Whether the metric needs moments that the file does not hold."""
        return metric in MOMENTS and not self.statistics.keys() >= set(MOMENTS[metric])

    def must_be_seen(self, wanted: Collection[str]) -> bool:
        """Whether something that is wanted has to be computed from the images."""
        return self.images is not None and any(name not in MOMENTS or self.lacks(name) for name in wanted)


def _two_or_more(path: Path, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if len(images) < 2:
        raise UserError(f"{path}: a Frechet distance needs 2 images or more; got {len(images)}")
    return images


def _moments(file: Npz) -> dict[str, NDArray[Any]]:
    """The means and covariances in a file: mu [d] and sigma [d, d], finite real numbers."""
    found: dict[str, NDArray[Any]] = {}
    for pair in MOMENTS.values():
        there = [name for name in pair if name in file.names]
        if len(there) == 1:
            raise UserError(f"{file.path}: holds {there[0]} alone; expected both {' and '.join(pair)}, or neither")
        if not there:
            continue
        mu, sigma = headers = [file.header(name) for name in pair]
        real = all(header.dtype.kind in "fiu" for header in headers)
        if not real or len(mu.shape) != 1 or 0 in mu.shape or sigma.shape != mu.shape * 2:
            shown = " and ".join(
                f"{name} {brief(header.dtype, 20)} {brief(list(header.shape), 30)}"
                for name, header in zip(pair, headers, strict=True)
            )
            raise UserError(f"{file.path}: holds {shown}; expected real numbers [d] and [d, d]")
        for name in pair:
            found[name] = file.read(name)
            if bad := int((~np.isfinite(found[name])).sum()):
                raise UserError(f"{file.path}: {name} has {bad} values that are not finite, of {found[name].size}")
    return found


def _about(file: Npz) -> dict[str, NDArray[Any]]:
    """What a file says of its images: n [], image_shape [3], features []."""
    found: dict[str, NDArray[Any]] = {}
    for name, kinds, size in (("n", "iu", 1), ("image_shape", "iu", 3), ("features", "U", 1)):
        if name not in file.names:
            continue
        header = file.header(name)
        if header.dtype.kind not in kinds or math.prod(header.shape) != size:
            expected = "a text" if kinds == "U" else f"{size} whole number{'s' * (size > 1)}"
            shown = f"{brief(header.dtype, 20)} {brief(list(header.shape), 30)}"
            raise UserError(f"{file.path}: {name} is {shown}; expected {expected}")
        found[name] = file.read(name).reshape(-1) if size > 1 else file.read(name).reshape(())
    return found


def network_of(features: str) -> Network:
    """The network that `--features` names: one of `FEATURES` by name, a classifier.safetensors, or a TorchScript file.

    Raises:
        UserError: there is no such file, or no recipe beside a classifier says how it was built.
    """
    named = [name for name, kind in FEATURES.items() if kind.file != "stage"]
    if features in named:
        published = Inception() if FEATURES[features].file == "published" else None
        return Network(features, published and obtain(published), published)
    path = Path(features)
    if not path.is_file():
        raise UserError(f"--features {features}: no such file; use {' or '.join(named)}, or a path of a network")
    if path.suffix != ".safetensors":
        return Network("inception", path, Inception(raw=features))
    params = recipes.read(path.parent / RECIPE).get("params", {})
    found = [value for key, value in params.items() if key.endswith(".classifier")]
    if not found:
        raise UserError(f"{path.parent / RECIPE}: not the recipe of a classifier")
    try:
        return Network("classifier", path, Classifier(**found[0]))
    except TypeError as error:
        raise UserError(f"{path.parent / RECIPE}: not the recipe of a classifier: {brief(error)}") from None


def compare(
    samples: Path, reference: Path, features: str, compute: Compute, metrics: Collection[str] = ()
) -> Comparison:
    """Measure two files against each other.

    Statistics in a file are used as they are; what is missing is computed from its images.

    Args:
        samples: npz or npy, see `Side.read`.
        reference: npz or npy of the real images.
        features: see `network_of`; opened only if something has to be computed.
        compute: device and threads.
        metrics: which of `METRICS`; all that the files permit if empty.

    Returns:
        The metrics, and what they are of: features, features_digest, n, reference_n (null where unknown). Warnings of
        fewer images than features, and of images of 0 and 1 only.

    Raises:
        UserError: the files cannot be compared, or not by a metric that was asked for.
    """
    ours, theirs = Side.read(samples), Side.read(reference)
    if None not in (ours.shape, theirs.shape) and ours.shape != theirs.shape:
        raise UserError(f"{samples}: images are {ours.shape} [H, W, C]; those of {reference} are {theirs.shape}")
    wanted = [name for name in METRICS if name in (metrics or METRICS) and _permitted(name, ours, theirs)]
    _refuse_missing(metrics, wanted, ours, theirs)
    look = (
        ours.must_be_seen(wanted),
        theirs.must_be_seen([name for name in wanted if METRICS[name].needs != "logits"]),
    )
    extractor = network_of(features).open(compute) if any(look) else None
    name = _common_features(ours, theirs, extractor)
    pooled = any(METRICS[name].needs == "neighbours" for name in wanted)
    with np.errstate(all="ignore"):  # what is not finite in the end is refused
        first, second = (
            _measured(side, extractor if seen else None, pooled=pooled)
            for side, seen in zip((ours, theirs), look, strict=True)
        )
        found = evaluate.values(first, second, evaluate.possible(wanted, first, second), compute)
    _refuse_missing(metrics, found, ours, theirs)
    values = {
        **{metric: found[metric] for metric in wanted if metric in found},
        "features": name.rpartition(" ")[0] if name else None,
        "features_digest": name.rpartition(" ")[2] if name else None,
        "n": ours.n,
        "reference_n": theirs.n,
    }
    sizes = {metric: len(first.statistics[MOMENTS[metric][0]]) for metric in found if metric in MOMENTS}
    return Comparison(values, [*_few_images(ours, theirs, sizes), *_cast(ours, theirs)])


def _permitted(metric: str, ours: Side, theirs: Side) -> bool:
    """Whether the files hold what the metric needs."""
    if METRICS[metric].needs == "logits":
        return ours.images is not None
    if METRICS[metric].needs == "neighbours":
        return all(side.images is not None and len(side.images) > K for side in (ours, theirs))
    return not any(side.images is None and side.lacks(metric) for side in (ours, theirs))


def _refuse_missing(metrics: Collection[str], there: Collection[str], ours: Side, theirs: Side) -> None:
    if missing := [metric for metric in (metrics or ("fid",)) if metric not in there]:
        raise UserError(f"{ours.path} against {theirs.path}: no {missing[0]}: {_needs(missing[0])}")


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
            f"{ours.path} against {theirs.path}: of different features: {' and '.join(dict.fromkeys(said))}"
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
    if METRICS[metric].needs == "neighbours":
        return f"it needs the images of both (arr_0), {K + 1} or more"
    if METRICS[metric].needs == "logits":
        return f"it needs the samples' images (arr_0) and features {with_logits()}"
    return f"both need {' and '.join(MOMENTS[metric])}, or images (arr_0)"
