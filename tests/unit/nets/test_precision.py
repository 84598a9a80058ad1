"""Low precision, memory layout and networks prepared for sampling: other arithmetic, the same model."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from unit.nets.test_nets import ADMUNet, DDPMUNet, batch, filled
from unit.tiny import ADM, IMAGES, RUNS, advance, change

from ipdiff.device import compute
from ipdiff.device.spec import Compute
from ipdiff.errors import UserError
from ipdiff.nets import build
from ipdiff.nets.dropout import Dropout, dropout_masks
from ipdiff.nets.execution import low_precision
from ipdiff.nets.inference import prepare_for_sampling
from ipdiff.nets.layers import GroupNorm
from ipdiff.sample_sets.sample import ImageSampler
from ipdiff.sample_sets.spec import Sampler
from ipdiff.training.run import Run

BF16 = Compute(precision="bfloat16")
BOTH = pytest.mark.parametrize("make", [ADMUNet, DDPMUNet])
FORMATS = [torch.channels_last, torch.contiguous_format]


@pytest.fixture
def wide(monkeypatch):
    """Tiny networks take the wide ones' layout."""
    monkeypatch.setattr(build, "WIDE", 1)


def has_bfloat16() -> bool:
    try:
        compute.configure(BF16)
    except UserError:
        return False
    return True


needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no bfloat16 instructions")


@BOTH
@pytest.mark.parametrize("memory_format", FORMATS)
def test_a_prepared_network_gives_the_same(make: Any, memory_format: Any) -> None:
    net = filled(make, in_channels=3)
    with torch.inference_mode():
        for n in (4, 3, 4):  # another shape in between
            x, t = batch(n, 3)
            want = net(x, t)
            prepared = prepare_for_sampling(filled(make, in_channels=3), memory_format=memory_format)
            table = prepared.at_timesteps(t.tolist())
            torch.testing.assert_close(table(x.to(memory_format=memory_format), t), want, atol=1e-5, rtol=0)


@BOTH
def test_one_timestep_for_the_batch_is_looked_up_once(make: Any) -> None:
    table = prepare_for_sampling(filled(make)).at_timesteps([5, 700])
    x, t = batch()[0].to(memory_format=torch.channels_last), torch.tensor([700])
    with torch.inference_mode():
        torch.testing.assert_close(table(x, t.expand(4)), table(x, t.repeat(4)), atol=1e-5, rtol=0)
        with pytest.raises(ValueError, match="was not given"):
            table(x, torch.tensor([3]).expand(4))


@needs_bfloat16
@BOTH
def test_bfloat16_is_near_and_its_output_is_float32(make: Any) -> None:
    net = filled(make, in_channels=3, out_channels=3)
    low = prepare_for_sampling(filled(make, in_channels=3, out_channels=3), torch.bfloat16).at_timesteps(range(1000))
    x, t = batch(8, 3)
    with torch.no_grad():
        want, got = net(x, t), low(x.to(memory_format=torch.channels_last), t)
        cast = low_precision(net, BF16)(x, t)
    for found in (got, cast):
        assert found.dtype == torch.float32
        error = ((found - want).square().mean() / want.var()).item()
        assert 0 < error < 1e-3  # a relative error of 2^-9 an operation


def test_group_norm_activated_rounds_once() -> None:
    norm = GroupNorm(2, 8)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        norm.weight.normal_(generator=generator)
        norm.bias.normal_(generator=generator)
    x = torch.randn(3, 8, 4, 4, generator=generator)
    scale, shift = (torch.randn(3, 8, 1, 1, generator=generator) for _ in range(2))
    whole = torch.nn.functional.silu(norm(x) * (1 + scale) + shift)
    torch.testing.assert_close(norm.activated(x, scale, shift), whole)
    for n in range(3):  # one scale and shift: folded into the norm's weights
        one = norm.activated(x, scale[n : n + 1], shift[n : n + 1])
        torch.testing.assert_close(one[n], whole[n], atol=1e-5, rtol=1e-5)
    half = x.bfloat16()
    exact = norm.activated(half.float(), scale, shift)
    assert torch.equal(norm.activated(half, scale, shift), exact.bfloat16())


