"""The networks against numbers measured with the published code (tests/parity/golden, float32, CPU).

Weights and inputs are made again from the rule below, so no reference code or checkpoint is needed.
`tiny_ddim.npz` was measured with ermongroup/ddim models/diffusion.py@5e85a21: 32 channels, mult 1,2,3,
2 res blocks, attention at 16 and 8, same weights and inputs.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ipdiff.nets.adm import ADMUNet
from ipdiff.nets.ddpm import DDPMUNet
from ipdiff.spec import ADMNetwork, DDPMNetwork

GOLDEN = Path(__file__).parent / "golden"
CHANNELS_LAST = torch.channels_last

UPDOWN = ADMNetwork(32, [1, 2, 2], 2, [16, 8], num_head_channels=16)
LINEAR_NOSS = ADMNetwork(
    32, [1, 2], 1, [16], num_heads=2, use_scale_shift_norm=False, resblock_updown=False, new_attention_order=False
)
DDIM = DDPMNetwork(32, [1, 2, 3], 2, [16, 8])
CASES = [
    ("tiny_updown", partial(ADMUNet, UPDOWN, 32, out_channels=6)),
    ("tiny_linear_noss", partial(ADMUNet, LINEAR_NOSS, 32, out_channels=3)),
    ("tiny_ddim", partial(DDPMUNet, DDIM, 32)),
]


def golden_weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weights of the golden files, a function of the tensor's name and shape."""
    a = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) >= 2:
        return a / np.float32(np.sqrt(np.prod(shape[1:])))
    tenth = np.float32(0.1) * a
    return 1 + tenth if name.endswith("weight") else tenth


def golden_net(make: Callable[[], nn.Module]) -> nn.Module:
    """The network of a golden file, in evaluation mode."""
    net = make()
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    weights = {name: torch.from_numpy(golden_weights(name, shape)) for name, shape in shapes.items()}
    net.load_state_dict(weights, strict=True)
    return net.eval()


@pytest.mark.parametrize(("name", "make"), CASES)
def test_names_and_shapes_are_the_reference_s_in_its_order(name: str, make: Any) -> None:
    with np.load(GOLDEN / f"{name}.npz") as golden, torch.device("meta"):
        net = make()
        assert [f"{k}:{tuple(v.shape)}" for k, v in net.state_dict().items()] == list(golden["keys"])
        assert sum(p.numel() for p in net.parameters()) == golden["params"]


@pytest.mark.parametrize(("name", "make"), CASES)
def test_outputs(name: str, make: Any) -> None:
    net = golden_net(make)
    with np.load(GOLDEN / f"{name}.npz") as golden, torch.no_grad():
        x, t, want = (torch.from_numpy(golden[key]) for key in ("x", "t", "y"))
        outputs = {
            "plain": net(x, t.float()),
            "time table": net.at_timesteps([803, 5, 17])(x, t),  # pyright: ignore[reportCallIssue]
            "channels_last": net.to(memory_format=CHANNELS_LAST)(x.to(memory_format=CHANNELS_LAST), t),  # pyright: ignore[reportCallIssue]
        }
    for how, got in outputs.items():
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0, msg=how)


def test_inputs_are_those_of_the_golden_rule() -> None:
    with np.load(GOLDEN / "tiny_updown.npz") as golden:
        x = np.random.default_rng(7).standard_normal((2, 3, 32, 32)).astype(np.float32)
        np.testing.assert_array_equal(golden["x"], x)


def published() -> dict[str, tuple[nn.Module, int, int]]:
    """Every published network: (network on the meta device, parameters, tensors)."""

    def adm(image_size: int, *architecture: Any, **options: Any) -> nn.Module:
        return ADMUNet(ADMNetwork(*architecture, **options), image_size, out_channels=6)

    small = (32, 128, [1, 2, 2, 2], 3, [16, 8])
    with torch.device("meta"):
        return {
            "cifar10": (adm(*small, num_head_channels=32), 57_094_662, 494),
            "no scale-shift": (adm(*small, num_head_channels=32, use_scale_shift_norm=False), 52_892_166, 494),
            "64px": (adm(64, 192, [1, 2, 3, 4], 3, [32, 16, 8], num_head_channels=64), 295_136_454, 540),
            "128px": (adm(128, 256, [1, 1, 2, 3, 4], 3, [32, 16, 8], num_head_channels=64), 542_811_398, 638),
            "ddim cifar10": (DDPMUNet(DDPMNetwork(128, [1, 2, 2, 2], 2, [16]), 32), 35_746_307, 328),
        }


