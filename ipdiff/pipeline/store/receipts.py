"""Receipts: with what versions, on what machine and in how many seconds an artifact was made.

They stand beside the project under receipts/, are no input or output of either engine, and decide nothing.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

RECEIPTS = Path("receipts")
PACKAGES = ("torch", "numpy", "scipy", "snakemake", "dvc")
INSTRUCTIONS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve")
"""Instruction sets that numerical libraries choose their kernels by."""

KERNELS = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_",
    "IPDIFF_CUDA_GRAPHS",
    "IPDIFF_KERNELS",
    "MKL_",
    "NPY_",
    "ONEDNN_",
    "OPENBLAS_",
)
"""Beginnings of environment variables by which numerical libraries, and this package, choose other kernels."""

Receipt = Mapping[str, Any]


def path_of(directory: str | Path) -> Path:
    """Where the receipt of an artifact lies."""
    return RECEIPTS / f"{directory}.json"


def write(
    directory: Path, *, recipe: str, stage: str, seconds: float, execution: Mapping[str, Any] | None = None
) -> None:
    """Write an artifact's receipt. `recipe`: the digest of its recipe's file; `execution`: how its work was done."""
    path = path_of(directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    receipt = {"recipe": recipe, "stage": stage, "seconds": round(seconds, 3), **(execution or {}), **machine()}
    part.write_text(json.dumps(receipt, indent=1, sort_keys=True) + "\n")
    part.replace(path)


def read(directory: str | Path) -> dict[str, Any] | None:
    """An artifact's receipt, or None where there is none that can be read."""
    try:
        receipt = json.loads(path_of(directory).read_text())
    except (OSError, ValueError):
        return None
    return receipt if isinstance(receipt, dict) else None


def machine() -> dict[str, Any]:
    """What of this machine can decide the last bit of a number."""
    processor = cpu()
    flags = processor.get("flags", processor.get("Features", "")).split()
    return {
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "machine": platform.machine(),
        "system": platform.system(),
        "libc": " ".join(platform.libc_ver()),
        "cpu": processor.get("model name", platform.processor()),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "settings": _settings(),
        **_gpu(),
    }


def differences(here: Iterable[Receipt], there: Iterable[Receipt]) -> list[str]:
    """What the machines of two sets of receipts do not have in common: `cpu: X here, Y there`."""
    ours, theirs = _facts(here), _facts(there)
    return [
        f"{name}: {_words(ours.get(name))} here, {_words(theirs.get(name))} there"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]


def _facts(receipts: Iterable[Receipt]) -> dict[str, set[str]]:
    """Each fact with all values it has among the receipts."""
    found: dict[str, set[str]] = {}
    for receipt in receipts:
        facts = {key: value for key, value in receipt.items() if key not in ("recipe", "stage", "seconds", "versions")}
        for name, value in {**facts, **receipt.get("versions", {})}.items():
            found.setdefault(name, set()).add(" ".join(value) if isinstance(value, list) else str(value))
    return found


def _words(values: set[str] | None) -> str:
    return " and ".join(value or "none" for value in sorted(values)) if values else "unknown"


def _gpu() -> dict[str, str]:
    """The GPU that this process has computed on, if it has."""
    torch = sys.modules.get("torch")
    return {"gpu": torch.cuda.get_device_name()} if torch is not None and torch.cuda.is_initialized() else {}


def _settings() -> list[str]:
    """Environment variables that choose kernels, as NAME=VALUE. Numbers of threads do not: see `ipdiff.cli.main`."""
    chosen = (name for name in sorted(os.environ) if name.startswith(KERNELS) and not name.endswith("_NUM_THREADS"))
    return [f"{name}={os.environ[name]}" for name in chosen]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cpu() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; nothing elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
