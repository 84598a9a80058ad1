"""The GPU's kernels without a GPU: run by Triton's interpreter, and compiled for an H100 in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from unit.tiny import ADM, IMAGES, advance, change

from ipdiff import rng
from ipdiff.device import kernels
from ipdiff.device.streams import KernelDraws
from ipdiff.nets import layers
from ipdiff.nets.adm import ADMUNet
from ipdiff.nets.initial import initialise
from ipdiff.rng import Purpose
from ipdiff.spec import ADMNetwork
from ipdiff.training.device_feeder import DeviceFeeder
from ipdiff.training.run import Run

pytestmark = [
    pytest.mark.skipif(not kernels.available(), reason="triton is not installed"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the kernels themselves here"),
    pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning"),  # 1 / (1 + inf) is meant
]

DRAWS = KernelDraws(torch.device("cpu"))


@pytest.mark.parametrize("seed", [0, 1, 2**31 + 5, 2**63 - 1, 2**63 + 11, 2**64 - 1])
@pytest.mark.parametrize(("index", "step", "lane"), [(range(3), 0, 0), ([2**62, 5], 2**63 + 3, 2), ([9], 12, 35)])
def test_the_kernel_draws_from_numpy_s_words(seed, index, step, lane):
    for shape in ((1,), (2, 2), (30,)):
        found = DRAWS.normals(seed, Purpose.XI, index, shape, step=step)
        assert np.array_equal(found.numpy(), rng.normals(seed, Purpose.XI, index, shape, step=step))
        for threshold in (1, 19661, 32768, 65535):
            mask = DRAWS.keep_mask(seed, index, shape, threshold, step=step, lane=lane)
            assert np.array_equal(mask.numpy(), rng.keep_mask(seed, index, shape, threshold, step=step, lane=lane))


def test_a_seed_of_more_bits_is_refused():
    with pytest.raises(ValueError, match="use 0 <= seed"):
        DRAWS.normals(-1, Purpose.EPS, range(2), (4,))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 5, 5), (1,)])
def test_the_kernel_s_normals_have_numpy_s_bits(shape):
    found = DRAWS.normals(5, Purpose.EPS, torch.arange(40, 52), shape, step=torch.tensor([3]))
    assert np.array_equal(found.numpy(), rng.normals(5, Purpose.EPS, range(40, 52), shape, step=3))


@pytest.mark.parametrize(("shape", "lane"), [((4, 4, 8), 0), ((3, 3, 5), 7)])
def test_the_kernel_s_masks_are_numpy_s(shape, lane):
    found = DRAWS.keep_mask(1, range(6), shape, 19661, step=4, lane=lane)
    assert found.dtype == torch.bool
    assert np.array_equal(found.numpy(), rng.keep_mask(1, range(6), shape, 19661, step=4, lane=lane))


def reference(x: Tensor, groups: int, weight, bias, scale, shift, silu: bool) -> Tensor:
    h = F.group_norm(x, groups, weight, bias, 1e-5)
    h = h if scale is None else h * (1 + scale) + shift
    return F.silu(h) if silu else h


def inputs(shape: tuple[int, ...], rows: int | None, dtype: torch.dtype, mean: float) -> list[Tensor | None]:
    """An image in channels_last, weight, bias, and scale and shift cut from a wider table of `rows` rows."""
    generator = torch.Generator().manual_seed(0)
    channels = shape[1]
    x = (2 * torch.randn(shape, generator=generator) + mean).to(dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, channels, generator=generator).unbind()
    if rows is None:
        return [x, weight, bias, None, None]
    table = torch.randn(rows, 2 * channels + 7, generator=generator)[:, :, None, None]
    return [x, weight, bias, table[:, :channels], table[:, channels : 2 * channels]]


NORMS = [
    ((1, 8, 72, 72), 4),  # larger splits
    ((3, 128, 8, 8), 32),
    ((2, 192, 5, 7), 32),
    ((1, 384, 4, 4), 32),
    ((1, 576, 4, 3), 32),
    ((1, 768, 2, 3), 32),
    ((1, 6, 17, 17), 2),  # 289 pixels: two splits, the second of another length
    ((2, 3, 19, 31), 3),  # one channel a group, three splits
    ((2, 15, 9, 2), 3),
    ((1, 8, 20, 20), 1),
    ((35, 24, 2, 2), 8),  # more images than a tile
    ((2, 64, 1, 1), 4),
]


@pytest.mark.parametrize(("shape", "groups"), NORMS)
@pytest.mark.parametrize(
    ("rows", "silu", "dtype", "mean", "bound"),
    [
        ("all", True, torch.float32, 1.0, 1e-5),
        (None, False, torch.float32, 30.0, 1e-4),
        ("one", True, torch.bfloat16, 1.0, 1e-2),
        ("all", True, torch.float16, 1.0, 1e-3),
    ],
)
def test_the_norm_and_all_its_gradients(shape, groups, rows, silu, dtype, mean, bound):
    from ipdiff.device.kernels.norm import group_norm

    parts = inputs(shape, {"all": shape[0], "one": 1, None: None}[rows], dtype, mean)
    single = [None if part is None else part.detach().requires_grad_() for part in parts]
    double = [None if part is None else part.detach().double().requires_grad_() for part in parts]
    x, weight, bias, scale, shift = single
    y = group_norm(x, groups, weight, bias, 1e-5, scale=scale, shift=shift, silu=silu)
    exact = reference(double[0], groups, *double[1:], silu=silu)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    dy = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    y.backward(dy)
    exact.backward(dy.double())

    def error(found: Tensor, expected: Tensor) -> float:
        return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-3))

    assert error(y.detach(), exact.detach()) < bound
    for found, expected in zip(single, double, strict=True):
        if found is not None and expected is not None:
            assert found.grad.dtype == found.dtype
            assert found.grad.shape == found.shape
            assert error(found.grad, expected.grad) < bound


def test_the_norm_is_differentiable_once_only():
    from ipdiff.device.kernels.norm import group_norm

    x, weight, bias, *_ = inputs((1, 4, 2, 2), None, torch.float32, 0.0)
    y = group_norm(x.requires_grad_(), 2, weight, bias, 1e-5, silu=True)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_the_norm_in_inference_mode_takes_one_row_for_all_images():
    from ipdiff.device.kernels.norm import group_norm

    x, weight, bias, scale, shift = inputs((3, 8, 4, 4), 1, torch.float32, 0.0)
    weight.requires_grad_()
    with torch.inference_mode():
        found = group_norm(x, 4, weight, bias, 1e-5, scale=scale, shift=shift, silu=True)
    torch.testing.assert_close(found, reference(x, 4, weight, bias, scale, shift, True).detach(), rtol=1e-5, atol=1e-5)


def test_kernels_can_be_switched_off(monkeypatch):
    kernels.available.cache_clear()
    monkeypatch.setenv(kernels.SWITCH, "0")
    try:
        assert not kernels.available()
    finally:
        kernels.available.cache_clear()


def test_a_network_through_the_kernels(monkeypatch):
    """The whole ADM network with every norm in the kernels has the gradients it has without them."""
    net = ADMUNet(8, 16, 6, 1, (4,), (1, 2), num_head_channels=8, norm_groups=4).to(memory_format=torch.channels_last)
    initialise(net, lambda index, count: np.random.default_rng(index).random(count))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    x = torch.randn(2, 3, 8, 8, generator=generator).to(memory_format=torch.channels_last)
    found, taken = {}, []

    def takes(input: Tensor) -> bool:
        taken.append(input.is_contiguous(memory_format=torch.channels_last))
        return taken[-1]

    for through in (False, True):
        if through:
            monkeypatch.setattr("ipdiff.nets.layers._takes_kernels", takes)
        net.zero_grad()
        net(x, torch.tensor([3, 700])).square().mean().backward()
        found[through] = {name: p.grad.clone() for name, p in net.named_parameters()}
    assert len(taken) > 15
    assert all(taken)
    for name, gradient in found[True].items():
        torch.testing.assert_close(gradient, found[False][name], rtol=1e-3, atol=1e-6, msg=name)


def test_updates_through_all_kernels(monkeypatch):
    """Training as on a GPU, but for the capture: the program over fixed tensors, its draws and norms by the kernels."""
    spec = change(
        ADM,
        network=ADMNetwork(64, [1, 2], 1, [2], num_head_channels=16, dropout=0.1, norm_groups=16),
        learn_sigma=True,
        gamma=0.1,
        micro_batch=None,
        timesteps="loss-second-moment",
    )
    reference = advance(Run(spec, IMAGES), 2)
    run = Run(spec, IMAGES)
    run.draws = DRAWS
    feeder = DeviceFeeder(run)
    monkeypatch.setattr("ipdiff.nets.layers._takes_kernels", lambda input: True)
    for _ in range(2):
        feeder.advance()
    found, expected = feeder.settle().state(), reference.state()
    feeder.close()
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    for name in run.names:
        np.testing.assert_allclose(found[f"ema.{name}"], expected[f"ema.{name}"], rtol=0, atol=5e-4, err_msg=name)
        moment = f"optimizer.exp_avg.{name}"
        np.testing.assert_allclose(found[moment], expected[moment], rtol=1e-2, atol=1e-5, err_msg=name)


def test_kernels_are_for_gpus_only():
    x = torch.zeros(1, 4, 2, 2).to(memory_format=torch.channels_last)
    assert not layers._takes_kernels(x)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ipdiff.device.kernels import norm, philox

def compiled(kernel, options=None, **known):
    signature, constants = {}, {}
    for name in kernel.arg_names:
        value = known.get(name, "*fp32")
        signature[name] = value if isinstance(value, str) else "constexpr"
        if not isinstance(value, str):
            constants[name] = value
    source = ASTSource(kernel, signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options or {})

whole = dict.fromkeys(("purpose", "lane", "threshold", "blocks", "total"), "i32")
for mask, dtype in ((False, "*fp32"), (True, "*i32")):
    for seed in ("i32", "i64", "u64"):
        found = compiled(philox._fill, {"enable_fp_fusion": False}, out=dtype, index="*i64", step="*i64", seed=seed,
                         MASK=mask, BLOCK=philox.BLOCK, **whole)
        assert "fma.rn.f64" not in found.asm["ptx"]
for channels, groups, one in ((128, 32, False), (384, 32, False), (15, 3, True)):
    tiles = norm._Tiles(2, 1024, channels, groups)
    for affine in (True, False):
        known = dict.fromkeys(("x", "y", "dy", "dx"), "*bf16")
        known |= dict.fromkeys(("pixels", "splits", "scale_row", "shift_row", "images"), 1 if one else "i32")
        known |= dict(eps="fp32", C=channels, G=groups, SPLIT=tiles.rows_a_split, CHANNELS=tiles.width, AFFINE=affine,
                      GROUPS=tiles.groups_a_tile, D2=tiles.depth, BATCH=norm.BATCH, SILU=affine)
        compiled(norm._statistics, ROWS=tiles.group_rows, **known)
        for kernel in (norm._apply, norm._partial, norm._fold, norm._input_gradient, norm._over_images):
            compiled(kernel, ROWS=tiles.rows, **known)
print("all compiled")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler is for Linux")
def test_all_kernels_compile_for_an_h100(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.stdout == "all compiled\n", done.stderr[-2000:]
