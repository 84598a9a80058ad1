"""Stage drift: how far a sampling chain strays from what the network was trained on (exposure bias, measured).

Two comparisons at each step of the chain, both against images of the data set diffused to the same t: the length of the
predicted noise, and the standard deviation of x_t. Without exposure bias both would agree.

Source: arXiv:2308.15321 section 3 (delta_t, the length of eps); ADM-ES, branches epsilon_consecutive_sampling and
x_t_distribution_consecutive_sampling.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipdiff import rng
from ipdiff.data.images import load_images, to_network
from ipdiff.rng import Purpose
from ipdiff.sample_sets.prediction_error import write_csv
from ipdiff.sample_sets.sample import ImageSampler
from ipdiff.sample_sets.spec import Analysis
from ipdiff.work import progress
from ipdiff.work.shards import cut

COLUMNS = ("t", "eps_chain", "eps_chain_se", "eps_data", "eps_data_se", "delta", "delta_floor")
"""Of drift.csv, one row a step, in the order of the chain.

t: what the network is shown.
eps_chain, eps_data: mean over images of the length of the predicted eps, not scaled: along the chain, and at images
    diffused to t; `_se` their standard errors.
delta: mean over pixels of (standard deviation of the chain's x_t - that of images diffused to t)^2; x_0 is in [-1, 1].
delta_floor: what so few images give of themselves, variance / (2 n): a delta of this size says nothing.
"""


class _Step:
    """Sums over images at one step of the chain."""

    def __init__(self, size: int) -> None:
        self.lengths: dict[str, list[NDArray[np.float64]]] = {"chain": [], "data": []}
        self.sum, self.squares = np.zeros(size), np.zeros(size)

    def add(self, x: Tensor, eps: dict[str, Tensor]) -> None:
        for name, lengths in self.lengths.items():
            lengths.append(torch.linalg.vector_norm(eps[name].flatten(1).double(), dim=1).cpu().numpy())
        pixels = x.flatten(1).double().cpu().numpy()
        self.sum += pixels.sum(0)
        self.squares += np.square(pixels).sum(0)

    def row(self, t: int, variance: NDArray[np.float64]) -> list[object]:
        """The row of COLUMNS, against the variance [D] of images diffused to t."""
        lengths = {name: np.concatenate(found) for name, found in self.lengths.items()}
        n = len(lengths["chain"])
        statistics = [f(found) for found in lengths.values() for f in (np.mean, lambda x: np.std(x) / np.sqrt(n))]
        ours = np.sqrt(np.maximum(self.squares / n - np.square(self.sum / n), 0))
        delta, floor = np.square(ours - np.sqrt(variance)).mean(), variance.mean() / (2 * n)
        return [t, *(f"{value:.9g}" for value in (*statistics, delta, floor))]


@torch.inference_mode()
def run(draw: ImageSampler, images: Path, settings: Analysis, out: Path) -> None:
    """Write drift.csv into `out`.

    Args:
        draw: the sampler; its images 0..n-1 are the chain's.
        images: images.npy, uint8 NHWC: n of them at random, all where there are fewer than `settings.images`.
        settings: n and the images of a network call.
        out: existing directory.
    """
    data, seed = load_images(images), draw.spec.seed
    order = np.sort(rng.permutation(seed, Purpose.ANALYSIS_ORDER, len(data))[: settings.images])
    process = draw.diffusion.with_eps_scale(1.0)
    found = {i: _Step(int(np.prod(draw.shape))) for i in range(draw.nfe)}
    pixels = to_network(data[order]).flatten(1).double().numpy()

    def predicted(x: Tensor, i: int) -> Tensor:
        return process.prediction(draw.model, x, i, clip_denoised=False)[1]

    progress.begin("images", len(order))
    for index in cut(len(order), settings.batch_size):
        x0 = to_network(data[order[index.start : index.stop]]).to(draw.device)

        def seen(at: dict[str, Any], index: range = index, x0: Tensor = x0) -> None:
            i, x = at["i"], at["x"]
            t = int(draw.timesteps[i])
            eps = torch.from_numpy(rng.normals(seed, Purpose.ANALYSIS_EPS, index, draw.shape, step=t))
            x_t = process.q_sample(x0, t, eps.to(draw.device))
            found[i].add(x, {"chain": predicted(x, i), "data": predicted(x_t, i)})

        draw.walk(index, seen)
        progress.tell(index.stop)
    alphas_cumprod, spread = process.chain.alphas_cumprod, pixels.var(0)
    rows = (
        found[i].row(int(draw.timesteps[i]), alphas_cumprod[i] * spread + 1 - alphas_cumprod[i])
        for i in reversed(range(draw.nfe))
    )
    write_csv(out / "drift.csv", COLUMNS, rows)
