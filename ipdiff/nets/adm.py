"""The ADM U-Net, state-dict compatible with guided-diffusion's `UNetModel`.

Source: guided-diffusion guided_diffusion/unet.py@22e0df8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ipdiff.nets.layers import (
    Dropout,
    GroupNorm,
    PointwiseConv,
    SiLU,
    UNet,
    ZeroConv2d,
    ZeroPointwiseConv,
    attention,
    conv3x3,
    double,
    halve,
    sinusoids,
    without_autocast,
)
from ipdiff.spec import level_sizes


@dataclass(frozen=True)
class _Style:
    """What all blocks of one network have in common."""

    embedding: int
    dropout: float
    groups: int
    scale_shift: bool
    num_heads: int
    num_head_channels: int | None
    new_attention_order: bool


class ResBlock(nn.Module):
    """Two normalised convolutions around the time embedding, plus a shortcut; may resample on the way."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        style: _Style,
        resample: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Map `channels` to `out_channels`; `resample` (`halve`, `double`) acts on both branches."""
        super().__init__()
        self.scale_shift = style.scale_shift
        self.resample = resample
        self.in_layers = nn.Sequential(GroupNorm(style.groups, channels), SiLU(), conv3x3(channels, out_channels))
        # The network applies these for all blocks at once (UNet.project); here they only have their names.
        projection = nn.Linear(style.embedding, out_channels * (2 if style.scale_shift else 1))
        self.emb_layers = nn.Sequential(SiLU(), projection)
        self.out_layers = nn.Sequential(
            GroupNorm(style.groups, out_channels),
            SiLU(),
            Dropout(style.dropout),
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
        norm, _, conv = self.in_layers
        h = cast(GroupNorm, norm).activated(x)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = conv(h)
        norm, _, dropout, conv = self.out_layers
        norm = cast(GroupNorm, norm)
        h = norm.activated(h, *emb.chunk(2, dim=1)) if self.scale_shift else norm.activated(h + emb.to(h.dtype))
        return conv(dropout(h)).add_(self.skip_connection(x))


class AttentionBlock(nn.Module):
    """Multi-head self-attention over all pixels, plus the input."""

    def __init__(self, channels: int, style: _Style) -> None:
        """Attend within `channels` channels; the style says how many heads and in which order of q, k, v."""
        super().__init__()
        unit = style.num_heads if style.num_head_channels is None else style.num_head_channels
        if unit < 1 or channels % unit:
            name = "num_heads" if style.num_head_channels is None else "num_head_channels"
            raise ValueError(f"{name}={unit} does not divide the {channels} channels of an attention block")
        self.heads = unit if style.num_head_channels is None else channels // unit
        self.new_order = style.new_attention_order
        self.norm = GroupNorm(style.groups, channels)
        self.qkv = PointwiseConv(channels, 3 * channels)
        self.proj_out = ZeroPointwiseConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N,C,H,W] to the same shape."""
        qkv = self.qkv(self.norm(x))
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


