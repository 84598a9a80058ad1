"""The ADM U-Net, state-dict compatible with guided-diffusion's `UNetModel`.

Source: guided-diffusion guided_diffusion/unet.py@22e0df8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ipdiff.device.recompute import through
from ipdiff.nets.dropout import Dropout
from ipdiff.nets.layers import (
    GroupNorm,
    PointwiseConv,
    SiLU,
    UNet,
    Upsample,
    ZeroConv2d,
    ZeroPointwiseConv,
    attention,
    conv3x3,
    double,
    halve,
    sinusoids,
    without_autocast,
)
from ipdiff.spec import ADMNetwork

_InLayers = tuple[GroupNorm, SiLU, nn.Conv2d]
_OutLayers = tuple[GroupNorm, SiLU, Dropout, nn.Conv2d]


class ResBlock(nn.Module):
    """Two normalised convolutions around the time embedding, plus a shortcut; may resample on the way."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        net: ADMNetwork,
        resample: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Map `channels` to `out_channels`; `resample` (`halve`, `double`) acts on both branches."""
        super().__init__()
        self.scale_shift = net.use_scale_shift_norm
        self.resample = resample
        self.in_layers = nn.Sequential(GroupNorm(net.norm_groups, channels), SiLU(), conv3x3(channels, out_channels))
        # The network applies these for all blocks at once (UNet.project); here they only have their names.
        projection = nn.Linear(4 * net.model_channels, out_channels * (2 if self.scale_shift else 1))
        self.emb_layers = nn.Sequential(SiLU(), projection)
        self.out_layers = nn.Sequential(
            GroupNorm(net.norm_groups, out_channels),
            SiLU(),
            Dropout(net.dropout),
            ZeroConv2d(out_channels, out_channels, 3, padding=1),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    @property
    def projection(self) -> nn.Linear:
        """The linear layer from the network's embedding to what this block takes."""
        return cast(nn.Linear, self.emb_layers[1])

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map x [N,C,H,W] and the projected embedding [N,K,1,1] (K = out or [scale|shift] 2*out)."""
        first, _, conv = cast(_InLayers, self.in_layers)
        resample = self.resample or _same
        h = through(conv, lambda x: resample(first.activated(x)), x)
        x = resample(x)
        second, _, dropout, conv = cast(_OutLayers, self.out_layers)
        parts = (h, *emb.chunk(2, dim=1)) if self.scale_shift else (h + emb.to(h.dtype),)
        drop = dropout.as_now()
        h = through(conv, lambda *parts: drop(second.activated(*parts)), *parts, again=dropout.repeats)
        return h.add_(self.skip_connection(x))


class AttentionBlock(nn.Module):
    """Multi-head self-attention over all pixels, plus the input."""

    def __init__(self, channels: int, net: ADMNetwork) -> None:
        """Attend within `channels` channels."""
        super().__init__()
        self.heads = net.num_heads if net.num_head_channels is None else channels // net.num_head_channels
        self.new_order = net.new_attention_order
        self.norm = GroupNorm(net.norm_groups, channels)
        self.qkv = PointwiseConv(channels, 3 * channels)
        self.proj_out = ZeroPointwiseConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N,C,H,W] to the same shape."""
        qkv = through(self.qkv, self.norm, x)
        if self.new_order:  # channels are [q|k|v], each cut into heads
            q, k, v = qkv.unflatten(1, (3, self.heads, -1)).unbind(1)
        else:  # channels are heads, each cut into [q|k|v]
            q, k, v = qkv.unflatten(1, (self.heads, 3, -1)).unbind(2)
        return x + self.proj_out(attention(q, k, v))


class Downsample(nn.Module):
    """Halve the image by a strided 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        """Keep `channels` channels."""
        super().__init__()
        self.op = conv3x3(channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N,C,H,W] to [N,C,H/2,W/2]."""
        return self.op(x)


