"""Metrics of files from outside the pipeline: `ipdiff evaluate SAMPLES --reference FILE`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipdiff import evaluate
from ipdiff.artifact import RECIPE, read_recipe
from ipdiff.data.arrays import load_npz
from ipdiff.data.images import check_images, load_images
from ipdiff.errors import UserError
from ipdiff.evaluate import Measured, Neighbours
from ipdiff.inception import obtain
from ipdiff.metrics.features import NAMES, Extractor, Network
from ipdiff.metrics.manifold import radii
from ipdiff.spec import METRICS, Classifier, Compute, Inception

MOMENTS = {metric: (f"mu{NAMES[kind]}", f"sigma{NAMES[kind]}") for metric, kind in evaluate.DISTANCES.items()}
"""Metric -> the names of its moments in a file."""

OVERLAPS = {"precision", "recall"}


@dataclass(frozen=True)
class Side:
    """One of the two files: its images and its statistics, as far as it has them."""

    path: Path
    images: NDArray[np.uint8] | None
    statistics: Mapping[str, NDArray[Any]]

    @staticmethod
    def read(path: Path) -> Side:
        """Read an npz (arr_0, or mu, sigma, mu_s, sigma_s, or both) or an npy of images.

        Raises:
            UserError: it is neither, or its images are not uint8 [N, H, W, C].
        """
        if path.suffix == ".npy":
            return Side(path, load_images(path), {})
        arrays = load_npz(path)
        images = check_images(arrays.pop("arr_0"), path) if "arr_0" in arrays else None
        if images is None and not {"mu", "sigma"} <= arrays.keys():
            raise UserError(
                f"{path}: expected images (arr_0) or statistics (mu, sigma, mu_s, sigma_s), found "
                f"{', '.join(arrays) or 'nothing'}"
            )
        return Side(path, images, arrays)

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


def network_of(features: str) -> Network:
    """The network that `--features` names: `inception`, a classifier.safetensors, or another TorchScript file.

    Raises:
        UserError: there is no such file, or no recipe beside a classifier says how it was built.
    """
    if features == "inception":
        spec = Inception()
        return Network(obtain(spec), sha256=spec.sha256)
    path = Path(features)
    if not path.is_file():
        raise UserError(f"--features {features}: no such file; use inception, or a path of a network")
    if path.suffix != ".safetensors":
        return Network(path)
    params = read_recipe(path.parent / RECIPE).get("params", {})
    found = [value for key, value in params.items() if key.endswith(".classifier")]
    if not found:
        raise UserError(f"{path.parent / RECIPE}: not the recipe of a classifier")
    return Network(path, Classifier(**found[0]))


def compare(
    samples: Path, reference: Path, features: str, compute: Compute, metrics: Collection[str] = ()
) -> dict[str, Any]:
    """Measure two files against each other.

    Statistics in a file are used as they are; what is missing is computed from its images.

    Args:
        samples: npz or npy, see `Side.read`.
        reference: npz or npy of the real images.
        features: see `network_of`; opened only if something has to be computed.
        compute: device and threads.
        metrics: which of `METRICS`; all that the files permit if empty.

    Returns:
        The metrics, and what they are of: features, features_digest, n, reference_n (null where unknown).

    Raises:
        UserError: the files cannot be compared, or not by a metric that was asked for.
    """
    ours, theirs = Side.read(samples), Side.read(reference)
    if None not in (ours.shape, theirs.shape) and ours.shape != theirs.shape:
        raise UserError(f"{samples}: images are {ours.shape} [H, W, C]; those of {reference} are {theirs.shape}")
    wanted = [name for name in METRICS if name in (metrics or METRICS)]
    look = (_must_look(ours, theirs, {*wanted}), _must_look(theirs, ours, {*wanted} - {"inception_score"}))
    extractor = network_of(features).open(compute) if any(look) else None
    name = _common_features(ours, theirs, extractor)
    pooled = all(look) and bool(OVERLAPS & {*wanted})
    first, second = (
        _measured(side, extractor if seen else None, pooled=pooled)
        for side, seen in zip((ours, theirs), look, strict=True)
    )
    found = evaluate.distances(first.statistics, second.statistics, wanted) | evaluate.scores(first)
    if first.pooled is not None and second.pooled is not None:
        near = Neighbours(second.pooled, radii(second.pooled, compute))
        found |= evaluate.overlaps(first, near, compute)
    if missing := [metric for metric in (metrics or ("fid",)) if metric not in found]:
        raise UserError(f"{samples} against {reference}: no {missing[0]}: {_needs(missing[0])}")
    return {
        **{metric: found[metric] for metric in wanted if metric in found},
        "features": name.rpartition(" ")[0] if name else None,
        "features_digest": name.rpartition(" ")[2] if name else None,
        "n": ours.n,
        "reference_n": theirs.n,
    }


def _must_look(side: Side, other: Side, wanted: set[str]) -> bool:
    """Whether something that is wanted has to be computed from a side's images."""
    if side.images is None:
        return False
    if "inception_score" in wanted or (OVERLAPS & wanted and other.images is not None):
        return True
    return any(side.lacks(metric) and (other.images is not None or not other.lacks(metric)) for metric in wanted)


def _common_features(ours: Side, theirs: Side, extractor: Extractor | None) -> str | None:
    """Name and digest of the features that the figures are of; None where nothing says it."""
    said = [str(side.statistics["features"]) for side in (ours, theirs) if "features" in side.statistics]
    said += [] if extractor is None else [f"{extractor.name} {extractor.digest}"]
    if len(set(said)) > 1:
        raise UserError(
            f"{ours.path} against {theirs.path}: of different features: {' and '.join(dict.fromkeys(said))}"
        )
    return said[0] if said else None


def _measured(side: Side, extractor: Extractor | None, *, pooled: bool) -> Measured:
    """What is known of a side; the file's own statistics come before computed ones."""
    if extractor is None or side.images is None:
        return Measured(dict(side.statistics), None, None)
    seen = evaluate.measure(extractor, side.images, pooled=pooled)
    own = {key: value for key, value in side.statistics.items() if key.startswith(("mu", "sigma"))}
    return Measured({**seen.statistics, **own}, seen.inception_score, seen.pooled)


def _needs(metric: str) -> str:
    if metric in OVERLAPS:
        return "it needs the images of both (arr_0)"
    if metric == "inception_score":
        return "it needs the samples' images (arr_0) and features inception"
    return f"both need {' and '.join(MOMENTS[metric])}, or images (arr_0)"
