"""What is measured, and on which features."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ipdiff.errors import UserError
from ipdiff.parameters import FORBID, SEED, Range, Record, check


@dataclass(frozen=True)
class Classifier(Record):
    """A small CNN trained on the labelled data, whose activations are the features of FID and sFID."""

    __pydantic_config__: ClassVar = FORBID
    width: Annotated[int, "channels of the first convolution; the second has twice as many", Range(1)] = 32
    features: Annotated[int, "width of the penultimate layer: the dimension of the FID features", Range(1)] = 64
    spatial_channels: Annotated[int, "channels of the second convolution's map that sFID uses", Range(1)] = 7
    steps: Annotated[int, "optimiser updates", Range(1)] = 300
    batch_size: Annotated[int, "images an update", Range(1)] = 128
    lr: Annotated[float, "AdamW learning rate, decayed to 0 by a cosine", Range(above=0)] = 2e-3
    seed: Annotated[int, "seed of its initialisation and data order", SEED] = 0
    holdout: Annotated[float, "share of the images kept out to measure its accuracy", Range(0, 0.5)] = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        most = 2 * self.width
        check(
            self.spatial_channels <= most,
            f"spatial_channels is {self.spatial_channels}; the second convolution has {most} (2 * width)",
        )


INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""The published inception-2015-12-05.pt: only its figures may stand beside the paper's."""


@dataclass(frozen=True)
class Inception(Record):
    """Where the file of the Inception network is whose activations are compared."""

    __pydantic_config__: ClassVar = FORBID
    sha256: Annotated[str, "of the file; names the network in the cells' parameters"] = INCEPTION_SHA256
    file: Annotated[str, "its name in raw/ or in the directory $IPDIFF_RAW"] = "inception-2015-12-05.pt"
    url: Annotated[str, "where it is downloaded from if it is in neither"] = (
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
    )
    raw: Annotated[str | None, "instead: path of a network that the engines watch; `sha256` is then not asked"] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_digest(self.sha256)


@dataclass(frozen=True)
class TorchScript(Record):
    """A feature network of the user's own: a TorchScript file, and what is made of images for it."""

    __pydantic_config__: ClassVar = FORBID
    path: Annotated[str, "the file; it is a program, and run only if its digest is `sha256`"]
    sha256: Annotated[str, "of the file; names the network in the cells' parameters"]
    image_size: Annotated[int, "side of the square that images are resized to", Range(1, 4096)]
    resize: Annotated[Literal["bicubic", "bilinear"], "how, with antialiasing; values stay within 0..255"]
    mean: Annotated[list[float], "of red, green and blue in 0..1: subtracted", Range(0, 1)]
    std: Annotated[list[float], "of red, green and blue in 0..1: what is left is divided by it", Range(above=0)]
    width: Annotated[int, "features of an image: the network maps [n, 3, side, side] to [n, width]", Range(1)]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_digest(self.sha256)
        check(self.resize in ("bicubic", "bilinear"), f"resize is {self.resize}; use bicubic or bilinear")
        for name, values in (("mean", self.mean), ("std", self.std)):
            check(len(values) == 3, f"{name} is {values}; use three numbers, of red, green and blue")


def _check_digest(sha256: str) -> None:
    check(re.fullmatch("[0-9a-f]{64}", sha256) is not None, f"sha256 is '{sha256}'; use 64 digits 0-9a-f")


@dataclass(frozen=True)
class KernelDistance(Record):
    """The random subsets of both sets over which KID is a mean."""

    __pydantic_config__: ClassVar = FORBID
    subsets: Annotated[int, "how many", Range(2)] = 100
    subset_size: Annotated[int, "images of each set in a subset; all of a set that has fewer", Range(2)] = 1000
    seed: Annotated[int, "seed of the subsets", SEED] = 0


@dataclass(frozen=True)
class Reference(Record):
    """The real images that samples are compared with."""

    __pydantic_config__: ClassVar = FORBID
    images: Annotated[int | None, "a random subset of so many; all if empty", Range(2)] = None
    seed: Annotated[int, "seed of that subset", SEED] = 0
    neighbours: Annotated[
        bool,
        "also keep the features of all images and their distances to each other, for precision, recall and other "
        "metrics",
    ] = False


@dataclass(frozen=True)
class FeatureKind:
    """A network whose activations are compared. Its settings are the key of its name in a data set, if there is one.

    Attributes:
        open: what opens it: module:function, (file or None, settings or None, compute) -> Extractor.
        file: "stage": what the stage of its name makes first; "published": where its settings say, an `Inception`
            record; "named": the `path` of its settings; "none": it needs no file.
        params: keys of a data set that decide it.
        logits: whether its features have logits, of which the Inception Score is taken.
        spatial: whether it has spatial features, which sFID compares.
        labels: what tables call metrics of its features whose names belong to other networks.
        width: of its pooled features, or the key of its settings that says it.
        flops: arithmetic of one image; 0 where that is little.
    """

    open: str
    file: Literal["stage", "published", "named", "none"] = "none"
    params: tuple[str, ...] = ()
    logits: bool = False
    spatial: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)
    width: int | str = 0
    flops: int = 0


