"""What only a GPU can show: kernels, the compiled network, captured graphs, precisions, and that nothing waits.

`pytest tests/gpu` where CUDA is. `compute.compile` stays off: on an H200 with torch 2.11 the compiled network misses
the bounds of `test_the_compiled_network_has_the_same_gradients`. Inductor once made wrong weight gradients of a
channels_last group norm with 4 channels a group in bfloat16 (pytorch issue 140913), which is the largest level of the
paper's CIFAR-10 network.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from torch import Tensor
from unit.tiny import advance

from ipdiff import rng
from ipdiff.data.images import to_uint8
from ipdiff.device import kernels, memory, program
from ipdiff.device.program import Program
from ipdiff.device.spec import Compute, Precision
from ipdiff.device.streams import Draws, KernelDraws
from ipdiff.errors import UserError
from ipdiff.nets import costs
from ipdiff.nets.adm import ADMUNet
from ipdiff.nets.dropout import Dropout, dropout_masks
from ipdiff.nets.execution import low_precision
from ipdiff.nets.initial import initialise
from ipdiff.nets.layers import GroupNorm, twice_differentiable
from ipdiff.pipeline import selfcheck
from ipdiff.pipeline.commands.study.bench import measure, normals
from ipdiff.rng import Purpose
from ipdiff.sample_sets.sample import ImageSampler
from ipdiff.sample_sets.spec import Sampler
from ipdiff.spec import ADMNetwork, Diffusion, Objective, Ramp, RunSpec, Training
from ipdiff.training.device_feeder import DeviceFeeder
from ipdiff.training.distributed import _rehearse
from ipdiff.training.host_feeder import HostFeeder
from ipdiff.training.run import Diverged, Run
from ipdiff.training.segment import feeder_for

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"),  # Inductor's own imports, torch 2.11
]

GPU = torch.device("cuda", 0)
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


def test_the_kernels_are_there() -> None:
    assert kernels.available()


@pytest.mark.parametrize("draws", [KernelDraws(GPU), Draws(GPU)])
def test_the_device_has_the_host_s_numbers(draws: Draws) -> None:
    for shape, lane in (((32, 32, 128), 0), ((5, 5, 3), 9)):
        expected = rng.keep_mask(2**64 - 1, range(8), shape, 19661, step=2**40, lane=lane)
        found = draws.keep_mask(2**64 - 1, range(8), shape, 19661, step=2**40, lane=lane)
        assert np.array_equal(found.cpu().numpy(), expected)
    index, step = torch.arange(64, device=GPU), torch.tensor([7], device=GPU)
    found = draws.normals(3, Purpose.EPS, index, (3, 32, 32), step=step).cpu().numpy()
    assert np.array_equal(found, rng.normals(3, Purpose.EPS, range(64), (3, 32, 32), step=7))  # no two are fused


NORMS = [
    ((32, 128, 32, 32), 32),
    ((8, 384, 16, 16), 32),
    ((4, 768, 5, 7), 32),
    ((3, 6, 17, 17), 2),
    ((40, 256, 4, 4), 256),
]


def norm_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """An image, the norm's weight and bias, scale and shift, and a gradient of the result."""
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape, generator=generator).to(GPU, dtype, memory_format=torch.channels_last) for _ in "xy")
    weight, bias = (torch.randn(shape[1], generator=generator).to(GPU) for _ in "wb")
    table = torch.randn((shape[0], 2 * shape[1], 1, 1), generator=generator).to(GPU)
    return [2 * x + 1, weight, bias, *table.chunk(2, dim=1), dy]


def near(found: Tensor, expected: Tensor, bound: float) -> None:
    assert float((found.double() - expected).norm() / expected.norm()) < bound