class Upsample(nn.Module):
    """Double the image: repeat the pixels, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        """Keep `channels` channels."""
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N,C,H,W] to [N,C,2H,2W]."""
        return self.conv(double(x))


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
        dropout: float = 0.0,
        num_heads: int = 4,
        num_head_channels: int | None = None,
        num_classes: int | None = None,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = True,
        new_attention_order: bool = True,
        norm_groups: int = 32,
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
            dropout: probability of dropping, before the last convolution of a residual block.
            num_heads: attention heads where `num_head_channels` is None.
            num_head_channels: channels a head; None = use `num_heads`.
            num_classes: number of labels; None = unconditional.
            use_scale_shift_norm: the embedding scales and shifts the second norm's output, else it is
                added before that norm.
            resblock_updown: resample inside residual blocks, else by convolutions.
            new_attention_order: split q, k, v before splitting heads.
            norm_groups: groups of every norm; 32 in all published networks.

        Raises:
            ValueError: arguments that do not fit together.
        """
        super().__init__()
        sizes = level_sizes(image_size, channel_mult, num_res_blocks, attention_resolutions)
        if model_channels < 2 or model_channels % 2:
            raise ValueError(f"model_channels={model_channels} is not even; time is embedded in pairs")
        embedding = 4 * model_channels
        style = _Style(
            embedding=embedding,
            dropout=dropout,
            groups=norm_groups,
            scale_shift=use_scale_shift_norm,
            num_heads=num_heads,
            num_head_channels=num_head_channels,
            new_attention_order=new_attention_order,
        )
        attend = [size in attention_resolutions for size in sizes]
        widths = [model_channels * mult for mult in channel_mult]
        self.model_channels = model_channels
        self.time_embed = nn.Sequential(nn.Linear(model_channels, embedding), SiLU(), nn.Linear(embedding, embedding))
        self.num_classes = num_classes
        if num_classes is not None:
            if num_classes < 1:
                raise ValueError(f"num_classes={num_classes} is not positive; None means unconditional")
            self.label_emb = nn.Embedding(num_classes, embedding)
        builder = _Builder(style, num_res_blocks, resblock_updown)
        self.input_blocks = builder.encoder(in_channels, widths, attend)
        self.middle_block = builder.middle(widths[-1])
        self.output_blocks = builder.decoder(widths, attend)
        self.out = nn.Sequential(
            GroupNorm(norm_groups, widths[0]), SiLU(), ZeroConv2d(widths[0], out_channels, 3, padding=1)
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
            return conv(cast(GroupNorm, norm).activated(h.to(x.dtype)))


class _Builder:
    """Lays out the blocks; every block of the lists is a Sequential of layers."""

    def __init__(self, style: _Style, num_res_blocks: int, resblock_updown: bool) -> None:
        self.style = style
        self.num_res_blocks = num_res_blocks
        self.resblock_updown = resblock_updown
        self.skips: list[int] = []  # widths of the encoder's outputs, which the decoder takes from the end

    def encoder(self, in_channels: int, widths: Sequence[int], attend: Sequence[bool]) -> nn.ModuleList:
        """The convolution that starts, then for each level its blocks and (but for the last) a halving."""
        width = widths[0]
        blocks = [nn.Sequential(conv3x3(in_channels, width))]
        self.skips.append(width)
        for level, (target, attends) in enumerate(zip(widths, attend, strict=True)):
            for _ in range(self.num_res_blocks):
                blocks.append(nn.Sequential(*self._residual(width, target, attends)))
                width = target
                self.skips.append(width)
            if level + 1 < len(widths):
                blocks.append(nn.Sequential(self._resampling(width, halve)))
                self.skips.append(width)
        return nn.ModuleList(blocks)

    def middle(self, width: int) -> nn.Sequential:
        """A residual block, attention, a residual block."""
        return nn.Sequential(*self._residual(width, width, True), ResBlock(width, width, self.style))

    def decoder(self, widths: Sequence[int], attend: Sequence[bool]) -> nn.ModuleList:
        """From the smallest level up: one block more than in the encoder, the last of which doubles."""
        width = widths[-1]
        blocks: list[nn.Module] = []
        for level in reversed(range(len(widths))):
            for index in range(self.num_res_blocks + 1):
                layers = self._residual(width + self.skips.pop(), widths[level], attend[level])
                width = widths[level]
                if level > 0 and index == self.num_res_blocks:
                    layers.append(self._resampling(width, double))
                blocks.append(nn.Sequential(*layers))
        return nn.ModuleList(blocks)

    def _residual(self, channels: int, out_channels: int, attends: bool) -> list[nn.Module]:
        block: nn.Module = ResBlock(channels, out_channels, self.style)
        return [block, AttentionBlock(out_channels, self.style)] if attends else [block]

    def _resampling(self, width: int, resample: Callable[[Tensor], Tensor]) -> nn.Module:
        if self.resblock_updown:
            return ResBlock(width, width, self.style, resample)
        return Downsample(width) if resample is halve else Upsample(width)
