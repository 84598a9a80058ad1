"""Triton kernels for CUDA: random numbers and group norms. Nothing here is imported where no GPU computes."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

SWITCH = "IPDIFF_KERNELS"
"""Environment variable: 0 leaves norms to torch, with other last bits, and random numbers to the host."""


@cache
def available() -> bool:
    """Whether there is Triton, which torch for CUDA brings on Linux, and it is not switched off."""
    return os.environ.get(SWITCH) != "0" and find_spec("triton") is not None
