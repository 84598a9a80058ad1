"""How fast a run trains and samples on this machine, against the machine's own convolutions in the same minutes.

The limit is the fastest of a few 3x3 convolutions in the same precision; on a GPU a large matrix product stands beside
it, whose rate is nearer to what the maker promises. Both are measured in turns with the work, so that all meet the same
other processes; a rate is that of the quicker quarter of its turns.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch.nn import functional as F

from ipdiff.device.compute import configure, dtype
from ipdiff.device.spec import Compute
from ipdiff.device.streams import draws_on
from ipdiff.errors import UserError
from ipdiff.nets import costs
from ipdiff.pipeline import config
from ipdiff.rng import Purpose
from ipdiff.sample_sets.sample import ImageSampler
from ipdiff.sample_sets.spec import Sampler
from ipdiff.spec import RunSpec
from ipdiff.training.run import Run
from ipdiff.training.segment import feeder_for

SHAPES = ((128, 32), (256, 16), (256, 8))
"""(channels, image size) of the convolutions whose fastest is the limit."""
CALLS = 4
"""Calls of each convolution, and of the matrix product, a turn."""
MATMUL = 8192
"""Rows and columns of the matrix product."""


@dataclass(frozen=True)
class Measured:
    """One measured speed.

    Attributes:
        what: what was measured.
        speed: how fast, in `unit`.
        unit: e.g. images/s.
        gflops: its arithmetic, in GFLOP/s.
        limit: the convolutions' arithmetic, in GFLOP/s.
        matmul: the matrix product's, where it was measured; else 0.
    """

    what: str
    speed: float
    unit: str
    gflops: float
    limit: float
    matmul: float = 0.0

    @property
    def ratio(self) -> float:
        """Share of the limit."""
        return self.gflops / self.limit

    @property
    def of_matmul(self) -> float | None:
        """Share of the matrix product's rate."""
        return self.gflops / self.matmul if self.matmul else None


def run(dataset: str, model: str | None, seconds: float) -> list[Measured]:
    """Training and sampling of a data set's configuration.

    Args:
        dataset: a data set of any study.
        model: a model of its study; None = the first that the data set's families train.
        seconds: time to measure.

    Raises:
        UserError: a name is unknown, the device is absent, or `seconds` is not positive.
    """
    if not seconds > 0:
        raise UserError(f"--seconds is {seconds:g}; use more than 0")
    params = config.Studies().owner(dataset)
    settings = params.dataset(dataset)
    trained = [name for name, entry in params.models.items() if getattr(settings.families, entry.family) is not None]
    if model is None and not trained:
        raise UserError(f"no model of {params.path} is trained on {dataset}; name one with --model")
    spec = params.run_spec(dataset, model or trained[0], 0)
    name = f"{dataset} {model or trained[0]}"
    return measure(name, spec, settings.sampling.batch_size, seconds, settings.sampling_compute)


def measure(
    name: str, spec: RunSpec, sample_batch: int, seconds: float, sampling: Compute | None = None
) -> list[Measured]:
    """Training (an update of the whole batch) and ancestral sampling of a run.

    Args:
        name: how the rows call it.
        spec: the run; its `compute` says on what.
        sample_batch: images a network call of sampling.
        seconds: time to measure, after one call of everything.
        sampling: what samples are drawn on, on the device of the run; the run's `compute` if None.
    """
    computes = {"train": spec.compute, "sample": sampling or spec.compute}
    precisions = {compute.precision: compute for compute in computes.values()}
    device = configure(spec.compute)
    feeder = feeder_for(Run(spec, _images(spec)))
    batch = spec.training.batch_size
    updates = feeder.every  # a whole piece: with all that the host does for it

    def train() -> None:
        for _ in range(updates):
            feeder.advance()

    with closing(feeder):
        train()  # half the weights start at zero, and a GPU multiplies zeros with less power
        sampler = sampler_of(feeder.settle(), computes["sample"])
        calls = {
            "train": train,
            "sample": lambda: sampler.draw(range(sample_batch)),
        }
        limits = {precision: _limits(compute, device) for precision, compute in precisions.items()}
        calls |= {f"{kind} {key}": call for kind, known in limits.items() for key, (call, _) in known.items()}
        rates = _rates(calls, seconds, device)

    def limit(what: str) -> tuple[float, float]:
        """GFLOP/s of the fastest convolution and of the matrix product in the precision of `what`."""
        kind = computes[what].precision
        found = {key: rates[f"{kind} {key}"] * work for key, (_, work) in limits[kind].items()}
        product = found.pop("matmul", 0.0)
        return max(found.values()), product

    flops = costs.of(spec).flops / 1e9
    train_rate, sample_rate = rates["train"] * updates * batch, rates["sample"] * sample_batch * sampler.nfe
    train_flops, sample_flops = train_rate * flops * costs.UPDATE, sample_rate * flops
    return [
        Measured(f"{name} training, batch {batch}", train_rate, "images/s", train_flops, *limit("train")),
        Measured(
            f"{name} sampling, batch {sample_batch}", sample_rate, "image-steps/s", sample_flops, *limit("sample")
        ),
    ]


