"""A network made ready for sampling: weights converted and laid out once instead of in every call.

`prepare_for_sampling` replaces the convolutions of a network that will not be trained any more. On a CPU with
oneDNN the weights of channels_last networks are kept in the blocked layout of its kernels (a plain weight is
rearranged in every call: a tenth of the time of small images). Below float32 the activations between the first
and the last layer have the low precision; norms, time embeddings and the last convolution compute in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipdiff.nets.layers import UNet


class FixedConv(nn.Module):
    """A convolution without gradient: converts its input to the weight's dtype."""

    def __init__(self, conv: nn.Conv2d | nn.Conv1d, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
        """Take over `conv`'s weights in this form; a Conv1d is one of width 1 over pixels."""
        super().__init__()
        weight = conv.weight.detach() if conv.weight.ndim == 4 else conv.weight.detach().unsqueeze(-1)
        self.weight = weight.to(dtype, memory_format=memory_format)
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self.stride, self.padding = [conv.stride[0]] * 2, [int(conv.padding[0])] * 2
        on_cpu = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
        self._packs = on_cpu and memory_format == torch.channels_last
        self._packed: tuple[torch.Size, Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Map [N,in,H,W] of any dtype to [N,out,H',W'] in the weight's."""
        x = input.to(self.weight.dtype)
        if not self._packs:
            return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        # The two operations are those of torch's own compiler; autograd does not know them.
        weight, one = self._packed_for(x.shape), [1, 1]
        return torch.ops.mkldnn._convolution_pointwise.default(
            x, weight, self.bias, self.padding, self.stride, one, 1, "none", [], ""
        )

    def _packed_for(self, shape: torch.Size) -> Tensor:
        """The weight in the layout that the kernel for this input wants; kept until the shape changes."""
        if self._packed is None or self._packed[0] != shape:
            one = [1, 1]
            reorder = torch.ops.mkldnn._reorder_convolution_weight.default
            self._packed = shape, reorder(self.weight, self.padding, self.stride, one, 1, list(shape))
        return self._packed[1]


@torch.no_grad()
def prepare_for_sampling(
    net: UNet, dtype: torch.dtype = torch.float32, memory_format: torch.memory_format = torch.channels_last
) -> UNet:
    """Make `net` ready for sampling, in place, and return it; its convolutions have no gradient any more.

    Args:
        net: a network in evaluation mode, on its device.
        dtype: of the convolutions and of what flows between them: float32, bfloat16 or float16.
        memory_format: of the images it will be called with.
    """
    last = net.last_layer
    for module in list(net.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, nn.Conv1d | nn.Conv2d):
                own = torch.float32 if layer is last else dtype
                module.add_module(name, FixedConv(layer, own, memory_format))
    return net
