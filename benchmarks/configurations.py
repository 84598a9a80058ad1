"""The runs that are measured: the digits study's, and the paper's CIFAR-10 and FFHQ-128 networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from ipdiff.device import compute
from ipdiff.device.spec import Compute
from ipdiff.pipeline import config
from ipdiff.spec import ADMNetwork, Diffusion, Objective, RunSpec, Training

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

FFHQ128 = dataclasses.replace(
    CIFAR10,
    network=ADMNetwork(256, [1, 1, 2, 3, 4], 3, [32, 16, 8], num_head_channels=64, dropout=0.1),
    image_size=128,
)
"""The paper's FFHQ-128 network (542.8 million parameters), batch 8."""

TINY = dataclasses.replace(
    CIFAR10, network=ADMNetwork(32, [1, 2], 1, [8], num_head_channels=16, dropout=0.1, norm_groups=8), image_size=16
)
"""A small network, for --quick and for the scaling table."""

Configuration = tuple[str, RunSpec, int]
"""Name, run, images a network call of sampling."""


def digits() -> RunSpec:
    """The digits study's adm-ip run."""
    return config.load().run_spec("digits", "adm-ip", 0)


def change(spec: RunSpec, batch: int, **on: Any) -> RunSpec:
    """A run with another batch, computed on something else."""
    return dataclasses.replace(
        spec, training=dataclasses.replace(spec.training, batch_size=batch), compute=Compute(**on)
    )


def all_of(threads: int, quick: bool) -> Iterator[Configuration]:
    """The configurations for this machine: on the CPU always, on a GPU where there is one."""
    precisions = ["float32", "bfloat16"] if compute.has_bfloat16() else ["float32"]
    if quick:
        for precision in precisions:
            yield f"tiny {precision}", change(TINY, 4, threads=threads, precision=precision), 4
        if torch.cuda.is_available():
            wide = dataclasses.replace(TINY, network=dataclasses.replace(TINY.network, model_channels=64))
            yield "tiny on the GPU", change(wide, 16, device="cuda", precision="bfloat16"), 16
        return
    if torch.cuda.is_available():
        yield from on_gpu()
        return
    yield "digits", digits(), 500
    for precision in precisions:
        yield f"CIFAR-10 {precision}", change(CIFAR10, 8, threads=threads, precision=precision), 8


def on_gpu() -> Iterator[Configuration]:
    """The paper's networks in all precisions with this package's kernels, and compiled; all in CUDA graphs."""
    for name, spec, batch, sample_batch in (("CIFAR-10", CIFAR10, 128, 512), ("FFHQ-128", FFHQ128, 32, 64)):
        for precision in ("bfloat16", "float16", "float32"):
            yield f"{name} {precision}", change(spec, batch, device="cuda", precision=precision), sample_batch
        compiled = change(spec, batch, device="cuda", precision="bfloat16", compile=True)
        yield f"{name} bfloat16 compiled", compiled, sample_batch
