"""Triton kernels for CUDA: random numbers and group norms. Nothing here is imported where no GPU computes."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec


@cache
def available() -> bool:
    """Whether Triton is installed; torch for CUDA brings it on Linux, elsewhere torch's own operations do the work."""
    return find_spec("triton") is not None
