"""What bfloat16 changes: the network's prediction, and FID on the digits.

    python -m benchmarks.precision --updates 2000 --seeds 100 101

Prints a line of JSON a seed: mean squared difference of the predicted noise between float32 and bfloat16 with the same
float32 weights, over its mean square; and the metrics of both precisions, trained and sampled with the same seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

from benchmarks.configurations import digits
from benchmarks.effect import metrics, references
from ipdiff import rng
from ipdiff.data.images import load_images, to_network
from ipdiff.device.spec import Compute
from ipdiff.nets.execution import low_precision
from ipdiff.sample_sets.sample import ImageSampler
from ipdiff.sample_sets.spec import Sampler
from ipdiff.spec import RunSpec
from ipdiff.training.host_feeder import HostFeeder
from ipdiff.training.run import Run
from ipdiff.work.shards import cut

PRECISIONS = {"float32": Compute(), "bfloat16": Compute(precision="bfloat16")}


def trained(spec: RunSpec, images: np.ndarray, updates: int) -> Run:
    """A run after so many updates."""
    feeder = HostFeeder(Run(spec, images))
    for _ in range(updates):
        feeder.advance()
    return feeder.settle()


def eps_difference(run: Run, images: np.ndarray, count: int = 512) -> float:
    """Mean squared difference of eps between the precisions, over eps' mean square; same weights and inputs."""
    T = run.spec.diffusion.T
    x0 = to_network(images[:count])
    noise = torch.from_numpy(rng.normals(0, rng.Purpose.EPS, range(len(x0)), run.shape))
    t = torch.arange(len(x0)) * 7 % T
    x_t = run.diffusion.q_sample(x0, t, noise)

    @torch.no_grad()
    def predict(model: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return model(x_t, t)[:, : x_t.shape[1]]

    net = run.net.eval()
    exact, low = (predict(low_precision(net, compute)) for compute in PRECISIONS.values())
    return float((low - exact).square().mean() / exact.square().mean())


def measure(seed: int, updates: int, folder: Path, count: int) -> dict[str, object]:
    """Train, sample and measure both precisions with one seed."""
    images = load_images(folder / "images.npy")
    found: dict[str, object] = {"seed": seed, "updates": updates, "n": count}
    for name, compute in PRECISIONS.items():
        spec = dataclasses.replace(digits(), seed=seed, compute=compute)
        run = trained(spec, images, updates)
        if name == "float32":
            found["eps_difference"] = eps_difference(run, images)
        with tempfile.TemporaryDirectory() as scratch:
            weights = Path(scratch) / "ema.safetensors"
            save_file(run.ema_weights(), weights)
            draw = ImageSampler(spec, weights, Sampler.parse("ancestral-20"), clip_denoised=True, compute=compute)
            samples = np.concatenate([draw.draw(part) for part in cut(count, 500)])
        found[name] = {"loss": float(run.losses[-200:].mean()), **metrics(samples, "digits", Compute(), str(folder))}
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=Path("work/effect"))
    args = parser.parse_args()
    references("digits", Compute(), args.out)
    for seed in args.seeds:
        print(json.dumps(measure(seed, args.updates, args.out, args.samples)), flush=True)


if __name__ == "__main__":
    main()
