"""Precision and recall: which images lie within reach of the other set's, by distances of their features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipdiff.device.compute import configure
from ipdiff.device.spec import Compute
from ipdiff.metrics.spec import NEAREST, Measured

K = 3
"""A set's manifold is the union of balls around its features that reach to the K-th nearest other one."""

BLOCK = 4096
"""Rows and columns of distances in memory at a time (64 MiB); part of every artifact made from them.

Besides the features, less than 512 MiB are needed for 2048 of them, whatever the number of images: a matrix of
distances, its transpose, and both blocks of features with their squares.
"""


def radii(features: NDArray[np.float32], compute: Compute) -> NDArray[np.float32]:
    """Squared distances from each feature to its nearest other ones: column k - 1 for the k-th.

    Distances are float32 (the official evaluator computes them in float16 and falls back to float32 where that
    overflows, so its figures carry that rounding).

    Args:
        features: [N, F] float32; a memory map is read a block at a time.
        compute: device and threads.

    Returns:
        [N, NEAREST] float32, ascending; infinite where there are fewer others.

    Source: guided-diffusion evaluations/evaluator.py ManifoldEstimator.manifold_radii.
    """
    device = configure(compute)
    nearest = torch.full((len(features), NEAREST + 1), torch.inf, device=device)
    for here, rows in blocks(features, device):
        for there, columns in blocks(features, device, here.start):  # those before have seen these rows
            found = squared_distances(rows, columns)
            if there == here:
                found.fill_diagonal_(0)  # itself, whatever rounding says
            else:
                _keep_nearest(nearest[there], found.T)
            _keep_nearest(nearest[here], found)
    return nearest[:, 1:].cpu().numpy()


def _keep_nearest(nearest: Tensor, found: Tensor) -> None:
    """Put the smallest of both into `nearest`: [n, NEAREST + 1] ascending, and found [n, m]."""
    count = nearest.shape[1]
    best = found.contiguous().topk(min(count, found.shape[1]), dim=1, largest=False).values
    nearest.copy_(torch.cat([nearest, best], dim=1).topk(count, dim=1, largest=False).values)


def precision_recall(
    features: NDArray[np.float32],
    own_radii: NDArray[np.float32],
    reference: NDArray[np.float32],
    reference_radii: NDArray[np.float32],
    compute: Compute,
) -> tuple[float, float]:
    """Share of samples in the reference's manifold, and share of the reference in the samples'.

    Args:
        features: [N, F] float32, of the samples.
        own_radii: [N] float32, squared, to the K-th of their neighbours (`radii`).
        reference: [M, F] float32, of the real images.
        reference_radii: [M] float32, theirs.
        compute: device and threads.

    Returns:
        Precision and recall, each 0..1.

    Source: guided-diffusion evaluations/evaluator.py ManifoldEstimator.evaluate_pr.
    """
    device = configure(compute)
    sample_inside = torch.zeros(len(features), dtype=torch.bool, device=device)
    reference_inside = torch.zeros(len(reference), dtype=torch.bool, device=device)
    for there, columns in blocks(reference, device):
        reach = torch.from_numpy(reference_radii[there]).to(device)
        for here, rows in blocks(features, device):
            found = squared_distances(rows, columns)
            sample_inside[here] |= (found <= reach).any(dim=1)
            own_reach = torch.from_numpy(own_radii[here]).to(device)
            reference_inside[there] |= (found <= own_reach[:, None]).any(dim=0)
    return float(sample_inside.double().mean()), float(reference_inside.double().mean())


def squared_distances(rows: Tensor, columns: Tensor) -> Tensor:
    """|r|^2 - 2 r.c + |c|^2, at least 0: [n, F] and [m, F] float32 -> [n, m] float32."""
    out = torch.addmm((columns * columns).sum(dim=1), rows, columns.T, alpha=-2)
    return out.add_((rows * rows).sum(dim=1)[:, None]).clamp_(min=0)


def blocks(features: NDArray[np.float32], device: torch.device, first: int = 0) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows from row `first` on (the start of a block), on the device."""
    for start in range(first, len(features), BLOCK):
        part = slice(start, start + BLOCK)
        yield part, torch.from_numpy(np.array(features[part])).to(device)


def overlaps(ours: Measured, theirs: Measured, names: Iterable[str], compute: Compute) -> dict[str, float]:
    """Precision and recall, those that are named."""
    first, second = ours.features(), theirs.features()
    own, reach = (
        radii(side, compute) if known.radii is None else known.radii
        for side, known in ((first, ours), (second, theirs))
    )
    precision, recall = precision_recall(first, own[:, K - 1], second, reach[:, K - 1], compute)
    found = {"precision": precision, "recall": recall}
    return {name: found[name] for name in names}