class ADMUNet(UNet):
    """The ADM U-Net."""

    def __init__(
        self,
        image_size: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        channel_mult: Sequence[int],
        *,
        in_channels: int = 3,
        num_classes: int | None = None,
        **options: Any,
    ) -> None:
        """Build the network, with PyTorch's default initialisation and zero where the ADM code has zero.

        Args:
            image_size: height and width in pixels.
            model_channels: base width; even.
            out_channels: of the prediction; twice in_channels where the variance is learned.
            num_res_blocks: residual blocks a level.
            attention_resolutions: image sizes (not factors) whose blocks carry attention, e.g. (16, 8).
            channel_mult: width of each level as a multiple of the base.
            in_channels: channels of the image.
            num_classes: number of labels; None = unconditional.
            options: the other fields of `ipdiff.spec.ADMNetwork`, with its defaults: dropout, num_heads,
                num_head_channels, use_scale_shift_norm, resblock_updown, new_attention_order, norm_groups.

        Raises:
            ValueError: an architecture that is none for images of this size.
        """
        super().__init__()
        network = ADMNetwork(model_channels, list(channel_mult), num_res_blocks, list(attention_resolutions), **options)
        network.check(image_size)
        self.model_channels, embedding = network.model_channels, 4 * network.model_channels
        attends, widths = network.attends(image_size), network.widths
        self.time_embed = nn.Sequential(
            nn.Linear(self.model_channels, embedding), SiLU(), nn.Linear(embedding, embedding)
        )
        self.num_classes = num_classes
        if num_classes is not None:
            if num_classes < 1:
                raise ValueError(f"num_classes={num_classes} is not positive; None means unconditional")
            self.label_emb = nn.Embedding(num_classes, embedding)
        self.input_blocks, skips = _encoder(network, in_channels, attends)
        last = widths[-1]
        self.middle_block = nn.Sequential(*_residual(network, last, last, True), ResBlock(last, last, network))
        self.output_blocks = _decoder(network, skips, attends)
        self.out = nn.Sequential(
            GroupNorm(network.norm_groups, widths[0]), SiLU(), ZeroConv2d(widths[0], out_channels, 3, padding=1)
        )
        self._project_with([block.projection for block in self.modules() if isinstance(block, ResBlock)])

    @property
    def last_layer(self) -> nn.Module:
        """The convolution that makes the output."""
        return self.out[2]

    def time_embedding(self, t: Tensor) -> Tensor:
        """Embed timesteps t [N] (any dtype) as [N, 4*model_channels]."""
        half = self.model_channels // 2
        return self.time_embed(self._cast(torch.cat(sinusoids(t, half, half), dim=1)))

    def forward_projected(self, x: Tensor, projected: Tensor) -> Tensor:
        """Map x [N,C,H,W] to [N,out_channels,H,W], given `project`'s result [N,P] or [1,P]."""
        embs = self._per_block(projected)

        def run(block: nn.Module, h: Tensor) -> Tensor:
            for layer in block.children():
                h = layer(h, next(embs)) if isinstance(layer, ResBlock) else layer(h)
            return h

        skips: list[Tensor] = []
        h = x
        for block in self.input_blocks:
            h = run(block, h)
            skips.append(h)
        h = run(self.middle_block, h)
        for block in self.output_blocks:
            h = run(block, torch.cat([h, skips.pop()], dim=1))
        with without_autocast(x):
            norm, _, conv = self.out
            return through(conv, cast(GroupNorm, norm).activated, h.to(x.dtype))


def _same(x: Tensor) -> Tensor:
    return x


def _encoder(net: ADMNetwork, in_channels: int, attends: Sequence[bool]) -> tuple[nn.ModuleList, list[int]]:
    """The convolution that starts, then for each level its blocks and (but for the last) a halving; their widths."""
    width = net.widths[0]
    blocks, widths = [nn.Sequential(conv3x3(in_channels, width))], [width]
    for level, target in enumerate(net.widths):
        for _ in range(net.num_res_blocks):
            blocks.append(nn.Sequential(*_residual(net, width, target, attends[level])))
            width = target
            widths.append(width)
        if level + 1 < len(net.widths):
            blocks.append(nn.Sequential(_resampling(net, width, halve)))
            widths.append(width)
    return nn.ModuleList(blocks), widths


def _decoder(net: ADMNetwork, skips: list[int], attends: Sequence[bool]) -> nn.ModuleList:
    """From the smallest level up: one block more than in the encoder, the last of which doubles.

    `skips`: the widths of the encoder's blocks, which are taken from the end.
    """
    width = net.widths[-1]
    blocks: list[nn.Module] = []
    for level in reversed(range(len(net.widths))):
        for index in range(net.num_res_blocks + 1):
            layers = _residual(net, width + skips.pop(), net.widths[level], attends[level])
            width = net.widths[level]
            if level > 0 and index == net.num_res_blocks:
                layers.append(_resampling(net, width, double))
            blocks.append(nn.Sequential(*layers))
    return nn.ModuleList(blocks)


def _residual(net: ADMNetwork, channels: int, out_channels: int, attends: bool) -> list[nn.Module]:
    block = ResBlock(channels, out_channels, net)
    return [block, AttentionBlock(out_channels, net)] if attends else [block]


def _resampling(net: ADMNetwork, width: int, resample: Callable[[Tensor], Tensor]) -> nn.Module:
    if net.resblock_updown:
        return ResBlock(width, width, net, resample)
    return Downsample(width) if resample is halve else Upsample(width)
