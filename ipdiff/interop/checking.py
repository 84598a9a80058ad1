"""Whether tensors are the weights of a run's network: every difference is named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from ipdiff.errors import UserError, brief
from ipdiff.nets import build
from ipdiff.spec import RunSpec

SHOWN = 160
"""Characters of a message that spell out the first problems; the others are counted."""

_FIRST = {"adm": "input_blocks.0.0.weight", "ddpm": "conv_in.weight"}
"""A tensor that every network of the family has, and none of the other."""

_CODE = {"adm": "guided-diffusion", "ddpm": "the DDIM code"}


def shapes(spec: RunSpec) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all weights of the run's network, which is not built in memory.

    Raises:
        UserError: the parameters describe no network.
    """
    try:
        with torch.device("meta"):
            net = build.network(spec)
    except ValueError as error:
        raise UserError(f"the network of params.yaml cannot be built: {error}") from None
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


def problems(tensors: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Every difference between what a file has and what the network takes, in the network's order."""
    lines = [f"{name} is missing" for name in expected if name not in tensors]
    lines += [f"{name} is not in the network" for name in tensors if name not in expected]
    for name, shape in expected.items():
        if name in tensors and (wrong := _problem(tensors[name], shape)):
            lines.append(f"{name} {wrong}")
    return lines


def _problem(value: Any, shape: tuple[int, ...]) -> str | None:
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, no tensor"
    if value.layout != torch.strided or value.device.type != "cpu":
        return f"is a {value.layout} tensor on {value.device}, not a plain one"
    if tuple(value.shape) != shape:
        return f"has shape {list(value.shape)}, the network's is {list(shape)}"
    if value.dtype != torch.float32:
        return f"is {str(value.dtype).removeprefix('torch.')}, expected float32"
    if bad := int((~torch.isfinite(value)).sum()):
        return f"has {bad} values that are not finite, of {value.numel()}"
    return None


def common_prefix(names: Iterable[str]) -> str:
    """The parts, each with its dot, with which every one of two names or more begins."""
    paths = [name.split(".")[:-1] for name in names]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False)) if len(paths) > 1 else ()
    return "".join(f"{parts[0]}." for parts in shared)


def check(tensors: Mapping[str, Any], spec: RunSpec, path: str, run: str) -> None:
    """Refuse tensors that are not exactly the weights of the run's network.

    Raises:
        UserError: one line with the first differences and their number.
    """
    expected = shapes(spec)
    found = problems(tensors, expected)
    if not found:
        return
    prefix = common_prefix(tensors)
    if prefix and common_prefix(expected) != prefix:
        raise UserError(
            f"{path}: every name begins with '{prefix}', the network of {run} has names such as "
            f"{next(iter(expected))}; take the prefix off (save the state dict of that part alone)"
        )
    for other, first in _FIRST.items():
        if other != spec.family and first in tensors and _FIRST.get(spec.family) not in tensors:
            raise UserError(
                f"{path}: a network of {_CODE[other]} (family {other}), but the model of {run} has family {spec.family}"
            )
    count = "1 difference" if len(found) == 1 else f"{len(found)} differences"
    raise UserError(f"{path}: not the network of {run}, {count}: {_first(found)}")


def _first(found: list[str]) -> str:
    """The first problems, as many as there is room for, and how many more there are."""
    lines = [brief(line, SHOWN) for line in found]
    shown = lines[:1]
    for line in lines[1:]:
        if sum(map(len, shown)) + len(line) > SHOWN:
            break
        shown.append(line)
    more = len(found) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")
