"""How the cost grows: with the image's size, the batch, T', the cells of the grid, the processes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import save_file

from benchmarks.configurations import TINY, change
from benchmarks.rows import quickest
from ipdiff.pipeline import grid
from ipdiff.pipeline.config import PARAMS
from ipdiff.sample_sets.sample import ImageSampler
from ipdiff.sample_sets.spec import Sampler
from ipdiff.spec import RunSpec
from ipdiff.training.host_feeder import HostFeeder
from ipdiff.training.run import Run

Row = dict[str, str | float]


def table(seconds: float, quick: bool) -> list[Row]:
    """Rows of (what grows, its value, cost, unit), each cost the quickest of a few runs of `seconds` together."""
    sizes, batches = ((8, 16), (1, 4)) if quick else ((8, 16, 32, 64), (1, 4, 16, 64))
    chains, seeds = ((2, 4), (1, 3)) if quick else ((5, 10, 20, 40), (1, 10, 100, 1000))
    rows = [_row("image size", size, _update(_sized(size), seconds) / 4, "s an image of training") for size in sizes]
    rows += [_row("batch", n, _update(change(TINY, n), seconds) / n, "s an image of training") for n in batches]
    rows += [_row("T'", steps, _draw(steps, seconds) / 4, "s an image of sampling") for steps in chains]
    rows += [_cells(n) for n in seeds]
    return rows + [_processes(n, 1 if quick else 12) for n in ((1,) if quick else (1, 2))]


def describe(rows: list[Row]) -> str:
    """The rows as text."""
    return "\n".join(f"{row['what']:12} {row['value']:>8,} {row['cost']:12.4g} {row['unit']}" for row in rows)


def _row(what: str, value: int, cost: float, unit: str) -> Row:
    return {"what": what, "value": value, "cost": cost, "unit": unit}


def _sized(size: int) -> RunSpec:
    return dataclasses.replace(
        change(TINY, 4), image_size=size, network=dataclasses.replace(TINY.network, attention_resolutions=[])
    )


def _quickest(call: Callable[[], object], budget: float) -> float:
    return quickest({"call": call}, budget, rounds=1)["call"]


def _run(spec: RunSpec) -> Run:
    shape = (64, spec.image_size, spec.image_size, spec.channels)
    return Run(spec, np.random.default_rng(0).integers(0, 256, shape, np.uint8))


def _update(spec: RunSpec, seconds: float) -> float:
    return _quickest(HostFeeder(_run(spec)).advance, seconds)


def _draw(steps: int, seconds: float) -> float:
    spec = change(TINY, 4)
    with tempfile.TemporaryDirectory() as folder:
        save_file(_run(spec).ema_weights(), Path(folder) / "ema.safetensors")
        sampler = ImageSampler(
            spec,
            Path(folder) / "ema.safetensors",
            Sampler.parse(f"ancestral-{steps}"),
            clip_denoised=True,
            compute=spec.compute,
        )
        return _quickest(lambda: sampler.draw(range(4)), seconds)


def _cells(seeds: int) -> Row:
    """Time to list the cells of the digits study with so many seeds of every model."""
    raw = yaml.safe_load(PARAMS.read_text())
    raw["seeds"] = {"default": list(range(seeds))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_text(yaml.safe_dump(raw))
        start = time.perf_counter()
        cells = grid.load(Path(folder)).study("digits")
        return _row("cells", len(cells), time.perf_counter() - start, "s to list them")


def _processes(count: int, updates: int) -> Row:
    """Time for an update in each of so many processes side by side: what a second job costs the first."""
    code = (
        "import time; from benchmarks.scaling import HostFeeder, _run, TINY, change\n"
        "t = HostFeeder(_run(change(TINY, 4))); t.advance(); s = time.perf_counter()\n"
        f"for _ in range({updates}): t.advance()\n"
        f"print((time.perf_counter() - s) / {updates} / 4)"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(count)]
    costs = [float(process.communicate()[0]) for process in running]
    return _row("processes", count, max(costs) / count, "s an image of training, all processes together")
