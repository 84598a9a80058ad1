"""ipdiff: input perturbation for diffusion models (arXiv 2301.11706), as a reproducible pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipdiff.diffusion import GaussianDiffusion
    from ipdiff.sample_sets.draw import sample

__version__ = "0.1.0"
__all__ = ["GaussianDiffusion", "sample"]

_HOME = {"GaussianDiffusion": "ipdiff.diffusion", "sample": "ipdiff.sample_sets.draw"}
"""Names that are imported when they are asked for: help is printed without torch."""


def __getattr__(name: str) -> Any:
    """Hand out a public name."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
