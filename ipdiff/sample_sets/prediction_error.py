"""Stage analyse: statistics of the prediction error e_t = predicted x0 - x0 (section 5 of the paper).

The error is that of one network call: x_t is drawn from q(x_t | x0), x0 is predicted from it and clipped. The paper's
text predicts along the reverse chain; the code that made its arrays does what is done here.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy import stats

from ipdiff import rng
from ipdiff.data.images import load_images, to_network
from ipdiff.device.compute import configure
from ipdiff.device.spec import Compute
from ipdiff.nets import build
from ipdiff.rng import Purpose
from ipdiff.sample_sets.spec import Analysis
from ipdiff.spec import RunSpec
from ipdiff.work import progress

SHOWN = (0.3, 0.6, 0.9)
"""Histograms are kept at the t nearest to these shares of T (the paper's Figure 6: t = 300, 600, 900 of 1000)."""
EDGES = np.linspace(-5, 5, 101)
"""Edges of the histograms of standardised errors."""


@dataclass(frozen=True)
class Error:
    """What is kept of the errors at one t.

    Attributes:
        t: 0-based timestep.
        nu: standard deviation over images, averaged over pixels (the paper's nu_t), in units of x0's [-1, 1].
        mean: mean over images and pixels.
        rejected: share of pixels whose errors the Shapiro-Wilk test calls not normal, 0..1.
        histogram: share of standardised errors in each bin of EDGES.
    """

    t: int
    nu: float
    mean: float
    rejected: float
    histogram: NDArray[np.float64]


def timesteps(settings: Analysis, T: int) -> list[int]:
    """The t at which the error is taken: 0, T/n, 2T/n, ... (0, 10, ..., 990 for n = 100 of T = 1000)."""
    return sorted({i * T // settings.timesteps for i in range(settings.timesteps)})


def summarise(t: int, errors: NDArray[np.float32], settings: Analysis, order: NDArray[np.int64]) -> Error:
    """Statistics of the errors at one t.

    Args:
        t: the timestep.
        errors: [N, D] float32, one row an image.
        settings: sizes and level of the test.
        order: [N] int64, a random order of the images: pixel d is tested on entries d k, ..., d k + k - 1 of it
            (around its end), so each pixel is tested on a random set of k different images.

    Returns:
        The statistics; all accumulated in float64.
    """
    mean, std = errors.mean(0, dtype=np.float64), errors.std(0, dtype=np.float64)
    nu, centre = float(std.mean()), float(mean.mean())
    standard = (errors - centre) / (nu or 1.0)
    k = min(settings.normality_samples, len(errors))
    tested = (
        standard[order[np.arange(d * k, (d + 1) * k) % len(order)], d].astype(np.float64) for d in range(len(std))
    )
    rejected = [not _is_normal(values, settings.alpha) for values in tested]
    counts, _ = np.histogram(standard, EDGES)
    return Error(t, nu, centre, float(np.mean(rejected)), counts / errors.size)


def _is_normal(values: NDArray[np.float64], alpha: float) -> bool:
    """True unless Shapiro-Wilk rejects at level alpha; a constant is not normal."""
    return bool(np.ptp(values) > 0 and stats.shapiro(values).pvalue >= alpha)


def run(
    spec: RunSpec,
    weights: Path,
    images: Path,
    settings: Analysis,
    about: Mapping[str, Any],
    out: Path,
    *,
    compute: Compute,
) -> None:
    """Write errors.csv (one row a t), histogram.csv and analysis.json.

    Args:
        spec: the run that made the weights.
        weights: ema.safetensors.
        images: images.npy, uint8 NHWC; a random subset is used where there are more than `settings.images`.
        settings: sizes.
        about: what was analysed (data set, model, seed, step), written beside the numbers.
        out: existing directory.
        compute: device and threads.
    """
    device = configure(compute)
    data = load_images(images)
    order = rng.permutation(spec.seed, Purpose.ANALYSIS_ORDER, len(data))[: settings.images]
    net = build.network(spec)
    net.load_state_dict(load_file(weights))
    model = net.to(device).eval()
    diffusion = build.diffusion(spec)
    shape = (spec.channels, spec.image_size, spec.image_size)

    @torch.inference_mode()
    def errors_at(t: int) -> NDArray[np.float32]:
        errors = np.empty((len(order), int(np.prod(shape))), np.float32)
        for first in range(0, len(order), settings.batch_size):
            index = range(first, min(first + settings.batch_size, len(order)))
            x0 = to_network(data[np.sort(order)[index.start : index.stop]]).to(device)
            eps = rng.normals(spec.seed, Purpose.ANALYSIS_EPS, index, shape, step=t)
            x_t = diffusion.q_sample(x0, t, torch.from_numpy(eps).to(device))
            predicted = diffusion.p_mean_variance(model, x_t, t)["pred_x0"]
            errors[index.start : index.stop] = (predicted - x0).flatten(1).float().cpu().numpy()
        return errors

    found, looked_at = [], timesteps(settings, spec.diffusion.T)
    progress.begin("timesteps", len(looked_at))
    for done, t in enumerate(looked_at, 1):
        pick = rng.permutation(spec.seed, Purpose.ANALYSIS_PICK, len(order), epoch=t)
        found.append(summarise(t, errors_at(t), settings, pick))
        progress.tell(done)
    _write(found, spec.diffusion.T, len(order), settings, about, out)


def _write(found: list[Error], T: int, n: int, settings: Analysis, about: Mapping[str, Any], out: Path) -> None:
    rows = ((e.t, f"{e.nu:.9g}", f"{e.mean:.9g}", f"{e.rejected:.9g}") for e in found)
    write_csv(out / "errors.csv", ("t", "nu", "mean", "rejected"), rows)
    nearest = sorted({min(found, key=lambda e: abs(e.t - share * T)).t for share in SHOWN})
    bins = (
        (e.t, f"{left:.1f}", f"{share:.9g}")
        for e in found
        if e.t in nearest
        for left, share in zip(EDGES[:-1], e.histogram, strict=True)
    )
    write_csv(out / "histogram.csv", ("t", "left", "share"), bins)
    summary = {
        **about,
        "n": n,
        "T": T,
        "nu": float(f"{np.mean([e.nu for e in found]):.9g}"),
        "rejected": float(f"{np.mean([e.rejected for e in found]):.9g}"),
        "normality_samples": min(settings.normality_samples, n),
        "alpha": settings.alpha,
    }
    (out / "analysis.json").write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write rows under a header line."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
