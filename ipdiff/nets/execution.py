"""How a run's network is executed: in low precision, compiled. The network itself knows neither."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ipdiff.device.compute import dtype
from ipdiff.device.spec import Compute
from ipdiff.nets.dropout import Dropout

_Network = Callable[[Tensor, Tensor], Tensor]
_Function = TypeVar("_Function", bound=Callable[..., Any])


def low_precision(net: _Network, compute: Compute) -> _Network:
    """The network with its convolutions and attention in the run's precision, weights staying float32."""
    if compute.precision == "float32":
        return net

    def low(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(compute.device, dtype=dtype(compute)):
            return net(x, t)

    return low


def compiled(function: _Function, compute: Compute) -> _Function:
    """The function as torch.compile makes it, where the run asks for it; compiled at its first call."""
    if not compute.compile:
        return function
    Dropout.keep_out_of_graphs()
    return cast(_Function, torch.compile(function))


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """A `torch.nn.Module` and all in it in evaluation mode, and each as it was afterwards; anything else is left."""
    modes = {part: part.training for part in model.modules()} if isinstance(model, nn.Module) else {}
    for part in modes:
        part.training = False
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
