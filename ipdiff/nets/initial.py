"""The weights that training starts from, drawn from uniforms that the caller gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ipdiff.nets.layers import ZeroConv2d, ZeroPointwiseConv

UniformSource = Callable[[int, int], NDArray[np.float64]]
"""(index of the tensor in `named_parameters()`, count) -> so many float64 in [0, 1)."""


def initialise(net: nn.Module, uniforms: UniformSource) -> None:
    """Draw all parameters anew, in place, from PyTorch's default distributions; no global RNG is touched.

    Convolutions and linear layers: weight and bias uniform in +-1/sqrt(fan_in). Norms: 1 and 0.
    Layers that start at zero stay zero. Computed in float64, rounded once to the parameter's dtype.

    Args:
        net: a network of such layers only.
        uniforms: the source of random numbers.

    Raises:
        ValueError: a parameter belongs to another kind of layer.
    """
    owners = {id(p): module for module in net.modules() for p in module.parameters(recurse=False)}
    with torch.no_grad():
        for index, (name, parameter) in enumerate(net.named_parameters()):
            values = _initial(owners[id(parameter)], name, parameter, partial(uniforms, index))
            parameter.copy_(torch.from_numpy(values).view(parameter.shape))


def _initial(
    owner: nn.Module, name: str, parameter: Tensor, uniforms: Callable[[int], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Initial values of one parameter of `owner`, flat float64."""
    count = parameter.numel()
    if isinstance(owner, ZeroConv2d | ZeroPointwiseConv):
        return np.zeros(count)
    if isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Linear):
        bound = 1 / math.sqrt(owner.weight[0].numel())
        return (2 * uniforms(count) - 1) * bound
    if isinstance(owner, nn.GroupNorm):
        return np.full(count, float(parameter is owner.weight))
    raise ValueError(f"initialise has no rule for {name}, a parameter of {type(owner).__name__}")
