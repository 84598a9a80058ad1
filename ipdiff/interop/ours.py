"""A checkpoint of this project in your own code: one file says how its network is built and what process trained it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ipdiff.diffusion import GaussianDiffusion
from ipdiff.errors import UserError, brief
from ipdiff.interop import checking, reading
from ipdiff.nets import build
from ipdiff.nets.layers import UNet
from ipdiff.spec import RunSpec


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and what it was trained as.

    Attributes:
        net: called with x [N,C,H,W] float32 and t [N] int64, on the CPU, in evaluation mode.
        diffusion: its process, for `training_losses`, `p_mean_variance` and `ipdiff.sample`.
        spec: the run: network, process, training, objective, image size, channels, seed.
        about: the rest of what the file says of itself: dataset, model, step, gamma.
    """

    net: UNet
    diffusion: GaussianDiffusion
    spec: RunSpec
    about: dict[str, Any]


def load(path: Path | str) -> Checkpoint:
    """Read an ema.safetensors, as a training, `ipdiff pull` or `ipdiff export --format safetensors` leaves it.

    Raises:
        UserError: the file is missing, damaged, another code base's, or its weights are not those of its network.
    """
    path = Path(path)
    tensors = reading.read(path).tensors
    try:
        with safe_open(path, "np") as file:
            about = json.loads((file.metadata() or {})["ipdiff"])
        spec = RunSpec.from_json(about.pop("run"))
    except Exception as error:  # whatever a file that is not ours makes a parser raise
        raise UserError(
            f"{path}: does not say which run it is of ({brief(repr(error))}); expected an ema.safetensors of this "
            "project, `ipdiff import` takes those of others"
        ) from None
    checking.check(tensors, spec, str(path), "the run that it names")
    net = build.network(spec).eval()
    net.load_state_dict(tensors)
    return Checkpoint(net, build.diffusion(spec), spec, about)
