"""The DDIM code base's U-Net, state-dict compatible with ermongroup/ddim's `Model` (without `module.`).

Source: ermongroup/ddim models/diffusion.py@5e85a21.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipdiff.device.recompute import through
from ipdiff.nets.dropout import Dropout
from ipdiff.nets.layers import GroupNorm, UNet, Upsample, attention, conv3x3, silu, sinusoids, without_autocast
from ipdiff.spec import DDPMNetwork

EPS = 1e-6
"""Of every group norm in this code base."""


class ResBlock(nn.Module):
    """Two normalised convolutions with the time embedding added in between, plus a shortcut."""

    def __init__(self, channels: int, out_channels: int, net: DDPMNetwork) -> None:
        """Map `channels` to `out_channels`."""
        super().__init__()
        self.norm1 = GroupNorm(net.norm_groups, channels, EPS)
        self.conv1 = conv3x3(channels, out_channels)
        # The network applies this for all blocks at once (UNet.project); here it only has its name.
        self.temb_proj = nn.Linear(4 * net.model_channels, out_channels)
        self.norm2 = GroupNorm(net.norm_groups, out_channels, EPS)
        self.dropout = Dropout(net.dropout)
        self.conv2 = conv3x3(out_channels, out_channels)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)
        self.shortcut = channels != out_channels

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map x [N,C,H,W] and the projected embedding [N,out,1,1] to [N,out,H,W]."""
        h = through(self.conv1, self.norm1.activated, x)
        drop = self.dropout.as_now()
        h = h + emb.to(h.dtype)
        h = through(self.conv2, lambda h: drop(self.norm2.activated(h)), h, again=self.dropout.repeats)
        return h.add_(self.nin_shortcut(x) if self.shortcut else x)


class AttentionBlock(nn.Module):
    """Single-head self-attention over all pixels, plus the input."""

    def __init__(self, channels: int, net: DDPMNetwork) -> None:
        """Attend within `channels` channels."""
        super().__init__()
        self.norm = GroupNorm(net.norm_groups, channels, EPS)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N,C,H,W] to the same shape."""
        q, k, v = through(lambda h: [conv(h).unsqueeze(1) for conv in (self.q, self.k, self.v)], self.norm, x)
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
    """The residual blocks of one image size, each with or without attention, and a way to the next size."""

    downsample: Downsample  # in the encoder, but for its last level
    upsample: Upsample  # in the decoder, but for its last

    def __init__(self, widths: Sequence[int], out_channels: int, attends: bool, net: DDPMNetwork) -> None:
        """One block for each input width in `widths`, all with `out_channels` outputs."""
        super().__init__()
        self.block = nn.ModuleList([ResBlock(width, out_channels, net) for width in widths])
        self.attn = nn.ModuleList([AttentionBlock(out_channels, net) for _ in widths if attends])

    def run(self, index: int, x: Tensor, emb: Tensor) -> Tensor:
        """Apply block `index` and its attention to x [N,C,H,W] with the projected embedding [N,out,1,1]."""
        h = self.block[index](x, emb)
        return self.attn[index](h) if len(self.attn) else h


class Middle(nn.Module):
    """A residual block, attention, a residual block."""

    def __init__(self, channels: int, net: DDPMNetwork) -> None:
        """Keep `channels` channels."""
        super().__init__()
        self.block_1 = ResBlock(channels, channels, net)
        self.attn_1 = AttentionBlock(channels, net)
        self.block_2 = ResBlock(channels, channels, net)

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
        **options: Any,
    ) -> None:
        """Build the network with PyTorch's default initialisation; nothing starts at zero.

        Args:
            image_size: height and width in pixels.
            model_channels: base width; even.
            out_channels: of the prediction.
            num_res_blocks: residual blocks a level.
            attention_resolutions: image sizes (not factors) whose blocks carry attention.
            channel_mult: width of each level as a multiple of the base.
            in_channels: channels of the image.
            options: the other fields of `ipdiff.spec.DDPMNetwork`, with its defaults: dropout, norm_groups.

        Raises:
            ValueError: an architecture that is none for images of this size.
        """
        super().__init__()
        network = DDPMNetwork(
            model_channels, list(channel_mult), num_res_blocks, list(attention_resolutions), **options
        )
        network.check(image_size)
        self.model_channels, attends, widths = network.model_channels, network.attends(image_size), network.widths
        self.temb = TimeMLP(self.model_channels, 4 * self.model_channels)
        self.conv_in = conv3x3(in_channels, self.model_channels)
        self.down = _encoder(network, attends)
        self.mid = Middle(widths[-1], network)
        self.up = _decoder(network, attends)
        self.norm_out = GroupNorm(network.norm_groups, widths[0], EPS)
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
        for level in cast(Iterable[Level], self.down):
            for index in range(len(level.block)):
                skips.append(level.run(index, skips[-1], next(embs)))
            if level is not self.down[-1]:
                skips.append(level.downsample(skips[-1]))
        h = self.mid(skips[-1], embs)
        for level in cast(Iterable[Level], reversed(self.up)):
            for index in range(len(level.block)):
                h = level.run(index, torch.cat([h, skips.pop()], dim=1), next(embs))
            if level is not self.up[0]:
                h = level.upsample(h)
        with without_autocast(x):
            return through(self.conv_out, self.norm_out.activated, h.to(x.dtype))


def _encoder(net: DDPMNetwork, attends: Sequence[bool]) -> nn.ModuleList:
    """The levels from the largest image to the smallest."""
    levels: list[Level] = []
    before = net.model_channels
    for width, attend in zip(net.widths, attends, strict=True):
        levels.append(Level([before] + [width] * (net.num_res_blocks - 1), width, attend, net))
        before = width
        if len(levels) < len(attends):
            levels[-1].downsample = Downsample(width)
    return nn.ModuleList(levels)


def _decoder(net: DDPMNetwork, attends: Sequence[bool]) -> nn.ModuleList:
    """The encoder's levels mirrored, in its numbering: they run from the last to the first.

    The first block of a level takes the output of the smaller level; the last one's skip connection is the
    image that entered the level in the encoder.
    """
    levels: list[Level] = []
    widths = [net.model_channels, *net.widths, net.widths[-1]]
    for level, attend in enumerate(attends):
        before, width, smaller = widths[level : level + 3]
        inputs = [smaller] + [width] * net.num_res_blocks
        skips = [width] * net.num_res_blocks + [before]
        levels.append(Level([a + b for a, b in zip(inputs, skips, strict=True)], width, attend, net))
        if level:
            levels[-1].upsample = Upsample(width)
    return nn.ModuleList(levels)
