"""Features of images and their moments: what a Frechet distance compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ipdiff.device.spec import Compute
from ipdiff.errors import UserError
from ipdiff.metrics.features.pixels import Features
from ipdiff.metrics.scores.frechet import Moments
from ipdiff.metrics.spec import FEATURES
from ipdiff.parameters import resolve
from ipdiff.work import progress, signals
from ipdiff.work.shards import Shards, cut

NAMES = {"pool": "", "spatial": "_s", "pixel": "_pixel"}
"""Kind of feature -> ending of its mu and sigma in a statistics file (the ADM evaluator's names first)."""


class Extractor(Protocol):
    """Anything that turns images into features.

    Attributes:
        name: name of the features, as metrics carry it.
        digest: of the network's file.
        batch_size: images a call; a constant, for the last bits of features may depend on it.
    """

    name: str
    digest: str
    batch_size: int

    def __call__(self, images: NDArray[np.uint8]) -> Features:
        """Features of images [n, H, W, C] uint8.

        Returns:
            pool [n, F] (FID), pixel [n, P] (in [-1, 1]), and where the network has them spatial [n, S] (sFID) and
            logits [n, K] (Inception Score); float32 or float64.
        """
        ...


@dataclass(frozen=True)
class Network:
    """A feature network and how to open it.

    Attributes:
        kind: a key of `FEATURES`.
        path: its file; None where it needs none, or its settings say it.
        settings: how it was built, or which file it must be; None where it has none.
    """

    kind: str
    path: Path | None = None
    settings: Any = None

    def open(self, compute: Compute) -> Extractor:
        """Load it. Raises UserError or IntegrityError where the file is not that network."""
        return resolve(FEATURES[self.kind].open)(self.path, self.settings, compute)


Observer = Callable[[Features], None]
"""Something that is shown the features of every batch, in order."""


UNIT = 5000
"""Images, about, whose features are saved together where a set has more."""


def show(
    extractor: Extractor,
    images: NDArray[np.uint8],
    *observers: Observer,
    rows: NDArray[np.int64] | None = None,
    shards: Shards | None = None,
) -> None:
    """Show the features of images to observers, a batch at a time: no more than a unit of a large set is in memory.

    Args:
        extractor: what computes the features.
        images: [N, H, W, C] uint8, N >= 2; a memory map is read as it goes.
        observers: called with each batch's features, in order; in a process that only helps they are not called.
        rows: [n] int64, the images to show; all if None.
        shards: where the features of a set of more than `UNIT` images are saved as they are finished, for restarts and
            by several processes; None: nowhere. The batches are the same.

    Raises:
        UserError: fewer than 2 images, or images that the extractor refuses.
        Preempted: SIGTERM or SIGUSR1 came; finished units are saved.
    """
    count = len(images) if rows is None else len(rows)
    if count < 2:
        raise UserError(f"a Frechet distance needs 2 images or more; got {count}")

    def features(batch: range) -> Features:
        part = slice(batch.start, batch.stop)
        return extractor(images[part] if rows is None else images[rows[part]])

    for batch in _batches(features, count, extractor.batch_size, shards):
        for observer in observers:
            observer(batch)


def _batches(features: Callable[[range], Features], count: int, size: int, shards: Shards | None) -> Iterator[Features]:
    """The features of all batches in order; of none in a process that only helps."""
    units = cut(count, max(1, UNIT // size) * size)
    if shards is None or len(units) == 1:
        progress.begin("images", count)
        for batch in cut(count, size) if shards is None or shards.first else ():
            yield features(batch)
            progress.tell(batch.stop)
        return
    with signals.deferred() as stop:

        def compute(unit: range) -> Features:
            found: list[Features] = []
            for batch in cut(len(unit), size):
                stop.check()
                found.append(features(range(unit.start + batch.start, unit.start + batch.stop)))
                progress.more(batch.stop)
            return {kind: np.concatenate([each[kind] for each in found]) for kind in found[0]}

        shards.complete(units, compute)
    for unit in shards.parts(units) if shards.first else ():
        rows = len(next(iter(unit.values())))
        for batch in cut(rows, size):
            yield {kind: values[batch.start : batch.stop] for kind, values in unit.items()}


class Statistics:
    """Observes features and keeps the moments of every kind, and what they are of."""

    def __init__(self) -> None:
        self._moments: dict[str, Moments] = {}

    def __call__(self, features: Features) -> None:
        """Add a batch."""
        for kind in NAMES:
            if kind in features:
                rows = features[kind]
                self._moments.setdefault(kind, Moments(rows.shape[1])).update(rows)

    def arrays(self, extractor: Extractor, shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
        """What a statistics file holds.

        Means and covariances are float64 (the official evaluator's means are float32).

        Args:
            extractor: what computed the features.
            shape: of an image, [H, W, C].

        Returns:
            mu, sigma (pool), mu_s, sigma_s (spatial, where there are some), mu_pixel, sigma_pixel, float64 (sigma
            with N - 1); n [] and image_shape [3], int64; features [], text: name and digest of the network.

        Source: guided-diffusion evaluations/evaluator.py (the names of the first four).
        """
        out: dict[str, NDArray[Any]] = {
            "n": np.array(self._moments["pool"].n, np.int64),
            "image_shape": np.array(shape, np.int64),
            "features": np.array(f"{extractor.name} {extractor.digest}"),
        }
        for kind, moments in self._moments.items():
            out[f"mu{NAMES[kind]}"], out[f"sigma{NAMES[kind]}"] = moments.mu, moments.cov
        return out


class Pooled:
    """Observes features and keeps the pooled ones, as float32."""

    def __init__(self, count: int) -> None:
        """`count`: images that will be shown; joining batches afterwards would take their memory twice."""
        self._count, self._filled = count, 0
        self._rows = np.empty((0, 0), np.float32)

    def __call__(self, features: Features) -> None:
        """Add a batch. Raises ValueError beyond `count`."""
        rows = features["pool"]
        if self._filled + len(rows) > self._count:
            raise ValueError(f"{self._filled + len(rows)} images were shown; {self._count} were announced")
        if not self._filled:
            self._rows = np.empty((self._count, rows.shape[1]), np.float32)
        self._rows[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)

    def array(self) -> NDArray[np.float32]:
        """All of them: [N, F] float32."""
        return self._rows[: self._filled]
