"""The DDIM code base's U-Net, state-dict compatible with ermongroup/ddim's `Model` (without `module.`).

Source: ermongroup/ddim models/diffusion.py@5e85a21.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipdiff.nets.layers import Dropout, GroupNorm, UNet, attention, conv3x3, double, silu, sinusoids, without_autocast
from ipdiff.spec import level_sizes

EPS = 1e-6
"""Of every group norm in this code base."""


@dataclass(frozen=True)
class _Style:
    """What all blocks of one network have in common."""

    embedding: int
    dropout: float
    groups: int


class ResBlock(nn.Module):
    """Two normalised convolutions with the time embedding added in between, plus a shortcut."""

    def __init__(self, channels: int, out_channels: int, style: _Style) -> None:
        """Map `channels` to `out_channels`."""
        super().__init__()
        self.norm1 = GroupNorm(style.groups, channels, EPS)
        self.conv1 = conv3x3(channels, out_channels)
        # The network applies this for all blocks at once (UNet.project); here it only has its name.
        self.temb_proj = nn.Linear(style.embedding, out_channels)
        self.norm2 = GroupNorm(style.groups, out_channels, EPS)
        self.dropout = Dropout(style.dropout)
        self.conv2 = conv3x3(out_channels, out_channels)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)
        self.shortcut = channels != out_channels

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map x [N,C,H,W] and the projected embedding [N,out,1,1] to [N,out,H,W]."""
        h = self.conv1(self.norm1.activated(x))
        h = h + emb.to(h.dtype)
        h = self.conv2(self.dropout(self.norm2.activated(h)))
        return h.add_(self.nin_shortcut(x) if self.shortcut else x)


class AttentionBlock(nn.Module):
    """Single-head self-attention over all pixels, plus the input."""

    def __init__(self, channels: int, style: _Style) -> None:
        """Attend within `channels` channels."""
        super().__init__()
        self.norm = GroupNorm(style.groups, channels, EPS)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N,C,H,W] to the same shape."""
        h = self.norm(x)
        q, k, v = (conv(h).unsqueeze(1) for conv in (self.q, self.k, self.v))
        return x + self.proj_out(attention(q, k, v))


class Downsample(nn.Module):
    """Halve the image by a strided 3x3 convolution, padded at the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        """Keep `channels` channels."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N,C,H,W] to [N,C,H/2,W/2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the image: repeat the pixels, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        """Keep `channels` channels."""
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N,C,H,W] to [N,C,2H,2W]."""
        return self.conv(double(x))


class TimeMLP(nn.Module):
    """Two linear layers with a SiLU in between."""

    def __init__(self, channels: int, embedding: int) -> None:
        """Map `channels` features to `embedding`."""
        super().__init__()
        self.dense = nn.ModuleList([nn.Linear(channels, embedding), nn.Linear(embedding, embedding)])

    def forward(self, features: Tensor) -> Tensor:
        """Map [N,channels] float to [N,embedding]."""
        first, second = self.dense
        return second(silu(first(features)))


class Level(nn.Module):
    """The residual blocks of one image size, each with or without attention."""

    def __init__(self, widths: Sequence[int], out_channels: int, attends: bool, style: _Style) -> None:
        """One block for each input width in `widths`, all with `out_channels` outputs."""
        super().__init__()
        self.block = nn.ModuleList([ResBlock(width, out_channels, style) for width in widths])
        self.attn = nn.ModuleList([AttentionBlock(out_channels, style) for _ in widths if attends])

    def run(self, index: int, x: Tensor, emb: Tensor) -> Tensor:
        """Apply block `index` and its attention to x [N,C,H,W] with the projected embedding [N,out,1,1]."""
        h = self.block[index](x, emb)
        return self.attn[index](h) if len(self.attn) else h


class DownLevel(Level):
    """A level of the encoder."""

    def __init__(self, widths: Sequence[int], out_channels: int, attends: bool, style: _Style, last: bool) -> None:
        """As `Level`; all but the last (smallest) level halve the image at their end."""
        super().__init__(widths, out_channels, attends, style)
        self.last = last
        if not last:
            self.downsample = Downsample(out_channels)

    def forward(self, h: Tensor, embs: Iterator[Tensor]) -> list[Tensor]:
        """Map h [N,C,H,W] to the outputs of all blocks, and of the halving; takes one of `embs` a block."""
        outputs: list[Tensor] = []
        for index in range(len(self.block)):
            h = self.run(index, h, next(embs))
            outputs.append(h)
        return outputs if self.last else [*outputs, self.downsample(h)]


class UpLevel(Level):
    """A level of the decoder."""

    def __init__(self, widths: Sequence[int], out_channels: int, attends: bool, style: _Style, last: bool) -> None:
        """As `Level`; all but the last (largest) level double the image at their end."""
        super().__init__(widths, out_channels, attends, style)
        self.last = last
        if not last:
            self.upsample = Upsample(out_channels)

    def forward(self, h: Tensor, skips: list[Tensor], embs: Iterator[Tensor]) -> Tensor:
        """Map h [N,C,H,W] to the level's output; takes one of `embs` and the last of `skips` a block."""
        for index in range(len(self.block)):
            h = self.run(index, torch.cat([h, skips.pop()], dim=1), next(embs))
        return h if self.last else self.upsample(h)


