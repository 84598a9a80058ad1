"""Checkpoint files of other code bases as named tensors, without running anything that is in them."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ipdiff.data.formats import filekind, files
from ipdiff.errors import UserError, brief

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names that (Distributed)DataParallel, torch.compile, FSDP and activation checkpointing put in, one in the
other and around inner modules too; no network here has a part of such a name."""

_STEP, _EMA = 3, 4
"""Places in the DDIM code's list: model, optimiser, epoch, step, EMA weights."""


@dataclass(frozen=True)
class Found:
    """What a file holds: tensors by name (values that are none are kept, to be named), in which format, at which step.

    `step` is the training step that the file itself names, if it does.
    """

    tensors: dict[str, Any]
    format: str
    step: int | None = None


def read(path: Path) -> Found:
    """The weights in a checkpoint file.

    Args:
        path: a state dict of guided-diffusion (`model*.pt`, `ema_*.pt`), a list of the DDIM code (`ckpt.pth`; its
            EMA weights, or the model's where it has none), or safetensors.

    Returns:
        Tensors on the CPU, as they are in the file; their names without what wrappers put in (`module.` and others).

    Raises:
        UserError: the file is missing, truncated, or something else; one line.
    """
    kind = filekind.look(path)
    if kind.name == "safetensors":
        try:
            return Found(_unwrapped(load_file(path)), kind.name, _said_step(path))
        except Exception as error:  # on damaged bytes it raises several kinds
            raise UserError(f"{path}: damaged or truncated safetensors: {brief(error)}") from None
    if kind.name not in ("torch", "pickle"):
        raise UserError(f"{path}: is {kind.words}; expected a .pt or .pth file of torch.save, or safetensors")
    return _weights(path, _load(path, zipped=kind.name == "torch"))


def _said_step(path: Path) -> int | None:
    """The step that safetensors of this project name; None where they name none."""
    with safe_open(path, framework="pt") as file:
        said = (file.metadata() or {}).get("ipdiff", "")
    try:
        step = json.loads(said)["step"]
    except (ValueError, KeyError, TypeError):  # somebody else's word
        return None
    return step if type(step) is int and step >= 0 else None


def _load(path: Path, *, zipped: bool) -> Any:
    """What torch.save wrote, read by its restricted unpickler."""
    if zipped:
        _check_zip(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about storage classes of old files, which still load
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # on damaged bytes the unpickler raises nearly anything
        text = str(error)
        if refused := re.search(r"GLOBAL (\S+)", text):
            wanted = brief(refused[1], 60)
            why = f"its pickle asks for {wanted}, which is no tensor; only plain state dicts and lists are read"
        elif "weights only load failed" in text.lower():
            why = "no file of torch.save, or more than tensors in it; only plain state dicts and lists are read"
        else:
            why = f"damaged or truncated: {brief(error)}"
        raise UserError(f"{path}: {why}") from None


def _check_zip(path: Path) -> None:
    """torch.save stores without compression: anything else is no checkpoint, or a bomb."""
    with files.reading(str(path)), zipfile.ZipFile(path) as archive:
        packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise UserError(f"{path}: a zip archive, but none of torch.save: {brief(packed[0], 60)} in it is compressed")


def _weights(path: Path, value: Any) -> Found:
    """The weights among what torch.save wrote."""
    if isinstance(value, list):
        return _from_list(path, value)
    if not isinstance(value, Mapping):
        raise UserError(f"{path}: holds a {type(value).__name__}; expected a state dict: names and tensors")
    if {"state", "param_groups"} <= value.keys():
        raise UserError(
            f"{path}: an optimiser's state (opt*.pt), no weights; take model*.pt or ema_*.pt of the same step"
        )
    if not _is_weights(value):
        keys = ", ".join(_shown(key) for key in list(value)[:8])
        raise UserError(f"{path}: a mapping, but no names and tensors (keys: {keys or 'none'}); expected a state dict")
    return Found(_unwrapped(value), "state dict")


def _from_list(path: Path, value: list[Any]) -> Found:
    """The EMA weights of the DDIM code's list, or the model's where it has none."""
    step = value[_STEP] if len(value) > _STEP and isinstance(value[_STEP], int) else None
    if len(value) > _EMA and _is_weights(value[_EMA]):
        return Found(_unwrapped(value[_EMA]), "DDIM list, EMA weights", step)
    if len(value) in (_EMA, _EMA + 1) and _is_weights(value[0]):
        return Found(_unwrapped(value[0]), "DDIM list, model weights (it has no EMA)", step)
    kinds = ", ".join(type(entry).__name__ for entry in value[:8])
    raise UserError(
        f"{path}: a list of {kinds or 'nothing'}; expected the DDIM code's: model, optimiser, epoch, step, EMA"
    )


def _is_weights(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and all(isinstance(name, str) for name in value)
        and any(isinstance(entry, Tensor) for entry in value.values())
    )


def _shown(key: Any) -> str:
    """A key of a file's mapping; what is no text may be a nest of any size, so only its kind is said."""
    return brief(key, 20) if isinstance(key, str | int) else f"a {type(key).__name__}"


def _unwrapped(tensors: Mapping[Any, Any]) -> dict[str, Any]:
    """The values by the names they have without wrappers, unless two would then have one name."""
    named = {str(name): value for name, value in tensors.items()}
    bare = {".".join(part for part in name.split(".") if part not in _WRAPPERS): name for name in named}
    return {short: named[name] for short, name in bare.items()} if len(bare) == len(named) else named