def test_published_sizes() -> None:
    for name, (net, parameters, tensors) in published().items():
        found = (sum(p.numel() for p in net.parameters()), len(net.state_dict()), len(list(net.buffers())))
        assert found == (parameters, tensors, 0), name


def test_half_precision_partition_of_the_published_nets() -> None:
    """Sizes of the two flat master tensors of official fp16 optimiser states: vectors, matrices."""
    nets = published()
    for name, sizes in {"cifar10": (100_742, 56_993_920), "64px": (245_766, 294_890_688)}.items():
        flat = [sum(p.numel() for p in nets[name][0].parameters() if (p.ndim <= 1) is v) for v in (True, False)]
        assert tuple(flat) == sizes


def prefixes(net: nn.Module, suffix: str) -> list[str]:
    """Names of the state dict that end in `suffix`, without it."""
    return [name.removesuffix(suffix) for name in net.state_dict() if name.endswith(suffix)]


def test_block_map_of_the_cifar10_network() -> None:
    """Positions from the published network: where attention sits, which blocks resample, input widths."""
    net = published()["cifar10"][0]
    attention = [f"input_blocks.{i}.1" for i in (5, 6, 7, 9, 10, 11)] + ["middle_block.1"]
    attention += [f"output_blocks.{i}.1" for i in (4, 5, 6, 7, 8, 9, 10, 11)]
    assert prefixes(net, ".qkv.weight") == attention
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    ups = [name for name in prefixes(net, ".in_layers.2.weight") if name[-2:] in (".1", ".2") and "out" in name]
    assert ups == ["output_blocks.3.1", "output_blocks.7.2", "output_blocks.11.2"]
    widths = [shapes[f"output_blocks.{i}.0.in_layers.0.weight"][0] for i in range(16)]
    assert widths == [512] * 11 + [384, 384, 256, 256, 256]
    assert shapes["input_blocks.5.1.qkv.weight"] == (768, 256, 1)
    assert shapes["input_blocks.5.0.emb_layers.1.weight"] == (512, 512)
    assert shapes["out.2.weight"] == (6, 128, 3, 3)


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("64px", "1536 1536 1536 1344 1344 1152 1152 960 960 768 768 576 576 384 384 384"),
        (
            "128px",
            "2048 2048 2048 1792 1792 1536 1536 1280 1280 1024 1024 768 768 512 512 512 512 512 512 512",
        ),
    ],
)
def test_decoder_widths_of_the_large_networks(name: str, widths: str) -> None:
    shapes = {key: tuple(value.shape) for key, value in published()[name][0].state_dict().items()}
    found = [shapes[f"output_blocks.{i}.0.in_layers.0.weight"][0] for i in range(len(widths.split()))]
    assert found == [int(width) for width in widths.split()]


def test_names_of_the_ddim_network() -> None:
    net = published()["ddim cifar10"][0]
    assert prefixes(net, ".nin_shortcut.weight") == ["down.1.block.0"] + [
        f"up.{level}.block.{index}" for level in range(4) for index in range(3)
    ]
    attention = ["down.1.attn.0", "down.1.attn.1", "mid.attn_1", "up.1.attn.0", "up.1.attn.1", "up.1.attn.2"]
    assert prefixes(net, ".q.weight") == attention
    assert prefixes(net, ".downsample.conv.weight") == ["down.0", "down.1", "down.2"]
    assert prefixes(net, ".upsample.conv.weight") == ["up.1", "up.2", "up.3"]
    assert {"temb.dense.0.weight", "temb.dense.1.bias", "norm_out.weight", "conv_out.bias"} <= set(net.state_dict())
