"""The Inception Score, streamed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, xlogy

from ipdiff.device.spec import Compute
from ipdiff.metrics.features.pixels import Features
from ipdiff.metrics.spec import Measured

SPLIT = 5000
"""Images a split; the score is the mean over splits, so it depends on the order of the images."""


class InceptionScore:
    """Observes logits and keeps, for each split, the sums that the score is made of; float64."""

    def __init__(self) -> None:
        self._scores: list[float] = []
        self._start_split()

    def _start_split(self) -> None:
        self._n, self._negative_entropy, self._probabilities = 0, 0.0, np.zeros(0)

    def __call__(self, features: Features) -> None:
        """Add a batch; features without logits are passed over."""
        if "logits" in features:
            self.update(features["logits"])

    def update(self, logits: NDArray[np.floating]) -> None:
        """Add rows: [n, K], finite."""
        while len(logits):
            part = logits[: SPLIT - self._n]
            logs = log_softmax(part.astype(np.float64), axis=1)
            probabilities = np.exp(logs)
            self._negative_entropy += float((probabilities * logs).sum())
            total = probabilities.sum(axis=0)
            self._probabilities = self._probabilities + total if self._n else total
            self._n += len(part)
            logits = logits[len(part) :]
            if self._n == SPLIT:
                self._scores.append(self._split_score())
                self._start_split()

    def _split_score(self) -> float:
        """Exp of the mean KL divergence of an image's classes from the split's."""
        mean = self._probabilities / self._n
        return float(np.exp(self._negative_entropy / self._n - xlogy(mean, mean).sum()))

    @property
    def value(self) -> float | None:
        """Mean over splits (a last, shorter one counts as much); None before the first row.

        Source: guided-diffusion evaluations/evaluator.py Evaluator.compute_inception_score.
        """
        scores = [*self._scores, *([self._split_score()] if self._n else [])]
        return float(np.mean(scores)) if scores else None


def scores(ours: Measured, theirs: Measured, names: Iterable[str], compute: Compute) -> dict[str, float]:
    """The Inception Score of the samples; the reference has no part in it."""
    return {} if ours.inception_score is None else dict.fromkeys(names, ours.inception_score)