@pytest.mark.parametrize(("shape", "groups"), NORMS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_the_norm_kernels_have_torch_s_gradients(
    shape: tuple[int, ...], groups: int, dtype: torch.dtype, bound: float
) -> None:
    from ipdiff.device.kernels.norm import group_norm

    *parts, dy = norm_inputs(shape, dtype)
    single = [part.detach().requires_grad_() for part in parts]
    double = [part.detach().double().requires_grad_() for part in parts]

    def by_kernels() -> Tensor:
        x, weight, bias, scale, shift = single
        return group_norm(x, groups, weight, bias, 1e-5, scale=scale, shift=shift, silu=True)

    x, weight, bias, scale, shift = double
    expected = F.silu(F.group_norm(x, groups, weight, bias, 1e-5) * (1 + scale) + shift)
    found = by_kernels()
    near(found.detach(), expected.detach(), bound)
    for one, other in zip(
        torch.autograd.grad(found, single, dy), torch.autograd.grad(expected, double, dy.double()), strict=True
    ):
        near(one, other, bound)
    once, again = (torch.autograd.grad(by_kernels(), single, dy) for _ in range(2))
    for one, other in zip(once, again, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inductor_s_norm_has_the_right_weight_gradient(dtype: torch.dtype) -> None:
    """Pytorch issue 140913: channels_last, 4 channels a group, 32x32."""
    x, weight, bias, scale, shift, dy = norm_inputs((64, 128, 32, 32), dtype)
    norm = GroupNorm(32, 128).to(GPU)
    with torch.no_grad():
        norm.weight.copy_(weight)
        norm.bias.copy_(bias)

    @torch.compile
    def compiled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return norm.activated(x, scale, shift)

    for rows in (64, 1):  # one scale and shift for all images are folded into the norm's weights
        affine = scale[:rows], shift[:rows]
        exact = [part.double().requires_grad_() for part in (weight, bias)]
        h = F.group_norm(x.double(), 32, exact[0], exact[1], 1e-5) * (1 + affine[0].double()) + affine[1].double()
        expected = torch.autograd.grad(F.silu(h), exact, dy.double())
        found = torch.autograd.grad(compiled(x, *affine), [norm.weight, norm.bias], dy)
        for name, one, other in zip(("weight", "bias"), found, expected, strict=True):
            error = float((one.double() - other).norm() / other.norm())
            assert error < (1e-4 if dtype == torch.float32 else 2e-2), (name, rows, error)


def test_second_derivatives_do_without_the_kernels() -> None:
    x = norm_inputs((2, 128, 8, 8), torch.float32)[0].requires_grad_()
    norm = GroupNorm(32, 128).to(GPU)
    with twice_differentiable():
        (gradient,) = torch.autograd.grad(norm.activated(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert torch.isfinite(second).all()


def gradients(compiled: bool, precision: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and every weight's gradient of one network and batch."""
    net = ADMUNet(32, 128, 6, 1, (16,), (1, 2), num_head_channels=32, dropout=0.3).to(GPU)
    net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
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


PRECISIONS = [on(), on(precision="bfloat16"), on(precision="float16"), on(precision="bfloat16", compile=True)]
RAMP = dataclasses.replace(SPEC, objective=Objective(Ramp(0.0, 0.2, until=4), "v", 0.0, 0.0, min_snr=5.0))


def trained(
    spec: RunSpec, updates: int, state: dict[str, np.ndarray] | None = None, micro_batch: int | None = None
) -> DeviceFeeder:
    run = Run(spec, IMAGES)
    if state is not None:
        run.load(state)
    feeder = feeder_for(run, micro_batch=micro_batch)
    assert isinstance(feeder, DeviceFeeder)
    for _ in range(updates):
        feeder.advance()
    return feeder


def frozen(feeder: DeviceFeeder) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in feeder.settle().state().items()}


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Any operation for which the host would wait is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype", UserWarning)  # once a process
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("spec", PRECISIONS)
def test_a_run_trains_near_the_cpu_s_losses(spec: RunSpec) -> None:
    expected = advance(Run(dataclasses.replace(SPEC, compute=Compute()), IMAGES), 2).losses
    np.testing.assert_allclose(trained(spec, 2).settle().losses, expected, rtol=0.05)


@pytest.mark.parametrize("spec", [*PRECISIONS, RAMP])
def test_a_captured_update_is_that_of_the_host(spec: RunSpec) -> None:
    expected = advance(Run(spec, IMAGES), 4).state()
    feeder = trained(spec, 4)
    state = feeder.settle().state()
    assert feeder._program._graph is not None
    assert state.keys() == expected.keys()
    np.testing.assert_allclose(state["loss"], expected["loss"], rtol=1e-2)
    assert np.array_equal(state["timesteps.counts"], expected["timesteps.counts"])
    moments = [name for name in expected if name.startswith("optimizer.exp_avg.")]
    found, right = (np.concatenate([each[name].ravel() for name in moments]) for each in (state, expected))
    assert np.linalg.norm(found - right) < 0.05 * np.linalg.norm(right)  # gradients, as Adam remembers them


@pytest.mark.parametrize("spec", PRECISIONS[:3])
def test_a_graph_changes_no_bit(spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    captured = frozen(trained(spec, 5))
    monkeypatch.setenv(program.SWITCH, "0")
    eager = trained(spec, 5)
    assert eager._program._graph is None
    assert frozen(eager) == captured


@pytest.mark.parametrize("spec", [*PRECISIONS, RAMP])
def test_a_restart_changes_no_bit(spec: RunSpec) -> None:
    straight, first = trained(spec, 6), trained(spec, 3)
    assert frozen(trained(spec, 3, first.settle().state())) == frozen(straight)


def test_equal_runs_have_equal_bytes() -> None:
    assert frozen(trained(on(precision="bfloat16"), 3)) == frozen(trained(on(precision="bfloat16"), 3))


@pytest.mark.parametrize("spec", [*PRECISIONS, RAMP])
def test_no_operation_of_an_update_waits(spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernel by kernel, so that the operation that waits, and could not be captured, is the one that raises."""
    monkeypatch.setenv(program.SWITCH, "0")
    feeder = trained(spec, 3)
    with nothing_waits():
        feeder.advance()


@pytest.mark.parametrize("spec", PRECISIONS)
def test_the_host_never_waits_in_an_update(spec: RunSpec) -> None:
    feeder = trained(spec, 1)
    with nothing_waits():
        for _ in range(5):
            feeder.advance()
    assert np.isfinite(feeder.settle().losses).all()


# Passes of a batch, and memory


def fast(**compute: object) -> RunSpec:
    """A run whose batches may be cut."""
    return dataclasses.replace(on(**compute), training=dataclasses.replace(SPEC.training, reduction="fast"))


CUTS = [fast(), fast(precision="bfloat16"), dataclasses.replace(RAMP, training=fast().training)]


@pytest.mark.parametrize("spec", CUTS)
def test_passes_of_a_captured_update_add_up_to_it(spec: RunSpec) -> None:
    whole = trained(spec, 4, micro_batch=8)
    assert whole._program._graph is not None
    expected = whole.settle().state()
    for micro_batch, sizes in ((4, [4, 4]), (2, [2] * 4), (1, [1] * 8), (3, [2] * 4), (7, [4, 4])):
        feeder = trained(spec, 4, micro_batch=micro_batch)
        assert feeder._program._graph is not None
        assert [len(part) for part in feeder.passes.cut] == sizes
        state = feeder.settle().state()
        np.testing.assert_allclose(state["loss"], expected["loss"], rtol=1e-2)
        assert np.array_equal(state["timesteps.counts"], expected["timesteps.counts"])
        for name in feeder.run.names:  # as from the host: four steps of the learning rate's size at most
            np.testing.assert_allclose(
                state[f"model.{name}"], expected[f"model.{name}"], rtol=0, atol=1e-3, err_msg=name
            )


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_a_first_update_in_passes_has_the_gradient_of_a_whole_one(micro_batch: int) -> None:
    """In float32: Adam's first moment after one update is a tenth of the gradient."""
    expected, found = (
        trained(fast(), 1, micro_batch=size).settle().state() for size in (SPEC.training.batch_size, micro_batch)
    )
    for name in (name for name in expected if name.startswith("optimizer.exp_avg.")):
        scale = np.linalg.norm(expected[name])
        if scale > 1e-6:  # the gradient of attention's k.bias is rounding alone
            assert np.linalg.norm(found[name] - expected[name]) < 1e-3 * scale, name


@pytest.mark.parametrize("spec", CUTS)
@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_a_restart_in_passes_changes_no_bit(spec: RunSpec, micro_batch: int) -> None:
    straight, first = trained(spec, 6, None, micro_batch), trained(spec, 3, None, micro_batch)
    assert frozen(trained(spec, 3, first.settle().state(), micro_batch)) == frozen(straight)


def test_a_run_goes_on_with_another_cut() -> None:
    first = trained(fast(), 3, micro_batch=2).settle().state()
    state = trained(fast(), 3, first, micro_batch=8).settle().state()
    expected = trained(fast(), 6, micro_batch=8).settle().state()
    np.testing.assert_allclose(state["loss"], expected["loss"], rtol=1e-2)
    assert np.array_equal(state["timesteps.counts"], expected["timesteps.counts"])


@pytest.mark.parametrize("spec", CUTS[:2])
def test_no_operation_of_an_update_in_passes_waits(spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    captured = trained(spec, 1, micro_batch=2)
    with nothing_waits():
        for _ in range(5):
            captured.advance()
    monkeypatch.setenv(program.SWITCH, "0")
    eager = trained(spec, 3, micro_batch=2)
    with nothing_waits():
        eager.advance()
    assert np.isfinite(captured.settle().losses).all()


BIG = dataclasses.replace(fast(), training=dataclasses.replace(fast().training, batch_size=256))
MANY = np.random.default_rng(1).integers(0, 256, (512, 32, 32, 3), dtype=np.uint8)


@contextmanager
def only(room: int) -> Iterator[None]:
    """This process gets `room` bytes more than it holds now: beyond, the allocator raises a real error."""
    memory.release()
    total = torch.cuda.mem_get_info(GPU)[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(GPU) + room) / total, GPU)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, GPU)
        memory.release()


def need(images: int) -> int:
    """Bytes that a pass of so many images takes."""
    run = Run(BIG, MANY)
    _rehearse(run, 2)
    return memory.spent(GPU, lambda: _rehearse(run, images))


@pytest.mark.parametrize("captured", [True, False])
def test_a_pass_that_does_not_fit_is_tried_again_smaller(captured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not captured:
        monkeypatch.setenv(program.SWITCH, "0")
    room = need(96) + 2**27  # for the optimiser, and for what a library takes
    with only(room):
        run = Run(BIG, MANY)
        feeder = feeder_for(run, micro_batch=256)
        assert isinstance(feeder, DeviceFeeder)
        assert (feeder._program._graph is not None) == captured
        for _ in range(3):
            feeder.advance()
        assert feeder.passes.largest < 256
        losses = feeder.settle().losses
    torch.cuda.synchronize()
    expected = feeder_for(Run(BIG, MANY), micro_batch=feeder.passes.largest)
    for _ in range(3):
        expected.advance()
    np.testing.assert_allclose(losses, expected.settle().losses, rtol=1e-3)  # the tries have left nothing behind


def test_the_host_s_updates_are_tried_again_smaller_too() -> None:
    room = need(96) + 2**27
    with only(room):
        run = Run(BIG, MANY)
        feeder = HostFeeder(run)
        feeder.advance()
        assert feeder.passes.largest < 256
        assert np.isfinite(run.losses).all()


def test_a_cut_follows_from_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    room = need(64)
    monkeypatch.setattr(memory, "free_bytes", lambda device: room)
    feeder = feeder_for(Run(BIG, MANY))
    assert 16 <= feeder.passes.largest <= 64
    assert 256 // len(feeder.passes.cut) >= feeder.passes.largest - 1
    monkeypatch.undo()
    assert feeder_for(Run(BIG, MANY)).passes.largest == 256  # on any GPU of some GiB


def test_a_fixed_cut_that_does_not_fit_is_one_line_that_says_what_would() -> None:
    exact = dataclasses.replace(BIG, training=dataclasses.replace(BIG.training, reduction="exact"))
    room = need(96) + 2**27
    with only(room):
        run = Run(exact, MANY)
        with pytest.raises(UserError) as caught:
            feeder_for(run)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("the memory of the GPU does not hold a pass of 256 images: CUDA out of memory")
    assert "training.micro_batch" in text
    assert torch.ones(1, device=GPU).item() == 1.0  # and the GPU still answers


def test_images_that_do_not_fit_make_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = on(precision="bfloat16")
    expected = frozen(trained(spec, 8))
    monkeypatch.setattr("ipdiff.data.images.fits", lambda images, device: False)
    feeder = trained(spec, 8)
    assert feeder.run.pictures.resident is None
    assert frozen(feeder) == expected
    with nothing_waits():
        for _ in range(3):
            feeder.advance()
    feeder.close()


def test_what_is_not_finite_stops_the_run_before_it() -> None:
    feeder = trained(on(), 3)
    feeder.settle()
    with torch.no_grad():
        feeder.run.params[-1].fill_(1e30)  # the last bias: the squared error overflows
    before = frozen(feeder)
    for _ in range(4):
        feeder.advance()
    with pytest.raises(Diverged, match="loss is (inf|nan) at step 3 "):
        feeder.settle()
    assert feeder.step == 3
    assert frozen(feeder) == before


def test_a_gradient_penalty_trains() -> None:
    spec = dataclasses.replace(on(precision="bfloat16"), objective=Objective(0.0, "eps", 0.01, 0.0))
    assert type(feeder_for(Run(spec, IMAGES))) is HostFeeder
    assert np.isfinite(advance(Run(spec, IMAGES), 2).losses).all()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EMA weights with a decay so low that they predict something."""
    quick = dataclasses.replace(SPEC, training=dataclasses.replace(SPEC.training, ema_decay=0.1, lr=1e-3))
    path = tmp_path_factory.mktemp("weights") / "ema.safetensors"
    save_file(trained(quick, 20).settle().ema_weights(), path)
    return path


def sampler(weights: Path, name: str, **compute: object) -> ImageSampler:
    spec = on(**compute)
    return ImageSampler(spec, weights, Sampler.parse(name), clip_denoised=True, compute=spec.compute, images=IMAGES)


@pytest.mark.parametrize("name", ["ancestral-10", "ddim0-5", "ddim0.5-5", "unipc-6", "dpmpp2m-5-es1.1", "exposure-6"])
@pytest.mark.parametrize("compute", [{}, {"precision": "bfloat16"}, {"precision": "bfloat16", "compile": True}])
def test_a_captured_chain_draws_what_single_steps_draw(
    name: str, compute: dict[str, object], weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawer = sampler(weights, name, **compute)
    found = [drawer.draw(range(8)), drawer.draw(range(8, 16)), drawer.draw(range(3))]
    with torch.inference_mode():
        x = drawer.walk(range(8, 16))
    assert np.abs(found[1].astype(int) - to_uint8(x)).mean() < (0.1 if not compute else 3)
    assert np.abs(found[2].astype(int) - found[0][:3]).mean() < (0.1 if not compute else 3)
    monkeypatch.setenv(program.SWITCH, "0")
    if not compute.get("compile"):
        assert np.array_equal(sampler(weights, name, **compute).draw(range(8, 16)), found[1])


@torch.inference_mode()
def test_no_operation_of_a_step_waits(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(program.SWITCH, "0")
    drawer = sampler(weights, "ancestral-10", precision="bfloat16")
    drawer.draw(range(8))
    with nothing_waits():
        drawer.program(8).run(drawer.begin(range(8)), range(8), lambda: None)


@torch.inference_mode()
def test_the_host_never_waits_in_a_chain(weights: Path) -> None:
    drawer = sampler(weights, "ancestral-10", precision="bfloat16")
    drawer.draw(range(8))
    with nothing_waits():
        drawer.program(8).run(drawer.begin(range(8)), range(8), lambda: None)


def test_speed_is_measured() -> None:
    for row in measure("small", on(precision="bfloat16"), 32, 1.0):
        assert row.speed > 0
        assert row.limit > 0
        assert row.of_matmul is not None
    assert normals(GPU, 0.5) > 0


def test_what_cannot_be_captured_runs_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(program.SWITCH, "1")
    value = torch.ones(1, device=GPU)

    def asks() -> None:
        value.add_(float(value))

    asking = Program(asks, GPU, "the question")
    asking.prepare()
    assert re.fullmatch(
        r"ipdiff: the question cannot be captured in a CUDA graph \(.*\): it runs without, slower\n",
        capsys.readouterr().err,
    )
    value.fill_(1)
    asking()
    assert float(value) == 2  # and the GPU still answers
    assert os.environ[program.SWITCH] == "0"


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", ["adm", "ddpm"])
def test_the_self_check_passes_here(family: str, precision: Precision) -> None:
    checks = selfcheck.elsewhere(family, Compute("cuda", precision=precision))
    print(*checks, sep="\n")
    assert all(check.right for check in checks), list(map(str, checks))


def test_the_self_check_finds_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from ipdiff.device.kernels import norm

    monkeypatch.setattr(
        norm, "group_norm", lambda x, *rest, of=norm.group_norm, **options: 1.1 * of(x, *rest, **options)
    )
    checks = {check.name: check for check in selfcheck.run("adm", Compute("cuda", precision="bfloat16"))}
    assert checks["random numbers"].right
    assert not checks["norms"].right
    assert not checks["updates"].right


def test_making_again_changes_no_bit_and_takes_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = dataclasses.replace(on(precision="bfloat16"), training=Training(64, 1e-4))

    def update() -> tuple[dict[str, bytes], int]:
        gc.collect()  # runs before this one
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        feeder = trained(spec, 2)
        peak = torch.cuda.max_memory_allocated() - before
        return frozen(feeder), peak

    monkeypatch.setenv(program.SWITCH, "0")
    kept, more = update()  # there is room, so that everything is kept
    monkeypatch.setattr(memory.Passes, "_all_kept", lambda self: False)
    made_again, less = update()
    assert made_again == kept
    cost = costs.of(spec)
    saved = 64 * (cost.bytes_an_image("bfloat16", everything=True) - cost.bytes_an_image("bfloat16"))
    assert more - less > saved / 2  # the rest: what a layer made again is there beside the next one's