FEATURES = {
    "classifier": FeatureKind(
        "ipdiff.metrics.features.classifier_features:ClassifierFeatures",
        file="stage",
        params=("classifier",),
        width="features",
    ),
    "inception": FeatureKind(
        "ipdiff.metrics.features.inception:open_network",
        file="published",
        params=("inception.sha256",),
        logits=True,
        width=2048,
        flops=11_440_000_000,  # at 299x299: 5.72 G multiply-adds, two operations each
    ),
    "torchscript": FeatureKind(
        "ipdiff.metrics.features.torchscript:TorchScriptFeatures",
        file="named",
        params=tuple(f"torchscript.{key}" for key in ("sha256", "image_size", "resize", "mean", "std", "width")),
        spatial=False,
        labels={"fid": "FD", "kid": "KD", "kid_se": "KD standard error"},
        width="width",
    ),
    "pixels": FeatureKind(
        "ipdiff.metrics.features.pixel_features:PixelFeatures",
        spatial=False,
        labels={"fid": "FD", "kid": "KD", "kid_se": "KD standard error"},
        width=3072,  # of 32x32 pixels in colour: the most there are
    ),
}
"""Feature networks by name; a new one is a row here and what opens it."""

if TYPE_CHECKING:
    FeatureName = str
else:
    FeatureName = Literal[tuple(FEATURES)]


def with_logits() -> str:
    """The networks whose features have logits, for a message."""
    return " or ".join(name for name, kind in FEATURES.items() if kind.logits)


NEAREST = 5
"""Neighbours of each image whose distances are kept: those of density and coverage, more than precision's."""


@dataclass(frozen=True)
class MetricKind:
    """What there is to know of a metric.

    Attributes:
        label: how tables name it.
        function: what computes it, with others of the same function: (samples, reference, names, compute) -> values by
            name, see `Measured`; one with `settings` gets them by their key. Written out, for a cell's code is read
            off its row.
        needs: "moments" of both sets; "logits" of the samples, which not every network has; "features", the pooled
            features of both sets, and the real images' distances to each other.
        ending: of the names of the moments that it compares: mu, sigma (pooled features); mu_s, sigma_s (spatial); ...
        higher: whether more is better; None where neither is.
        decimals: how many the paper prints.
        always: whether it is measured wherever it can be; if not, only where a data set's `metrics` names it.
        least: images that both sets must have.
        settings: the key of its settings in a data set; empty where it has none.
    """

    label: str
    function: str
    needs: Literal["moments", "logits", "features"]
    ending: str = ""
    higher: bool | None = False
    decimals: int = 2
    always: bool = True
    least: int = 2
    settings: str = ""

    @property
    def moments(self) -> tuple[str, ...]:
        """Names of the arrays of a statistics file that it compares."""
        return (f"mu{self.ending}", f"sigma{self.ending}") if self.needs == "moments" else ()


METRICS = {
    "fid": MetricKind("FID", "ipdiff.metrics.scores.frechet:distances", "moments"),
    "sfid": MetricKind("sFID", "ipdiff.metrics.scores.frechet:distances", "moments", "_s"),
    "pixel_fd": MetricKind("pixel FD", "ipdiff.metrics.scores.frechet:distances", "moments", "_pixel"),
    "inception_score": MetricKind("IS", "ipdiff.metrics.scores.inception_score:scores", "logits", higher=True),
    "precision": MetricKind(
        "precision", "ipdiff.metrics.scores.overlap:overlaps", "features", higher=True, decimals=3, least=4
    ),
    "recall": MetricKind(
        "recall", "ipdiff.metrics.scores.overlap:overlaps", "features", higher=True, decimals=3, least=4
    ),
    "kid": MetricKind(
        "KID", "ipdiff.metrics.scores.kernel:distances", "features", decimals=4, always=False, settings="kid"
    ),
    "kid_se": MetricKind(
        "KID standard error",
        "ipdiff.metrics.scores.kernel:distances",
        "features",
        higher=None,
        decimals=4,
        always=False,
        settings="kid",
    ),
    "density": MetricKind(
        "density",
        "ipdiff.metrics.scores.density:densities",
        "features",
        higher=True,
        decimals=3,
        always=False,
        least=NEAREST + 1,
    ),
    "coverage": MetricKind(
        "coverage",
        "ipdiff.metrics.scores.density:densities",
        "features",
        higher=True,
        decimals=3,
        always=False,
        least=NEAREST + 1,
    ),
}
"""Metrics by name; a new one is a row here and its function."""


def label(metric: str, features: str = "", digest: str = "") -> str:
    """How tables name a metric: FID; FD with the features' name and digest where FID is another network's name."""
    own = FEATURES[features].labels.get(metric) if features in FEATURES else None
    return METRICS[metric].label if own is None else f"{own} ({features}:{short(digest)})"


def short(digest: str) -> str:
    """A digest of features as tables and notes show it: eight digits of the file's, then those of its settings."""
    file, dash, settings = digest.rpartition(":")[2].partition("-")
    return file[:8] + dash + settings


if TYPE_CHECKING:
    Metric = str
else:
    Metric = Literal[tuple(METRICS)]


DIGITS = 10
"""Significant digits of a published metric; what follows is rounding noise of the linear algebra."""


def rounded(value: float) -> float:
    """A metric as it is published: ten significant digits. Raises UserError where it is not finite."""
    if not math.isfinite(value):
        raise UserError(f"a metric came out as {value}: features or statistics are too large, or not finite")
    return float(f"{value:.{DIGITS}g}")


@dataclass(frozen=True)
class Measured:
    """What is known of a set of images.

    Attributes:
        statistics: means and covariances of its features, as a statistics file holds them.
        inception_score: where its features have logits.
        pooled: [N, F] float32, its pooled features, where they were kept.
        radii: [N, NEAREST] float32, squared distances of each to its nearest other ones, where they are known already.
    """

    statistics: Mapping[str, NDArray[Any]]
    inception_score: float | None = None
    pooled: NDArray[np.float32] | None = None
    radii: NDArray[np.float32] | None = None

    def features(self) -> NDArray[np.float32]:
        """`pooled`. Raises ValueError where they were not kept."""
        if self.pooled is None:
            raise ValueError("the pooled features of this set were not kept")
        return self.pooled
