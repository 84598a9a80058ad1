"""Triton kernels for CUDA: random numbers and group norms. Nothing here is imported where no GPU computes."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

SWITCH = "IPDIFF_KERNELS"
"""Environment variable: 0 leaves the work to torch's own operations; the same integers, norms of other last bits."""


@cache
def available() -> bool:
    """Whether there is Triton, which torch for CUDA brings on Linux, and it is not switched off."""
    return os.environ.get(SWITCH) != "0" and find_spec("triton") is not None