@pytest.mark.parametrize("name", ["adm", "adm-gp", "ddim"])
def test_channels_last_trains_the_same_run_and_survives_a_restart(name: str, wide: None) -> None:
    spec = change(RUNS[name], lr=1e-4)
    straight = advance(Run(spec, IMAGES), 4)
    assert build.memory_format(spec) == torch.channels_last
    first = advance(Run(spec, IMAGES), 2)
    second = Run(spec, IMAGES)
    second.load({key: np.array(value) for key, value in first.state().items()})
    advance(second, 2)
    for key, value in straight.state().items():
        assert value.tobytes() == second.state()[key].tobytes(), key


@pytest.mark.parametrize("name", ["adm", "ddim-ip"])
def test_the_layout_changes_rounding_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = []
    for width in (1, 64):
        monkeypatch.setattr(build, "WIDE", width)
        losses.append(advance(Run(RUNS[name], IMAGES), 3).losses)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@needs_bfloat16
def test_bfloat16_training_keeps_float32_weights_and_the_loss(wide: None) -> None:
    spec = dataclasses.replace(RUNS["adm"], compute=BF16)
    low, full = advance(Run(spec, IMAGES), 3), advance(Run(RUNS["adm"], IMAGES), 3)
    np.testing.assert_allclose(low.losses, full.losses, rtol=0.02)
    assert not np.array_equal(low.losses, full.losses)
    state = low.state()
    kinds = {value.dtype for key, value in state.items() if key.startswith(("model.", "ema.", "optimizer.exp"))}
    assert kinds == {np.dtype(np.float32)}


@needs_bfloat16
def test_bfloat16_samples_are_near_and_repeatable(wide: None, tmp_path: Any) -> None:
    save_file(Run(ADM, IMAGES).ema_weights(), tmp_path / "ema.safetensors")
    sets = {}
    for name, chosen in (("bf16", BF16), ("again", BF16), ("float32", Compute())):
        draw = ImageSampler(
            ADM, tmp_path / "ema.safetensors", Sampler.parse("ancestral-5"), clip_denoised=True, compute=chosen
        )
        sets[name] = draw.draw(range(6))
    assert np.array_equal(sets["bf16"], sets["again"])
    assert np.abs(sets["bf16"].astype(int) - sets["float32"]).mean() < 4


def test_precision_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="float16 needs cuda"):
        Compute(precision="float16")
    with pytest.raises(ValueError, match="compile is true with device cpu"):
        Compute(compile=True)
    with pytest.raises(UserError, match="differentiates twice"):
        Run(dataclasses.replace(RUNS["adm-gp"], compute=Compute("cuda", compile=True)), IMAGES)
    monkeypatch.setattr(compute, "has_bfloat16", lambda: False)
    with pytest.raises(UserError, match="no bfloat16 instructions") as error:
        compute.configure(BF16)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the tracer looks at its own inputs
def test_a_compiler_can_trace_the_network_once_for_all_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's own tracer but without its code generator, which no test here can wait for."""
    monkeypatch.setattr(Dropout, "_factor", Dropout._factor)
    Dropout.keep_out_of_graphs()
    net = filled(ADMUNet, dropout=0.3).train()
    graphs: list[Any] = []
    counts: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    traced = torch.compile(net, backend=backend)
    x, t = batch()
    for seed in range(3):
        with dropout_masks(
            net,
            lambda layer, shape, seed=seed: (
                torch.rand(shape, generator=torch.Generator().manual_seed(seed + layer)) > 0.3
            ),
        ):
            torch.testing.assert_close(traced(x, t), net(x, t), atol=1e-6, rtol=0)
        counts.append(len(graphs))
    assert counts[0] == counts[-1] > 0
