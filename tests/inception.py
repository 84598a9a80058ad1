"""A network with the structure and the names of inception-2015-12-05.pt, narrow, with random weights.

The published file cannot be shipped. `python tests/inception.py PATH [SEED [WIDTH]]`, called in the project's root,
writes the same bytes every time (with one version of torch); the study `paper-tiny` uses it. At `width` 1 the sizes
are those of the published file too.
"""

from __future__ import annotations

import io
import math
import os
import sys
import warnings
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 1 / 32
"""Share of the published network's channels: small enough for tests, and 7 channels remain where sFID looks."""


class Unit(nn.Module):
    """Convolution without bias, batch norm without gain, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int], stride: int = 1, same: bool = True) -> None:
        super().__init__()
        self.stride = stride
        self.padding = [side // 2 if same else 0 for side in size]
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *size))
        self.beta = nn.Parameter(torch.empty(outputs))
        self.mean = nn.Parameter(torch.empty(outputs))
        self.var = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, stride=self.stride, padding=self.padding)
        x = F.batch_norm(x, running_mean=self.mean, running_var=self.var, bias=self.beta, eps=1e-3)
        return F.relu(x)


class Branches(nn.Module):
    """Four branches of one input, their maps joined."""

    def __init__(self, conv: nn.Module, tower: nn.Module, tower_1: nn.Module, tower_2: nn.Module) -> None:
        super().__init__()
        self.conv, self.tower, self.tower_1, self.tower_2 = conv, tower, tower_1, tower_2

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.tower(x), self.tower_1(x), self.tower_2(x)], dim=1)


class Halving(nn.Module):
    """Three branches that halve the map; the second is a tower, the third a maximum."""

    def __init__(self, first: str, conv: nn.Module, tower: nn.Module) -> None:
        super().__init__()
        self.add_module(first, conv)
        self.add_module("tower" if first == "conv" else "tower_1", tower)
        self.pool = nn.MaxPool2d(3, stride=2)


class HalvingB(Halving):
    """`mixed_3`."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.tower(x), self.pool(x)], dim=1)


