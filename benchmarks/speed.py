"""Training and sampling speed against this machine's own convolution peak, measured in the same run.

    python benchmarks/speed.py              # digits and CIFAR-10 configurations, all threads
    python benchmarks/speed.py --config digits --threads 1 --seconds 5

Prints images a second (training) or image-steps a second (sampling), the arithmetic done (2 x multiply-adds of
convolutions and linear layers, backward counted twice the forward), and the share of the convolution peak.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ipdiff import build, config
from ipdiff.compute import configure
from ipdiff.sample import ImageSampler
from ipdiff.spec import ADMNetwork, Compute, Diffusion, Objective, RunSpec, Sampler, Training
from ipdiff.train import Trainer

CIFAR10 = RunSpec(
    family="adm",
    network=ADMNetwork(128, [1, 2, 2, 2], 3, [16, 8], num_head_channels=32, dropout=0.3),
    diffusion=Diffusion("cosine", 1000, learn_sigma=True),
    training=Training(8, 1e-4, timesteps="loss-second-moment"),
    objective=Objective(0.1, "eps", 0.0, 0.0),
    compute=Compute(),
    image_size=32,
    channels=3,
    seed=0,
)
"""The paper's CIFAR-10 network and training (guided-diffusion flags of the official README), batch 8."""


def digits() -> RunSpec:
    """The digits study's adm-ip run."""
    params = config.load()
    dataset, family = params.dataset("digits"), params.family("digits", "adm-ip")
    return RunSpec(
        "adm", family.network, family.diffusion, family.training,
        Objective.resolve(params.model("adm-ip"), dataset.strengths), dataset.compute, 8, 1, 0,
    )  # fmt: skip


def rate(work: Callable[[], object], seconds: float) -> float:
    """Calls a second: the best of three equal stretches, after one call to warm up."""
    work()
    best = 0.0
    for _ in range(3):
        calls, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds / 3:
            work()
            calls += 1
        best = max(best, calls / elapsed if elapsed else 0.0)
    return best


def conv_peak(device: torch.device, seconds: float) -> float:
    """GFLOP/s of the fastest of a few 3x3 convolutions in float32, channels_last."""
    best = 0.0
    for channels, size in ((128, 32), (256, 16), (256, 8)):
        x = torch.randn(8, channels, size, size, device=device).to(memory_format=torch.channels_last)
        w = torch.randn(channels, channels, 3, 3, device=device).to(memory_format=torch.channels_last)
        flops = 2 * 8 * size * size * channels * channels * 9
        with torch.inference_mode():
            best = max(best, rate(lambda x=x, w=w: F.conv2d(x, w, padding=1), seconds) * flops / 1e9)
    return best


def forward_flops(spec: RunSpec) -> int:
    """Arithmetic of one network evaluation of one image."""
    net = build.network(spec).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net(torch.zeros(1, spec.channels, spec.image_size, spec.image_size), torch.zeros(1, dtype=torch.int64))
    return counter.get_total_flops()


def measure(name: str, spec: RunSpec, sample_batch: int, peak: float, seconds: float) -> list[dict[str, float | str]]:
    """Rows for training and sampling."""
    flops = forward_flops(spec)
    images = np.random.default_rng(0).integers(0, 256, (64, spec.image_size, spec.image_size, spec.channels), np.uint8)
    trainer = Trainer(spec, images)
    training = rate(trainer.advance, seconds) * spec.training.batch_size
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "ema.safetensors"
        save_file(trainer.ema_weights(), weights)
        sampler = ImageSampler(
            spec, weights, Sampler.parse("ancestral-2"), clip_denoised=True, compute=spec.compute, images=None
        )
        sampling = rate(lambda: sampler.draw(range(sample_batch)), seconds) * sample_batch * sampler.nfe
    return [
        _row(f"{name} training, batch {spec.training.batch_size}", "images/s", training, 3 * flops, peak),
        _row(f"{name} sampling, batch {sample_batch}", "image-steps/s", sampling, flops, peak),
    ]


def _row(what: str, unit: str, speed: float, flops: int, peak: float) -> dict[str, float | str]:
    return {"what": what, "unit": unit, "speed": speed, "gflops": speed * flops / 1e9,
            "of_peak": speed * flops / 1e9 / peak}  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=["digits", "cifar10"], action="append")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=6.0, help="a measurement")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    compute = Compute("cuda" if torch.cuda.is_available() else "cpu", args.threads)
    device = configure(compute)
    peak = conv_peak(device, args.seconds / 3)
    print(f"torch {torch.__version__}, {device}, {args.threads} threads: convolution peak {peak:.0f} GFLOP/s")
    rows = []
    for name in args.config or ["digits", "cifar10"]:
        spec = dataclasses.replace(digits() if name == "digits" else CIFAR10, compute=compute)
        rows += measure(name, spec, 500 if name == "digits" else 8, peak, args.seconds)
    for row in rows:
        print(f"{row['what']:32s} {row['speed']:10.1f} {row['unit']:14s} {row['gflops']:8.1f} GFLOP/s "
              f"{100 * float(row['of_peak']):5.1f} % of peak")  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps({"peak_gflops": peak, "threads": args.threads, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
