"""The two published denoising networks, state-dict compatible with their code bases."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipdiff.nets.adm import ADMUNet
    from ipdiff.nets.ddpm import DDPMUNet

__all__ = ["ADMUNet", "DDPMUNet"]
_HOMES = {"ADMUNet": "adm", "DDPMUNet": "ddpm"}


def __getattr__(name: str) -> Any:
    """Hand out a network: a run imports its own alone."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
