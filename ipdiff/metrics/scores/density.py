"""Density and coverage: how many samples lie in the balls around the real images, and in how many balls any lies."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from ipdiff.device.compute import configure
from ipdiff.device.spec import Compute
from ipdiff.metrics.scores.overlap import blocks, radii, squared_distances
from ipdiff.metrics.spec import NEAREST, Measured

K = NEAREST
"""The ball around a real image reaches to the K-th nearest other one; 5 as published."""


def density_coverage(
    features: NDArray[np.float32], reference: NDArray[np.float32], reach: NDArray[np.float32], compute: Compute
) -> tuple[float, float]:
    """In how many balls a sample lies, over K; and the share of the balls in which a sample lies.

    A ball is open, as in the published code: an image at its radius lies outside. (Precision and recall take closed
    ones, as the ADM evaluator does.)

    Args:
        features: [N, F] float32, of the samples.
        reference: [M, F] float32, of the real images.
        reach: [M] float32, squared distance of each of these to its K-th nearest other one.
        compute: device and threads.

    Returns:
        Density, 0 or more, and coverage, 0..1. Of samples from the real images' own distribution the expected density
        is 1 and the expected coverage 1 - (M-1)...(M-K) / ((N+M-1)...(N+M-K)).

    Source: Naeem et al., arXiv:2002.09797, section 3 and lemma 2; clovaai/generative-evaluation-prdc prdc/prdc.py.
    """
    device = configure(compute)
    inside, covered = 0, 0
    for there, columns in blocks(reference, device):
        radius = torch.from_numpy(np.array(reach[there])).to(device)
        found = torch.zeros(len(columns), dtype=torch.bool, device=device)
        for _, rows in blocks(features, device):
            within = squared_distances(rows, columns) < radius
            inside += int(within.sum())
            found |= within.any(dim=0)
        covered += int(found.sum())
    return inside / (K * len(features)), covered / len(reference)


def densities(ours: Measured, theirs: Measured, names: Iterable[str], compute: Compute) -> dict[str, float]:
    """Density and coverage, those that are named."""
    reach = radii(theirs.features(), compute) if theirs.radii is None else theirs.radii
    density, coverage = density_coverage(ours.features(), theirs.features(), reach[:, K - 1], compute)
    found = {"density": density, "coverage": coverage}
    return {name: found[name] for name in names}
