"""What is measured, and on which features."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

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
        check(
            re.fullmatch("[0-9a-f]{64}", self.sha256) is not None,
            f"sha256 is '{self.sha256}'; use 64 digits 0-9a-f",
        )


@dataclass(frozen=True)
class Reference(Record):
    """The real images that samples are compared with."""

    __pydantic_config__: ClassVar = FORBID
    images: Annotated[int | None, "a random subset of so many; all if empty", Range(2)] = None
    seed: Annotated[int, "seed of that subset", SEED] = 0
    neighbours: Annotated[bool, "also measure precision and recall: distances of all images to each other"] = False


@dataclass(frozen=True)
class FeatureKind:
    """A network whose activations are compared. Its settings are the key of its name in a data set, if there is one.

    Attributes:
        open: what opens it: module:function, (file or None, settings or None, compute) -> Extractor.
        file: "stage": what the stage of its name makes first; "published": where its settings say, an `Inception`
            record; "none": it needs no file.
        params: keys of a data set that decide it.
        logits: whether its features have logits, of which the Inception Score is taken.
        width: of its pooled features, or the key of its settings that says it.
        flops: arithmetic of one image; 0 where that is little.
    """

    open: str
    file: Literal["stage", "published", "none"] = "none"
    params: tuple[str, ...] = ()
    logits: bool = False
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
}
"""Feature networks by name; a new one is a row here and what opens it."""

if TYPE_CHECKING:
    FeatureName = str
else:
    FeatureName = Literal[tuple(FEATURES)]


def with_logits() -> str:
    """The networks whose features have logits, for a message."""
    return " or ".join(name for name, kind in FEATURES.items() if kind.logits)


@dataclass(frozen=True)
class MetricKind:
    """What there is to know of a metric.

    Attributes:
        label: how tables name it.
        function: what computes it, with others of the same function: (samples, reference, names, compute) -> values by
            name, see `Measured`.
        needs: "moments" of both sets; "logits" of the samples, which not every network has; "neighbours", the pooled
            features of both sets and the real images' distances to each other.
        ending: of the names of the moments that it compares: mu, sigma (pooled features); mu_s, sigma_s (spatial); ...
        higher: whether more is better.
        decimals: how many the paper prints.
        always: whether it is measured wherever it can be; if not, only where a data set's `metrics` names it.
    """

    label: str
    function: str
    needs: Literal["moments", "logits", "neighbours"]
    ending: str = ""
    higher: bool = False
    decimals: int = 2
    always: bool = True

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
        "precision", "ipdiff.metrics.scores.overlap:overlaps", "neighbours", higher=True, decimals=3
    ),
    "recall": MetricKind("recall", "ipdiff.metrics.scores.overlap:overlaps", "neighbours", higher=True, decimals=3),
}
"""Metrics by name; a new one is a row here and its function."""

if TYPE_CHECKING:
    Metric = str
else:
    Metric = Literal[tuple(METRICS)]


@dataclass(frozen=True)
class Measured:
    """What is known of a set of images.

    Attributes:
        statistics: means and covariances of its features, as a statistics file holds them.
        inception_score: where its features have logits.
        pooled: [N, F] float32, its pooled features, where they were kept.
        radii: [N] float32, squared distance of each to its K-th nearest other one, where that is known already.
    """

    statistics: Mapping[str, NDArray[Any]]
    inception_score: float | None = None
    pooled: NDArray[np.float32] | None = None
    radii: NDArray[np.float32] | None = None