class Middle(nn.Module):
    """A residual block, attention, a residual block."""

    def __init__(self, channels: int, style: _Style) -> None:
        """Keep `channels` channels."""
        super().__init__()
        self.block_1 = ResBlock(channels, channels, style)
        self.attn_1 = AttentionBlock(channels, style)
        self.block_2 = ResBlock(channels, channels, style)

    def forward(self, x: Tensor, embs: Iterator[Tensor]) -> Tensor:
        """Map x [N,C,H,W] to the same shape; takes two of `embs`."""
        return self.block_2(self.attn_1(self.block_1(x, next(embs))), next(embs))


class DDPMUNet(UNet):
    """The DDIM code base's U-Net; the defaults are its CIFAR-10 network."""

    def __init__(
        self,
        image_size: int = 32,
        model_channels: int = 128,
        out_channels: int = 3,
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        *,
        in_channels: int = 3,
        dropout: float = 0.1,
        norm_groups: int = 32,
    ) -> None:
        """Build the network with PyTorch's default initialisation; nothing starts at zero.

        Args:
            image_size: height and width in pixels.
            model_channels: base width; even, 4 or more.
            out_channels: of the prediction.
            num_res_blocks: residual blocks a level.
            attention_resolutions: image sizes (not factors) whose blocks carry attention, e.g. (16,).
            channel_mult: width of each level as a multiple of the base.
            in_channels: channels of the image.
            dropout: probability of dropping, before the last convolution of a residual block.
            norm_groups: groups of every norm; 32 in the published network.

        Raises:
            ValueError: arguments that do not fit together.
        """
        super().__init__()
        sizes = level_sizes(image_size, channel_mult, num_res_blocks, attention_resolutions)
        if model_channels < 4 or model_channels % 2:
            raise ValueError(f"model_channels={model_channels} is not an even number >= 4")
        self.model_channels = model_channels
        style = _Style(4 * model_channels, dropout, norm_groups)
        attend = [size in attention_resolutions for size in sizes]
        widths = [model_channels * mult for mult in channel_mult]
        self.temb = TimeMLP(model_channels, style.embedding)
        self.conv_in = conv3x3(in_channels, model_channels)
        self.down = _encoder([model_channels, *widths], attend, num_res_blocks, style)
        self.mid = Middle(widths[-1], style)
        self.up = _decoder([model_channels, *widths], attend, num_res_blocks, style)
        self.norm_out = GroupNorm(norm_groups, widths[0], EPS)
        self.conv_out = conv3x3(widths[0], out_channels)
        parts = [self.down, self.mid, *reversed(list(self.up))]  # in the order in which they run
        blocks = [block for part in parts for block in part.modules() if isinstance(block, ResBlock)]
        self._project_with([block.temb_proj for block in blocks])

    @property
    def last_layer(self) -> nn.Module:
        """The convolution that makes the output."""
        return self.conv_out

    def time_embedding(self, t: Tensor) -> Tensor:
        """Embed timesteps t [N] (any dtype) as [N, 4*model_channels]."""
        half = self.model_channels // 2
        cosines, sines = sinusoids(t, half, half - 1)
        return self.temb(self._cast(torch.cat([sines, cosines], dim=1)))

    def forward_projected(self, x: Tensor, projected: Tensor) -> Tensor:
        """Map x [N,C,H,W] to [N,out_channels,H,W], given `project`'s result [N,P] or [1,P]."""
        embs = self._per_block(projected)
        skips = [self.conv_in(x)]
        for level in self.down:
            skips += level(skips[-1], embs)
        h = self.mid(skips[-1], embs)
        for level in reversed(self.up):
            h = level(h, skips, embs)
        with without_autocast(x):
            return self.conv_out(self.norm_out.activated(h.to(x.dtype)))


def _encoder(widths: Sequence[int], attend: Sequence[bool], num_res_blocks: int, style: _Style) -> nn.ModuleList:
    """The levels from the largest image to the smallest; widths[0] enters, level i leaves widths[i + 1]."""
    levels: list[nn.Module] = []
    for level, attends in enumerate(attend):
        before, width = widths[level : level + 2]
        inputs = [before] + [width] * (num_res_blocks - 1)
        levels.append(DownLevel(inputs, width, attends, style, last=level + 1 == len(attend)))
    return nn.ModuleList(levels)


def _decoder(widths: Sequence[int], attend: Sequence[bool], num_res_blocks: int, style: _Style) -> nn.ModuleList:
    """The encoder's levels mirrored, in its numbering: they run from the last to the first.

    The first block of a level takes the output of the smaller level; the last one's skip connection is the
    image that entered the level in the encoder.
    """
    levels: list[nn.Module] = []
    for level, attends in enumerate(attend):
        before, width = widths[level : level + 2]
        smaller = [*widths, widths[-1]][level + 2]
        inputs = [smaller] + [width] * num_res_blocks
        skips = [width] * num_res_blocks + [before]
        totals = [channels + skip for channels, skip in zip(inputs, skips, strict=True)]
        levels.append(UpLevel(totals, width, attends, style, last=level == 0))
    return nn.ModuleList(levels)
