"""Distances and scores, and the features they are taken on."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipdiff.metrics.outside.compare import fid, kid, save_statistics
    from ipdiff.metrics.scores.frechet import frechet_distance

__all__ = ["fid", "frechet_distance", "kid", "save_statistics"]

_OUTSIDE = "outside.compare"
_HOME = {"fid": _OUTSIDE, "frechet_distance": "scores.frechet", "kid": _OUTSIDE, "save_statistics": _OUTSIDE}
"""Names that are imported when they are asked for: params.yaml is read without scipy."""


def __getattr__(name: str) -> Any:
    """Hand out a public name."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
