"""Runs small enough for unit tests: 4x4 images, nets of a few thousand weights, chains of 20 steps."""

from __future__ import annotations

import dataclasses
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ipdiff.device.spec import Compute
from ipdiff.device.streams import KernelDraws
from ipdiff.spec import ADMNetwork, DDPMNetwork, Diffusion, Objective, Ramp, RunSpec, Training
from ipdiff.training.host_feeder import HostFeeder
from ipdiff.training.run import Run

IMAGES: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1), dtype=np.uint8)

ADM = RunSpec(
    family="adm",
    network=ADMNetwork(4, [1, 2], 1, [2], num_head_channels=4, norm_groups=2),
    diffusion=Diffusion("cosine", 20),
    training=Training(8, 1e-3, micro_batch=4, ema_decay=0.9),
    objective=Objective(gamma=0.0, target="eps", gp_weight=0.0, weight_decay=0.0),
    compute=Compute(),
    image_size=4,
    channels=1,
    seed=3,
)

DDIM = dataclasses.replace(
    ADM,
    family="ddpm",
    network=DDPMNetwork(4, [1, 2], 1, [2], dropout=0.1, norm_groups=2),
    diffusion=Diffusion("linear", 25, fixed_variance="large"),
    training=Training(8, 1e-3, timesteps="antithetic", loss_reduction="sum", grad_clip=1.0, ema_warmup=True),
)


def change(spec: RunSpec, **fields: Any) -> RunSpec:
    """A run with other fields; a field is found wherever it stands."""
    parts: dict[str, Any] = {}
    for key, value in fields.items():
        owner = next(
            (name for name in ("network", "diffusion", "training", "objective") if hasattr(getattr(spec, name), key)),
            "",
        )
        if owner:
            parts[owner] = dataclasses.replace(parts.get(owner, getattr(spec, owner)), **{key: value})
        else:
            parts[key] = value
    return dataclasses.replace(spec, **parts)


RUNS = {
    "adm": change(ADM, learn_sigma=True, timesteps="loss-second-moment", dropout=0.1),
    "adm-ip": change(ADM, gamma=0.1, learn_sigma=True),
    "adm-gp": change(ADM, gp_weight=0.01, learn_sigma=True, dropout=0.1),
    "adm-wd": change(ADM, weight_decay=0.1),
    "ddpm-y": change(ADM, gamma=0.1, target="eps_prime"),
    "ddim": DDIM,
    "ddim-ip": change(DDIM, gamma=0.1),
    "gamma over t": change(ADM, gamma=[0.3, 0.1, 0.0]),
    "gamma over steps": change(ADM, gamma=Ramp(0.0, 0.3, until=6, after=2), learn_sigma=True),
    "ddpm-y over steps": change(ADM, gamma=Ramp(0.4, 0.1, until=5, shape="cosine"), target="eps_prime"),
    "v": change(ADM, target="v", min_snr=5.0, learn_sigma=True),
    "v-ip": change(DDIM, gamma=0.1, target="v", min_snr=1.0),
    "importance": change(ADM, T=2, learn_sigma=True, timesteps="loss-second-moment", lr_warmup=4),
}
"""One run for each objective; `importance` has a chain so short that the loss history fills."""


def advance(run: Run, steps: int = 1) -> Run:
    """Take a run on by some updates of the host."""
    feeder = HostFeeder(run)
    for _ in range(steps):
        feeder.advance()
    return run


def files(directory: Path) -> dict[str, bytes]:
    """Bytes of every file below a directory, by relative path."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def flip_bit(path: Path, place: int = -1) -> None:
    """Flip the lowest bit of one byte of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


class Undrawn(KernelDraws):
    """A GPU's draws on the meta device: tensors of the kernel's shape, without its numbers."""

    def _fill(self, index, step, count, **stream):
        kind = torch.float32 if stream["threshold"] is None else torch.bool
        return torch.empty((len(index), count), dtype=kind, device=index.device)


class Looks(TorchDispatchMode):
    """Takes note of operations for which a GPU's queue would stop: they look at values, or send some to the device.

    On the meta device, whose tensors have no values, every use of a CPU's tensor is such a sending.
    """

    NAMES = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "lift_fresh")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.seen += 1
        tensors = [value for value in tree_leaves((args, kwargs, out)) if isinstance(value, torch.Tensor)]
        if func.__name__.split(".")[0] in self.NAMES or any(tensor.device.type == "cpu" for tensor in tensors):
            self.found.append(f"{func.__name__} in {traceback.extract_stack(limit=4)[0].name}")
        return out
