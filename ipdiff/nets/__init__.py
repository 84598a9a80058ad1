"""The two published denoising networks, state-dict compatible with their code bases."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipdiff.nets.adm import ADMUNet
    from ipdiff.nets.ddpm import DDPMUNet
    from ipdiff.nets.inference import prepare_for_sampling
    from ipdiff.nets.initial import initialise
    from ipdiff.nets.layers import Dropout, dropout_masks, keep_threshold, twice_differentiable

__all__ = [
    "ADMUNet",
    "DDPMUNet",
    "Dropout",
    "dropout_masks",
    "initialise",
    "keep_threshold",
    "prepare_for_sampling",
    "twice_differentiable",
]

_HOMES = {"ADMUNet": "adm", "DDPMUNet": "ddpm", "prepare_for_sampling": "inference", "initialise": "initial"}
"""Where public names are defined, those of `layers` apart: a run imports its own network alone."""


def __getattr__(name: str) -> Any:
    """Hand out a public name."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'layers')}"), name)
