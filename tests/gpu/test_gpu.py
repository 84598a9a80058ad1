"""What only a GPU can show: the same integers, gradients of the compiled network, precisions.

`pytest tests/gpu` where CUDA is. Until it has passed there, `compute.compile` stays off: inductor once made wrong
weight gradients of a channels_last group norm with 4 channels a group in bfloat16 (pytorch issue 140913), which is the
largest level of the paper's CIFAR-10 network.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from ipdiff import rng
from ipdiff.bench import measure
from ipdiff.draws import DeviceDraws
from ipdiff.lowering import low_precision
from ipdiff.nets import ADMUNet, Dropout, dropout_masks, initialise
from ipdiff.rng import Purpose
from ipdiff.spec import ADMNetwork, Compute, Diffusion, Objective, RunSpec, Training
from ipdiff.train import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")

GPU = torch.device("cuda")
SPEC = RunSpec(
    family="adm",
    network=ADMNetwork(128, [1, 2], 1, [16], num_head_channels=32, dropout=0.1),
    diffusion=Diffusion("cosine", 100, learn_sigma=True),
    training=Training(8, 1e-4, timesteps="loss-second-moment"),
    objective=Objective(0.1, "eps", 0.0, 0.0),
    compute=Compute("cuda"),
    image_size=32,
    channels=3,
    seed=0,
)
IMAGES = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)


def on(**compute: object) -> RunSpec:
    return dataclasses.replace(SPEC, compute=Compute("cuda", **compute))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("compiled", [False, True])
def test_the_device_draws_the_same_integers(compiled: bool) -> None:
    draws = DeviceDraws(GPU, compiled=compiled)
    for shape, lane in (((32, 32, 128), 0), ((5, 5, 3), 9)):
        expected = rng.keep_mask(2**64 - 1, range(8), shape, 19661, step=2**40, lane=lane)
        found = draws.keep_mask(2**64 - 1, range(8), shape, 19661, step=2**40, lane=lane)
        assert np.array_equal(found.cpu().numpy(), expected)
    normals = draws.normals(3, Purpose.EPS, range(64), (3, 32, 32), step=7).cpu().numpy()
    expected = rng.normals(3, Purpose.EPS, range(64), (3, 32, 32), step=7)
    np.testing.assert_allclose(normals, expected, rtol=0, atol=1e-6)  # tier C: the last bit


def gradients(compiled: bool, precision: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and every weight's gradient of one network and batch."""
    net = ADMUNet(32, 128, 6, 1, (16,), (1, 2), num_head_channels=32, dropout=0.3).to(
        GPU, memory_format=torch.channels_last
    )
    initialise(net, lambda index, count: np.random.default_rng(index).random(count))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    Dropout.keep_out_of_graphs()
    model = low_precision(torch.compile(net) if compiled else net, Compute("cuda", precision=precision))  # pyright: ignore
    x = torch.randn(16, 3, 32, 32, generator=generator).to(GPU, memory_format=torch.channels_last)
    t = (torch.arange(16) * 61).to(GPU)

    def masks(layer: int, shape: torch.Size) -> Tensor:
        return torch.from_numpy(rng.keep_mask(1, range(shape[0]), tuple(shape[1:]), 19661, step=0, lane=layer)).to(GPU)

    with dropout_masks(net.train(), masks):
        loss = model(x, t).square().mean()
        loss.backward()
    return loss.detach(), {name: p.grad.double() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("precision", "bound"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_the_compiled_network_has_the_same_gradients(precision: str, bound: float) -> None:
    exact = gradients(False, "float32")[1]
    for compiled in (False, True):
        found = gradients(compiled, precision)[1]
        assert found.keys() == exact.keys()
        for name, gradient in found.items():
            error = float((gradient - exact[name]).norm() / exact[name].norm().clamp(min=1e-9))
            assert error < bound, (name, compiled, error)


@pytest.mark.parametrize(
    "spec", [on(), on(precision="bfloat16"), on(precision="float16"), on(precision="bfloat16", compile=True)]
)
def test_a_run_trains_near_the_cpu_s_losses(spec: RunSpec) -> None:
    reference = Trainer(dataclasses.replace(SPEC, compute=Compute()), IMAGES)
    expected = [reference.advance() for _ in range(2)]
    trainer = Trainer(spec, IMAGES)
    found = [trainer.advance() for _ in range(2)]
    np.testing.assert_allclose(found, expected, rtol=0.05)


def test_equal_runs_have_equal_bytes() -> None:
    states = []
    for _ in range(2):
        trainer = Trainer(on(precision="bfloat16"), IMAGES)
        for _ in range(3):
            trainer.advance()
        states.append({name: value.tobytes() for name, value in trainer.state().items()})
    assert states[0] == states[1]


def test_speed_is_measured() -> None:
    for row in measure("small", on(precision="bfloat16"), 32, 1.0):
        assert row.speed > 0
        assert row.limit > 0
