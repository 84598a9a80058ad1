"""The one place that sets what torch computes on."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

from ipdiff.device.spec import Compute
from ipdiff.errors import Unavailable, UserError


def configure(compute: Compute) -> torch.device:
    """Set threads and deterministic algorithms for this process, and return the device.

    Call it before the first computation. Once torch has started its inter-op pool, that pool's size is
    kept (it changes no number).

    Raises:
        UserError: cuda is asked for and absent, or bfloat16 on a CPU without instructions for it.
    """
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise Unavailable("compute.device is cuda, but torch finds no CUDA device here; use cpu")
    if compute.precision == "bfloat16" and compute.device == "cpu" and not has_bfloat16():
        raise UserError(
            "the precision is bfloat16, but this CPU has no bfloat16 instructions (avx512_bf16, AMX); use float32"
        )
    if compute.device == "cuda":
        take_gpu()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    torch.set_num_threads(compute.threads)
    if torch.get_num_interop_threads() != 1:
        try:
            torch.set_num_interop_threads(1)
        except RuntimeError:
            pass
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms, without importing inductor (1 s)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # no code here reads it
    _keep_freed_memory()
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(compute.device)


def take_gpu() -> None:
    """Compute on this process' GPU: of processes that work together on a machine each has that of its LOCAL_RANK."""
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def dtype(compute: Compute) -> torch.dtype:
    """What a U-Net's convolutions and attention compute in."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[compute.precision]


def has_bfloat16() -> bool:
    """Whether this CPU's convolutions compute in bfloat16 (elsewhere they are many times slower than float32)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


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