def normals(device: torch.device, seconds: float) -> float:
    """Normals a second that the device draws for a batch of CIFAR-10's size."""
    draws = draws_on(device)
    shape, batch, calls = (3, 32, 32), 128, 20 if device.type == "cuda" else 1

    def several() -> None:
        for step in range(calls):
            draws.normals(0, Purpose.EPS, range(batch), shape, step=step)

    return _rates({"normals": several}, seconds, device)["normals"] * calls * batch * math.prod(shape)


def describe(rows: list[Measured]) -> str:
    """The rows as text: what, speed, arithmetic, limit, share."""
    lines = [f"{'what':44} {'ours':>22} {'GFLOP/s':>9} {'limit':>9} {'ratio':>6}"]
    for row in rows:
        speed = f"{row.speed:,.4g} {row.unit}" if row.speed < 1000 else f"{row.speed:,.0f} {row.unit}"
        lines.append(
            f"{row.what:44} {speed:>22} {row.gflops:9.0f} {row.limit:9.0f} {100 * row.ratio:5.0f}%"
            + ("" if row.of_matmul is None else f", {100 * row.of_matmul:.0f}% of a matrix product's {row.matmul:.0f}")
        )
    return "\n".join(lines)


def for_plan(dataset: str, rows: list[Measured]) -> str:
    """The argument with which `ipdiff plan` takes these speeds."""
    return f"--speed {dataset}={rows[0].speed:.4g},{rows[1].speed:.4g}"


def as_json(rows: list[Measured]) -> list[dict[str, float | str | None]]:
    """The rows as plain data, each with its shares."""
    return [{**dataclasses.asdict(row), "ratio": row.ratio, "of_matmul": row.of_matmul} for row in rows]


def _images(spec: RunSpec) -> np.ndarray:
    shape = (max(64, spec.training.batch_size), spec.image_size, spec.image_size, spec.channels)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def sampler_of(run: Run, compute: Compute) -> ImageSampler:
    """Draws ancestral chains of 4 steps with a run's moving average."""
    spec = run.spec
    steps = Sampler.parse(f"ancestral-{min(4, spec.diffusion.T)}")
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "ema.safetensors"
        save_file(run.ema_weights(), weights)
        return ImageSampler(spec, weights, steps, clip_denoised=True, compute=compute, images=None)


def _limits(compute: Compute, device: torch.device) -> dict[str, tuple[Callable[[], object], float]]:
    """What the work is held against, convolutions and on a GPU a matrix product: a call of each, and its GFLOP."""
    layout = {"dtype": dtype(compute), "device": device}
    images = 8 if device.type == "cpu" else 256

    def several(operation: Callable[..., object], *of: torch.Tensor, **more: int) -> Callable[[], object]:
        @torch.inference_mode()
        def call() -> None:
            for _ in range(CALLS):
                operation(*of, **more)

        return call

    found: dict[str, tuple[Callable[[], object], float]] = {}
    for channels, size in SHAPES:
        x = torch.randn(images, channels, size, size, generator=torch.Generator().manual_seed(0))
        w = torch.randn(channels, channels, 3, 3, generator=torch.Generator().manual_seed(1))
        x, w = (each.to(**layout, memory_format=torch.channels_last) for each in (x, w))
        work = 2 * CALLS * images * size**2 * channels**2 * 9 / 1e9
        found[f"conv {(channels, size)}"] = several(F.conv2d, x, w, padding=1), work
    if device.type == "cuda":
        a, b = torch.randn(2, MATMUL, MATMUL, device=device).to(dtype(compute)).unbind()
        found["matmul"] = several(torch.mm, a, b), CALLS * 2 * MATMUL**3 / 1e9
    return found


def _rates(calls: Mapping[str, Callable[[], object]], seconds: float, device: torch.device) -> dict[str, float]:
    """Calls a second of each, measured in turns: the rate of the quicker quarter."""

    def timed(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for call in calls.values():
        timed(call)
    turns: dict[str, list[float]] = {key: [] for key in calls}
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        for key, call in calls.items():
            turns[key].append(timed(call))
    return {key: 1 / sorted(times)[len(times) // 4] for key, times in turns.items()}
