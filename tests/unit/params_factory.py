"""A small study for tests: one set of digits, one folder of images."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import yaml

from ipdiff.pipeline import config

_TRAINING = {"batch_size": 16, "micro_batch": 8, "lr": 0.002}
_ADM = {"model_channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "attention_resolutions": [], "norm_groups": 4}
_TINY = {
    "source": {"reader": "digits", "image_size": 8, "channels": 1, "limit": 64},
    "classifier": {"width": 8, "features": 16, "spatial_channels": 4, "steps": 30, "batch_size": 64},
    "compute": {"device": "cpu", "threads": 1},
    "families": {
        "adm": {
            "network": _ADM,
            "diffusion": {"schedule": "cosine", "T": 20},
            "training": _TRAINING,
            "clip_denoised": True,
            "quantise": "truncate",
        },
        "ddpm": {
            "network": _ADM,
            "diffusion": {"schedule": "linear", "T": 30},
            "training": _TRAINING,
            "clip_denoised": False,
            "quantise": "round",
        },
    },
    "strengths": {"gamma": 0.1, "weight_decay": 0.01},
    "sampling": {"num_samples": 64, "batch_size": 32, "exposure_samples": 48},
    "checkpoints": [4, 8],
    "final_step": {"default": 8},
}
_PHOTOS = {
    **_TINY,
    "source": {"reader": "folder", "image_size": 8, "channels": 3, "raw": "raw/photos.zip"},
    "checkpoints": [4],
    "final_step": {"default": 4},
}
_SMALL = {
    "title": "A small study",
    "datasets": {"tiny": _TINY, "photos": _PHOTOS},
    "models": {
        "adm": {"family": "adm"},
        "adm-ip": {"family": "adm", "gamma": "dataset"},
        "adm-wd": {"family": "adm", "weight_decay": "dataset"},
        "ddim": {"family": "ddpm"},
    },
    "seeds": {"default": [0], "adm-ip": [0, 1]},
    "tables": {
        "table1": {
            "title": "Exposure bias",
            "datasets": ["tiny"],
            "models": ["adm"],
            "samplers": ["exposure-10"],
            "metrics": ["fid"],
            "rows": ["model"],
            "columns": ["sampler"],
        },
        "table3": {
            "title": "FID",
            "datasets": ["tiny"],
            "models": ["adm", "adm-ip"],
            "samplers": ["ancestral-5"],
            "metrics": ["fid", "sfid"],
            "rows": ["sampler", "model"],
            "columns": ["metric"],
            "compare": {"adm-ip": "adm"},
        },
    },
    "figures": {
        "figure3": {
            "kind": "lines",
            "title": "FID over training steps",
            "datasets": ["tiny"],
            "models": ["adm"],
            "samplers": ["ancestral-5"],
            "steps": [4, 8],
            "x": "step",
        },
        "samples": {
            "kind": "samples",
            "title": "Images",
            "datasets": ["tiny"],
            "models": ["adm"],
            "samplers": ["ancestral-4"],
        },
    },
}


def small() -> dict[str, Any]:
    """A fresh copy that a test may change."""
    return json.loads(json.dumps(_SMALL))


def put(raw: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Set a dotted key to a copy of `value`; returns `raw`."""
    *parents, last = key.split(".")
    node = raw
    for part in parents:
        node = node[part]
    node[last] = copy.deepcopy(value)
    return raw


def drop(raw: dict[str, Any], key: str) -> dict[str, Any]:
    """Delete a dotted key; returns `raw`."""
    *parents, last = key.split(".")
    node = raw
    for part in parents:
        node = node[part]
    del node[last]
    return raw


def write(directory: Path, raw: dict[str, Any], study: str = "small") -> Path:
    """Write the params.yaml of a study of the project in this directory."""
    path = directory / config.path_of(study)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path
