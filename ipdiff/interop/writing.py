"""Checkpoints in the formats of others, the same bytes each time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ipdiff.errors import UserError
from ipdiff.spec import ADMNetwork, RunSpec


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], spec: RunSpec, names: Mapping[str, str | int]) -> None:
    """Write safetensors that say what they are (see `RunSpec.metadata`); `names`: what the run is called."""
    save_file(dict(tensors), path, metadata=spec.metadata(**names))


def write_guided_diffusion(path: Path, tensors: Mapping[str, Tensor], spec: RunSpec) -> None:
    """Write a state dict as guided-diffusion's scripts read it: plain, float32.

    Raises:
        UserError: the network is not guided-diffusion's, or has other groups than its norms.
    """
    if not isinstance(spec.network, ADMNetwork):
        raise UserError(
            f"format guided-diffusion is for family adm; this network's is {spec.family}: use safetensors or diffusers"
        )
    if spec.network.norm_groups != 32:
        raise UserError(
            f"guided-diffusion's norms have 32 groups, this network's {spec.network.norm_groups}: "
            "its code would compute something else; use safetensors or diffusers"
        )
    with path.open("wb") as stream:  # by name torch.save would put the name into the file
        torch.save(dict(tensors), stream)
