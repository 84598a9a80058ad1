"""The one place that sets what torch computes on."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

from ipdiff.errors import UserError
from ipdiff.spec import Compute


def configure(compute: Compute) -> torch.device:
    """Set threads and deterministic algorithms for this process, and return the device.

    Call it before the first computation. Once torch has started its inter-op pool, that pool's size is
    kept (it changes no number).

    Raises:
        UserError: cuda is asked for and absent.
    """
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise UserError("compute.device is cuda, but torch finds no CUDA device here; use cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    torch.set_num_threads(compute.threads)
    if torch.get_num_interop_threads() != 1:
        try:
            torch.set_num_interop_threads(1)
        except RuntimeError:
            pass
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # no code here reads it
    _keep_freed_memory()
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(compute.device)


def _keep_freed_memory() -> None:
    """Tell glibc not to give freed activations back to the kernel after every use (up to 1.5 times faster)."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # malloc.h
    for option, value in ((mmap_threshold, 1 << 25), (trim_threshold, 1 << 30), (top_pad, 1 << 26)):
        mallopt(option, value)
