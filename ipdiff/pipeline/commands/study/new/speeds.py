"""How fast this machine does what a study needs, measured in some seconds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ipdiff.data.images import to_network
from ipdiff.device.compute import configure
from ipdiff.device.spec import Compute
from ipdiff.metrics.features import classifier_net
from ipdiff.metrics.features.torchscript import TorchScriptFeatures
from ipdiff.metrics.scores.frechet import frechet_distance
from ipdiff.metrics.spec import FEATURES, Classifier, TorchScript
from ipdiff.nets import costs
from ipdiff.pipeline.commands.study import bench
from ipdiff.pipeline.commands.study.new import presets
from ipdiff.pipeline.commands.study.new.fit import Speed
from ipdiff.pipeline.commands.study.new.presets import Preset
from ipdiff.spec import RunSpec

SECONDS = 3.0
"""For which a network is measured."""
PATIENCE = 1.5
"""Seconds that one update may take while measuring, at half of the convolutions' rate: larger batches are cut."""
DIMENSIONS = 512
"""Features of the Frechet distance that is measured; its arithmetic grows with their cube."""
FRECHET_FLOPS = 5
"""Arithmetic of a Frechet distance in units of its dimensions cubed, about: two factors, two products, eigenvalues."""
EFFICIENCY = 0.4
"""Share of the convolutions' rate that a large feature network reaches, where it cannot be measured."""

BUSY = 1.5
"""Times as long that work takes on a machine that counts as busy."""
SHORTEST = 0.5
"""Seconds of measuring below which its CPU time says nothing."""


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def all_cores() -> int:
    """CPU cores of the machine, whose load `load` is."""
    return os.cpu_count() or 1


def load() -> float:
    """Processes that wanted a core in the last minute; 0 where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def cpu_seconds(threads: int) -> float:
    """CPU time of this process, or its part of each thread, whichever is more."""
    return max(time.thread_time(), time.process_time() / threads)


def longer(load: float, wall: float, cpu: float) -> str:
    """How much longer work takes because other processes want the cores; empty where that is hardly longer.

    A rate is that of the quickest turns, which others did not disturb: what they take comes on top of it.

    Args:
        load: before the measuring.
        wall: seconds that measuring took.
        cpu: CPU seconds of these, one thread's.
    """
    waited = max(1.0, wall / max(cpu, 1e-9)) if wall > SHORTEST else 1.0
    crowded = 1 + load / all_cores()
    low, high = (round(times) for times in sorted((waited, crowded)))
    if max(waited, crowded) < BUSY:
        return ""
    if low == high:
        return f"about {high} times as long"
    return f"{low} to {high} times as long" if low > 1 else f"up to {high} times as long"


def of_networks(
    candidates: Sequence[Preset], channels: int, size: int, compute: Compute, room: float, runs: int
) -> tuple[list[Speed], float]:
    """Speeds of the networks that may fit, narrowest first, and the convolutions' GFLOP/s.

    Networks are measured from the narrowest on, until one image would take too long to wait for: wider ones are scaled
    by their arithmetic. Those that could not be trained in the room even at the convolutions' rate are left out.

    Args:
        candidates: narrowest first.
        channels: of the images.
        size: of the images, pixels.
        compute: what networks will run on.
        room: seconds of one process that all training may take.
        runs: training runs.
    """
    found: list[Speed] = []
    limit = 0.0
    for preset in candidates:
        spec = presets.run_spec(preset, channels, size, preset.worth or 1000, compute)
        flops = gflops(spec)
        if found and costs.UPDATE * flops * preset.batch * preset.worth * runs > limit * room:
            break
        batch = int(0.5 * limit * PATIENCE / (costs.UPDATE * flops)) if found else preset.batch
        if batch < 1:
            scale = gflops(presets.run_spec(found[-1].preset, channels, size, 1000, compute)) / flops
            found.append(Speed(preset, found[-1].train * scale, found[-1].sample * scale, measured=False))
            continue
        try:
            train, sample = _measure(preset.name, spec, min(preset.batch, batch))
        except torch.OutOfMemoryError:
            break
        limit = max(limit, train.limit)
        found.append(Speed(preset, train.speed, sample.speed))
    return found, limit


def _measure(name: str, spec: RunSpec, batch: int) -> list[bench.Measured]:
    drawn = min(2 * batch, sample_batch(spec.image_size, spec.compute.device))
    return bench.measure(name, replace(spec, training=replace(spec.training, batch_size=batch)), drawn, SECONDS)


def gflops(spec: RunSpec) -> float:
    """Arithmetic of one network evaluation of one image."""
    return costs.of(spec).flops / 1e9


def parameters(spec: RunSpec) -> int:
    """Number of the network's weights."""
    return costs.of(spec).parameters


def sample_batch(size: int, device: str) -> int:
    """Images a network call of sampling: what fits into memory with every network of this image size."""
    return {16: 100, 32: 100, 64: 50, 128: 20}[size] * (5 if device == "cuda" and size <= 32 else 1)


def of_classifier(settings: Classifier, channels: int, size: int, compute: Compute) -> tuple[float, float]:
    """Seconds of an image's features, and of an update of the feature network's own training."""
    device = configure(compute)
    net = classifier_net.FeatureNet(settings, size, channels, 10).to(device).eval()
    images = np.zeros((settings.batch_size, size, size, channels), np.uint8)

    @torch.no_grad()
    def features() -> None:
        net.features(to_network(images).to(device))[0].cpu()

    feature = _seconds(features) / settings.batch_size
    return feature, costs.UPDATE * feature * settings.batch_size


def of_torchscript(settings: TorchScript, channels: int, size: int, compute: Compute) -> float:
    """Seconds of an image's features by a network of the user's own, which is opened and run; raises what that does."""
    extractor = TorchScriptFeatures(Path(settings.path), settings, compute)
    images = np.zeros((8, size, size, channels), np.uint8)
    return _seconds(lambda: extractor(images)) / len(images)


def of_inception(limit: float) -> float:
    """Seconds of an image's Inception features, from the convolutions' GFLOP/s: its file may not be here."""
    return FEATURES["inception"].flops / 1e9 / (EFFICIENCY * limit)


def of_distances(dimensions: Sequence[int]) -> tuple[float, float]:
    """Seconds of a sample set's Frechet distances, and of each image's part in their moments, for these features."""
    values = np.random.default_rng(0).normal(size=(2 * DIMENSIONS, DIMENSIONS))
    mean, covariance = np.zeros(DIMENSIONS), np.cov(values, rowvar=False)
    measured = _seconds(lambda: frechet_distance(mean, covariance, mean, 1.1 * covariance))  # equal ones cost nothing
    rate = FRECHET_FLOPS * DIMENSIONS**3 / measured
    distances = sum(FRECHET_FLOPS * width**3 for width in dimensions) / rate
    return distances, sum(2 * width**2 for width in dimensions) / rate


def _seconds(call: Callable[[], object], turns: int = 3) -> float:
    """The quickest of some calls, after one to warm up."""
    call()
    best = float("inf")
    for _ in range(turns):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best
