"""What a gradient makes again instead of keeping: cheap intermediate results, where memory is dear.

A U-Net's update keeps, besides what the convolutions really need, dropout's factors and the outputs of norms, each as
large as an image of features. On a GPU whose memory they would not fit they are made again from what is kept anyway;
the bits are the same, since norms are deterministic and masks are numbers of a counter. A CPU keeps them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

_Result = TypeVar("_Result")


_KEEPS = ContextVar("_KEEPS", default=False)


@contextmanager
def keeping(everything: bool) -> Iterator[None]:
    """A context in which nothing is made again if `everything` is kept: a tenth quicker, where the memory is there."""
    before = _KEEPS.set(everything)
    try:
        yield
    finally:
        _KEEPS.reset(before)


def remakes(value: Tensor) -> bool:
    """Whether a gradient makes such a result again: on a GPU (and on the meta device, where memory is counted)."""
    if value.device.type == "cpu" or _KEEPS.get():
        return False
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def remade(value: Tensor, make: Callable[[], Tensor]) -> AbstractContextManager[Any]:
    """A context in which autograd keeps `make` instead of `value`, and calls it when a gradient needs the value.

    Args:
        value: any tensor; only what is kept of this very one is left out, neither views nor casts of it.
        make: gives a tensor of the same bits; what it holds is kept instead.
    """
    if not remakes(value):
        return nullcontext()
    this, place, shape = weakref.ref(value), value.data_ptr(), value.shape  # autograd holds `pack` as long as `unpack`

    def pack(kept: Tensor) -> Tensor | Callable[[], Tensor]:
        same = kept is this() or (kept.data_ptr() == place != 0 and kept.shape == shape)
        return make if same else kept

    def unpack(kept: Tensor | Callable[[], Tensor]) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad():
            return kept()

    return saved_tensors_hooks(pack, unpack)


def through(
    layer: Callable[[Tensor], _Result], make: Callable[..., Tensor], *parts: Tensor, again: bool = True
) -> _Result:
    """`layer(make(*parts))`, where a gradient of the layer has `make` called again on the same parts.

    Args:
        layer: what keeps its input for its gradient, such as a convolution.
        make: a function that gives equal bits for equal parts.
        parts: what is kept instead of its result.
        again: false where `make` would not give the same again; its result is kept then.
    """
    value = make(*parts)
    if not again or not remakes(value):
        return layer(value)
    kept = [part.detach() for part in parts]
    with remade(value, lambda: make(*kept)):
        return layer(value)
