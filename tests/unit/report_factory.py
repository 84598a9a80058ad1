"""SYNTHETIC metrics for the tests of `ipdiff.report`; no number here was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ipdiff.report.results import Result, load

BASE = {
    "dataset": "digits",
    "model": "adm",
    "seed": 0,
    "step": 1000,
    "sampler": "ancestral-100",
    "sample_steps": 100,
    "nfe": 100,
    "fid": 3.0,
    "n": 1000,
    "reference_n": 1797,
    "features": "classifier",
    "features_digest": "md5:3fa2b1c0aa",
    "reference_digest": "md5:77",
}


def write(path: Path, **changes: object) -> Path:
    """A synthetic metrics.json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**BASE, **changes}))
    return path


def record(**changes: object) -> Result:
    """A synthetic result of one seed."""
    with TemporaryDirectory() as folder:
        return load([write(Path(folder) / "metrics.json", **changes)])[0]


def records(dataset: str, model: str, fids: dict[int, float], **changes: object) -> list[Result]:
    """One synthetic result for each seed: its FID."""
    return [record(dataset=dataset, model=model, seed=seed, fid=fid, **changes) for seed, fid in fids.items()]


def recipes(model: str, sampler: str, seed: int) -> list[dict[str, Any]]:
    """Synthetic recipes of a metrics file and all it was made from; a digest tells whose it is."""
    run = f"runs/digits/{model}/s{seed}/1000"
    at = f"{model}/s{seed}/1000/{sampler}"
    inputs = {
        "data/digits": {},
        run: {"data/digits/images.npy": "d" * 32},
        f"samples/digits/{at}": {f"{run}/ema.safetensors": "c" * 32, f"{run}/recipe.json": "0" * 32},
        f"metrics/digits/{at}": {f"samples/digits/{at}/samples.npz": "5" * 32, "reference/digits/stats.npz": "e" * 32},
    }
    outputs = {"metrics.json": f"{seed}{model}{sampler}".encode().hex()[:32]}
    return [
        {"cell": cell, "code": "7" * 32, "params": {"a.<b>": 1}, "inputs": read, "outputs": outputs}
        for cell, read in inputs.items()
    ]


MADE: dict[str, Any] = {
    "gamma": 0.0,
    "gp_weight": 0.0,
    "weight_decay": 0.0,
    "batch_size": 128,
    "T": 1000,
    "schedule": "cosine",
    "dropout": 0.3,
    "sampling_precision": "float32",
    "reference_n": 50_000,
    "reference": "all images",
    "preprocessing": "none",
}
"""What the paper's ADM on CIFAR-10 was made with."""


def cifar(model: str, step: int, made: dict[str, Any] | None = None, **changes: object) -> Result:
    """A synthetic result that claims the paper's protocol, and to be made as the paper's."""
    gamma = {"adm-ip": 0.1, "adm-ip-g02": 0.2, "ddim-ip": 0.1, "ddpm-y": 0.1}.get(model, 0.0)
    ddim = {"schedule": "linear", "dropout": 0.1} if model.startswith("ddim") else {}
    found = record(dataset="cifar10", model=model, step=step, **{"features": "inception", "n": 50_000, **changes})
    return replace(found, made_with=({**MADE, "gamma": gamma, **ddim, **(made or {})},))