class HalvingD(Halving):
    """`mixed_8`."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.tower(x), self.tower_1(x), self.pool(x)], dim=1)


class Wide(nn.Module):
    """`mixed_9` and `mixed_10`: towers that end in two maps each."""

    def __init__(self, inputs: int, narrow, pool: nn.Module) -> None:
        super().__init__()
        middle = narrow(384)
        self.conv = Unit(inputs, narrow(320), (1, 1))
        self.tower_conv = Unit(inputs, middle, (1, 1))
        self.tower_mixed_conv = Unit(middle, middle, (1, 3))
        self.tower_mixed_conv_1 = Unit(middle, middle, (3, 1))
        self.tower_1_conv = Unit(inputs, narrow(448), (1, 1))
        self.tower_1_conv_1 = Unit(narrow(448), middle, (3, 3))
        self.tower_1_mixed_conv = Unit(middle, middle, (1, 3))
        self.tower_1_mixed_conv_1 = Unit(middle, middle, (3, 1))
        self.tower_2_pool = pool
        self.tower_2_conv = Unit(inputs, narrow(192), (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        a = self.tower_conv(x)
        b = self.tower_1_conv_1(self.tower_1_conv(x))
        first = [self.conv(x), self.tower_mixed_conv(a), self.tower_mixed_conv_1(a)]
        second = [self.tower_1_mixed_conv(b), self.tower_1_mixed_conv_1(b), self.tower_2_conv(self.tower_2_pool(x))]
        return torch.cat(first + second, dim=1)


def average() -> nn.Module:
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


def chain(*parts: nn.Module) -> nn.Sequential:
    """Units in a row: conv, conv_1, ... (a pool before them is `pool`)."""
    named: OrderedDict[str, nn.Module] = OrderedDict()
    for part in parts:
        convs = sum(name.startswith("conv") for name in named)
        named["pool" if not isinstance(part, Unit) else f"conv_{convs}" if convs else "conv"] = part
    return nn.Sequential(named)


class Network(nn.Module):
    """The whole: resize, scale, layers, and a linear layer for the classes."""

    def __init__(self, width: float = WIDTH, classes: int = 1008) -> None:
        super().__init__()

        def narrow(channels: int) -> int:
            return max(1, round(channels * width))

        def unit(inputs: int, outputs: int, *size: int, stride: int = 1, same: bool = True) -> Unit:
            return Unit(inputs, narrow(outputs), (size[0], size[-1]), stride, same)

        def block_a(inputs: int, last: int) -> Branches:
            return Branches(
                unit(inputs, 64, 1),
                chain(unit(inputs, 48, 1), unit(narrow(48), 64, 5)),
                chain(unit(inputs, 64, 1), unit(narrow(64), 96, 3), unit(narrow(96), 96, 3)),
                chain(average(), unit(inputs, last, 1)),
            )

        def block_c(inputs: int, middle: int) -> Branches:
            m = narrow(middle)
            return Branches(
                Unit(inputs, max(7, narrow(192)), (1, 1)),
                chain(unit(inputs, middle, 1), unit(m, middle, 1, 7), unit(m, 192, 7, 1)),
                chain(
                    unit(inputs, middle, 1),
                    unit(m, middle, 7, 1),
                    unit(m, middle, 1, 7),
                    unit(m, middle, 7, 1),
                    unit(m, 192, 1, 7),
                ),
                chain(average(), unit(inputs, 192, 1)),
            )

        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv"] = unit(3, 32, 3, stride=2, same=False)
        layers["conv_1"] = unit(narrow(32), 32, 3, same=False)
        layers["conv_2"] = unit(narrow(32), 64, 3)
        layers["pool0"] = nn.MaxPool2d(3, stride=2)
        layers["conv_3"] = unit(narrow(64), 80, 1)
        layers["conv_4"] = unit(narrow(80), 192, 3, same=False)
        layers["pool1"] = nn.MaxPool2d(3, stride=2)
        size = narrow(192)
        for name, last in (("mixed", 32), ("mixed_1", 64), ("mixed_2", 64)):
            layers[name] = block_a(size, last)
            size = 2 * narrow(64) + narrow(96) + narrow(last)
        layers["mixed_3"] = HalvingB(
            "conv",
            unit(size, 384, 3, stride=2, same=False),
            chain(unit(size, 64, 1), unit(narrow(64), 96, 3), unit(narrow(96), 96, 3, stride=2, same=False)),
        )
        size += narrow(384) + narrow(96)
        for number, middle in enumerate((128, 160, 160, 192), 4):
            layers[f"mixed_{number}"] = block_c(size, middle)
            size = max(7, narrow(192)) + 3 * narrow(192)
        layers["mixed_8"] = HalvingD(
            "tower",
            chain(unit(size, 192, 1), unit(narrow(192), 320, 3, stride=2, same=False)),
            chain(
                unit(size, 192, 1),
                unit(narrow(192), 192, 1, 7),
                unit(narrow(192), 192, 7, 1),
                unit(narrow(192), 192, 3, stride=2, same=False),
            ),
        )
        size += narrow(320) + narrow(192)
        layers["mixed_9"] = Wide(size, narrow, average())
        size = narrow(320) + 4 * narrow(384) + narrow(192)
        layers["mixed_10"] = Wide(size, narrow, nn.MaxPool2d(3, stride=1, padding=1))
        layers["pool2"] = nn.AvgPool2d(8)
        self.layers = nn.Sequential(layers)
        self.output = nn.Linear(size, classes)

    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        """Class probabilities [n, classes], or pooled features [n, F]: img [n, 3, H, W] in [0, 255]."""
        n, channels, height, width = img.shape
        x = img.to(torch.float16 if use_fp16 else torch.float32)
        theta = torch.eye(2, 3, device=x.device)
        theta[0, 2] += theta[0, 0] / width - theta[0, 0] / 299
        theta[1, 2] += theta[1, 1] / height - theta[1, 1] / 299
        grid = F.affine_grid(
            theta.to(x.dtype).unsqueeze(0).repeat([n, 1, 1]), [n, channels, 299, 299], align_corners=False
        )
        x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
        x = self.layers((x - 128) / 128).flatten(1).to(torch.float32)
        if return_features:
            return x
        logits = F.linear(x, self.output.weight) if no_output_bias else self.output(x)
        return F.softmax(logits, dim=1)


def build(seed: int, width: float = WIDTH, classes: int = 1008) -> Network:
    """A network with weights that keep activations near 1 in size, and half of the units alive."""
    network = Network(width, classes).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                draw *= math.sqrt(2 / parameter[0].numel())
            elif name.endswith("var"):
                draw = 0.5 + draw.abs()
            else:
                draw *= 0.2
            parameter.copy_(draw)
    return network.requires_grad_(False)


def write_inception(path: Path, seed: int = 0, width: float = WIDTH, classes: int = 1008) -> Path:
    """Write such a network as a TorchScript file.

    Args:
        path: the file; its directory is made.
        seed: of the weights.
        width: share of the published network's channels.
        classes: outputs of the linear layer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch prefers torch.export; the format is TorchScript
        content = io.BytesIO()  # a file's own name would be among the bytes
        torch.jit.save(torch.jit.script(build(seed, width, classes)), content)
    path.write_bytes(content.getvalue())
    return path


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # TorchScript writes some names in the order of a set
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
    given = sys.argv[2:]
    write_inception(Path(sys.argv[1]), int(given[0]) if given else 0, float(given[1]) if given[1:] else WIDTH)
