"""The networks' own promises, on networks that take milliseconds."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ipdiff.nets import ADMUNet, DDPMUNet
from ipdiff.nets.dropout import Dropout, dropout_masks, keep_threshold
from ipdiff.nets.initial import initialise
from ipdiff.nets.layers import GroupNorm, UNet, ZeroConv2d, ZeroPointwiseConv, twice_differentiable

DIGITS: dict[str, Any] = {
    "image_size": 8,
    "model_channels": 16,
    "out_channels": 1,
    "num_res_blocks": 1,
    "attention_resolutions": (4,),
    "channel_mult": (1, 2),
    "in_channels": 1,
    "num_head_channels": 16,
    "norm_groups": 8,
}
DDIM: dict[str, Any] = {key: value for key, value in DIGITS.items() if key != "num_head_channels"}


def uniforms(index: int, count: int) -> np.ndarray:
    """A source of uniforms for `initialise` that depends on nothing but the tensor."""
    return np.random.default_rng(index).random(count)


def filled(make: type[nn.Module], **options: Any) -> Any:
    """A digits-sized network in evaluation mode without a zero in it."""
    net = make(**{**(DIGITS if make is ADMUNet else DDIM), **options})
    initialise(net, uniforms)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1, generator=generator)
    return net.eval()


def batch(n: int = 4, channels: int = 1) -> tuple[Tensor, Tensor]:
    """Noisy images [n,channels,8,8] and timesteps [n]."""
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, channels, 8, 8, generator=generator), torch.arange(n) * 37 % 1000


BOTH = pytest.mark.parametrize("make", [ADMUNet, DDPMUNet])


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (ADMUNet, {}),
        (ADMUNet, {"use_scale_shift_norm": False, "resblock_updown": False, "new_attention_order": False}),
        (ADMUNet, {"num_head_channels": None, "num_heads": 4, "num_classes": 3}),
        (DDPMUNet, {}),
    ],
)
def test_gradients_reach_every_parameter(make: Any, options: dict[str, Any]) -> None:
    net = filled(make, **options)
    x, t = batch()
    y = (torch.tensor([0, 1, 2, 0]),) if "num_classes" in options else ()
    net(x, t, *y).square().sum().backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    # a constant added to a norm with one channel a group, or to all keys of a softmax, changes nothing
    assert [name for name in dead if not name.endswith(".k.bias")] == []


@BOTH
def test_an_image_s_output_does_not_depend_on_its_batch(make: Any) -> None:
    net = filled(make)
    x, t = batch(5)
    with torch.no_grad():
        alone = torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(5)])
        together = net(x, t)
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
        x[1:], t[1:] = 5.0, 999
        assert torch.equal(net(x, t)[0], together[0])  # in a batch of equal size: to the last bit


@BOTH
def test_channels_last_gives_the_same(make: Any) -> None:
    net = filled(make, in_channels=3, out_channels=2)
    x, t = batch(channels=3)
    with torch.no_grad():
        want = net(x, t)
        got = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), t)
    assert want.is_contiguous()
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@BOTH
def test_evaluation_changes_no_argument(make: Any) -> None:
    """Activations are overwritten where no gradient is recorded; arguments are not."""
    net = filled(make)
    x, t = batch()
    projected = net.project(net.time_embedding(t)).detach()
    copies = x.clone(), t.clone(), projected.clone()
    with torch.inference_mode():
        first = net.forward_projected(x, projected)
        again = net(x, t)
    with torch.enable_grad():
        recorded = net(x, t).detach()
    assert all(torch.equal(a, b) for a, b in zip((x, t, projected), copies, strict=True))
    assert torch.equal(first, again)
    torch.testing.assert_close(recorded, again, atol=1e-5, rtol=0)


@BOTH
def test_time_table_gives_the_same(make: Any) -> None:
    net = filled(make)
    x, t = batch()
    table = net.at_timesteps([int(step) for step in reversed(t)])
    with torch.no_grad():
        torch.testing.assert_close(table(x, t), net(x, t), atol=1e-5, rtol=0)
        one_row = net.project(net.time_embedding(t[1:2]))  # [1,P] serves a batch
        torch.testing.assert_close(net.forward_projected(x, one_row), net(x, t[1:2].expand(4)), atol=1e-5, rtol=0)


def test_time_table_of_a_class_conditional_net() -> None:
    net = filled(ADMUNet, num_classes=3)
    x, t = batch()
    y = torch.tensor([0, 1, 2, 1])
    with torch.no_grad():
        torch.testing.assert_close(net.at_timesteps(range(1000))(x, t, y), net(x, t, y), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="class-conditional: call it with labels y in 0"):
        net.at_timesteps([0])(x, torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("steps", [[0, 37, 74], [0, 37, 74, 500]])
def test_time_table_refuses_other_timesteps(steps: list[int]) -> None:
    x, t = batch()
    with pytest.raises(ValueError, match=re.escape("at_timesteps was not given: [0, 37, 74, 111]")):
        filled(ADMUNet).at_timesteps(steps)(x, t)


@pytest.mark.parametrize("steps", [[], [-1, 3]])
def test_time_table_refuses_nonsense(steps: list[int]) -> None:
    with pytest.raises(ValueError, match="give one or more timesteps >= 0"):
        filled(ADMUNet).at_timesteps(steps)


def test_labels_select_and_are_checked() -> None:
    net = filled(ADMUNet, num_classes=3)
    assert net.state_dict()["label_emb.weight"].shape == (3, 64)
    x, t = batch()
    with torch.no_grad():
        first, second = (net(x, t, torch.full((4,), label)) for label in (0, 1))
    assert (first - second).abs().amax(dim=(1, 2, 3)).min() > 1e-4
    with pytest.raises(ValueError, match="class-conditional: call it with labels y in 0"):
        net(x, t)
    for make in (ADMUNet, DDPMUNet):
        with pytest.raises(ValueError, match="unconditional: call it without y"):
            filled(make)(x, t, torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (ADMUNet, {"norm_groups": 32}, "norm_groups=32 does not divide a layer's 16 channels"),
        (DDPMUNet, {"norm_groups": 0}, "norm_groups is 0; use 1 or more"),
        (ADMUNet, {"attention_resolutions": (16, 4)}, "attention_resolutions has [16], but the image sizes"),
        (DDPMUNet, {"attention_resolutions": (3,)}, "attention_resolutions has [3], but the image sizes"),
        (ADMUNet, {"image_size": 9}, "image_size=9 is not divisible by 2 = 2^(levels - 1)"),
        (ADMUNet, {"image_size": 0}, "image_size=0 is not divisible by 2"),
        (DDPMUNet, {"channel_mult": (1,) * 5}, "image_size=8 is not divisible by 16"),
        (ADMUNet, {"channel_mult": ()}, "channel_mult is empty; it has one number for each level"),
        (DDPMUNet, {"num_res_blocks": 0}, "num_res_blocks is 0; use 1 or more"),
        (ADMUNet, {"num_head_channels": 24}, "num_head_channels=24 does not divide the 32 channels"),
        (ADMUNet, {"num_head_channels": None, "num_heads": 5}, "num_heads=5 does not divide the 32 channels"),
        (ADMUNet, {"model_channels": 15}, "model_channels=15 is not even"),
        (DDPMUNet, {"model_channels": 2}, "model_channels=2 is not an even number >= 4"),
        (ADMUNet, {"num_classes": 0}, "num_classes=0"),
        (ADMUNet, {"dropout": 1.0}, "dropout is 1.0; use 0 or more and less than 1"),
        (DDPMUNet, {"dropout": -0.1}, "dropout is -0.1; use 0 or more and less than 1"),
    ],
)
def test_bad_arguments_are_named_in_one_line(make: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        make(**{**(DIGITS if make is ADMUNet else DDIM), **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("levels", [1, 3, 4])
@BOTH
def test_any_number_of_levels_and_any_size(make: Any, levels: int) -> None:
    size = 3 * 2 ** (levels - 1)
    net = filled(make, image_size=size, channel_mult=tuple(range(1, levels + 1)), attention_resolutions=())
    with torch.no_grad():
        assert net(torch.zeros(2, 1, size, size), torch.zeros(2)).shape == (2, 1, size, size)


def test_zero_initialisation_is_the_reference_s() -> None:
    net = ADMUNet(**DIGITS)
    zero = {name for name, p in net.named_parameters() if p.ndim > 1 and not p.any()}
    assert zero == {n for n, _ in net.named_parameters() if re.search(r"(out_layers\.3|proj_out|^out\.2)\.weight$", n)}
    x, t = batch()
    assert not net(x, t).any()
    assert all(p.any() for p in DDPMUNet(**DDIM).parameters() if p.ndim > 1)


@BOTH
def test_second_derivatives_where_asked_for(make: Any) -> None:
    net = filled(make)
    x, t = batch(2)
    x.requires_grad_()
    with twice_differentiable():
        (slope,) = torch.autograd.grad(net(x, t).sum(), x, create_graph=True)
        slope.square().sum().backward()
    assert net.get_parameter(next(n for n, _ in net.named_parameters() if "qkv.w" in n or ".q.w" in n)).grad.any()


@BOTH
def test_a_copy_shares_nothing(make: Any) -> None:
    net = filled(make)
    x, t = batch()
    with torch.no_grad():
        twin = copy.deepcopy(net)
        assert torch.equal(twin(x, t), net(x, t))
        for parameter in twin.parameters():
            parameter.zero_()
        assert not twin.project(twin.time_embedding(t)).any()
        assert net(x, t).any()


def test_group_norm_computes_in_float32() -> None:
    norm = GroupNorm(2, 8)
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 100
    half = x.to(torch.bfloat16)
    assert norm(half).dtype == torch.bfloat16
    assert torch.equal(norm(half), norm(half.float()).to(torch.bfloat16))
    assert norm.double()(x.double()).dtype == torch.float64


def test_float64_network() -> None:
    net = filled(ADMUNet)
    x, t = batch()
    with torch.no_grad():
        want = net(x, t)
        torch.testing.assert_close(net.double()(x.double(), t).float(), want, atol=1e-5, rtol=0)


def test_autocast_runs() -> None:
    x, t = batch()
    for make in (ADMUNet, DDPMUNet):
        net = filled(make)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            net(x, t).float().sum().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())


# --- dropout


def masks_of(calls: list[tuple[int, torch.Size]], p: float = 0.5) -> Callable[[int, torch.Size], Tensor]:
    """A deterministic mask source that notes what it is asked for."""

    def source(layer: int, shape: torch.Size) -> Tensor:
        calls.append((layer, shape))
        draws = np.random.default_rng(layer).integers(0, 65536, size=tuple(shape))
        return torch.from_numpy(draws >= keep_threshold(p))

    return source


@BOTH
def test_masks_make_training_deterministic(make: Any) -> None:
    net = filled(make, dropout=0.5).train()
    x, t = batch()
    state = torch.get_rng_state()
    calls: list[tuple[int, torch.Size]] = []
    with torch.no_grad(), dropout_masks(net, masks_of(calls)):
        first, second = net(x, t), net(x, t)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    layers = [module for module in net.modules() if isinstance(module, Dropout)]
    assert sorted(layer for layer, _ in calls) == sorted(2 * list(range(len(layers))))
    assert all(layer.masks is None for layer in layers)
    with torch.no_grad():
        assert not torch.equal(net(x, t), first)
        assert not torch.equal(net.eval()(x, t), first)


def test_masks_are_not_asked_for_in_evaluation_or_without_dropout() -> None:
    def refuse(layer: int, shape: torch.Size) -> Tensor:
        raise AssertionError((layer, shape))

    x, t = batch()
    for net in (filled(ADMUNet, dropout=0.5), filled(ADMUNet, dropout=0.0).train()):
        with torch.no_grad(), dropout_masks(net, refuse):
            net(x, t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dropout_scales_by_the_quantised_share(dtype: torch.dtype) -> None:
    layer = Dropout(0.3).train()
    mask = torch.tensor([True, False, True])
    with dropout_masks(layer, lambda _layer, shape: mask.expand(shape)):
        got = layer(torch.ones(2, 3, dtype=dtype))
    share = 1 - keep_threshold(0.3) / 65536
    assert got.dtype == dtype
    torch.testing.assert_close(got, (mask / share).to(dtype).expand(2, 3))
    assert mask.tolist() == [True, False, True]


def test_dropout_gradient_and_global_rng_without_a_source() -> None:
    layer = Dropout(0.25).train()
    x = torch.ones(1000, requires_grad=True)
    torch.manual_seed(0)
    layer(x).sum().backward()
    assert x.grad is not None
    assert set(x.grad.tolist()) == {0.0, float(torch.tensor(1 / 0.75))}


def test_sources_nest_and_survive_errors() -> None:
    layer = Dropout(0.5).train()
    x = torch.ones(4)

    def fail() -> None:
        with dropout_masks(layer, lambda _layer, shape: torch.zeros(shape, dtype=torch.bool)):
            assert not layer(x).any()
            raise KeyError

    with dropout_masks(layer, lambda _layer, shape: torch.ones(shape, dtype=torch.bool)):
        with pytest.raises(KeyError):
            fail()
        assert layer(x).tolist() == [2.0] * 4
    assert layer.masks is None


@pytest.mark.parametrize(("p", "threshold"), [(0.0, 0), (0.1, 6554), (0.3, 19661), (0.5, 32768)])
def test_keep_threshold(p: float, threshold: int) -> None:
    assert keep_threshold(p) == threshold


@pytest.mark.parametrize("p", [1.0, 1.5, -0.01, 0.999999, math.nan])
def test_keep_threshold_refuses(p: float) -> None:
    with pytest.raises(ValueError, match="is not a probability of dropping"):
        keep_threshold(p)


# --- initialise


def global_numpy() -> list[int]:
    """The state of numpy's global generator."""
    return np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002


@BOTH
def test_initialise_is_a_function_of_its_uniforms(make: Any) -> None:
    options = {**(DIGITS if make is ADMUNet else DDIM)}
    torch.manual_seed(1)
    first = make(**options)
    torch.manual_seed(2)
    second = make(**options)
    torch_state, numpy_state = torch.get_rng_state(), global_numpy()
    initialise(first, uniforms)
    initialise(second, uniforms)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert global_numpy() == numpy_state
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_initialise_draws_the_default_distributions() -> None:
    net = ADMUNet(**{**DIGITS, "num_classes": 200})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(7)
    initialise(net, uniforms)
    values = {name: p.detach() for name, p in net.named_parameters()}
    for name, module in net.named_modules():
        if isinstance(module, ZeroConv2d | ZeroPointwiseConv):
            assert not values[f"{name}.weight"].any()
            assert not values[f"{name}.bias"].any()
        elif isinstance(module, nn.GroupNorm):
            assert values[f"{name}.weight"].eq(1).all()
            assert not values[f"{name}.bias"].any()
    weight, bound = values["input_blocks.1.0.in_layers.2.weight"], 1 / math.sqrt(16 * 9)
    assert 0.99 * bound < weight.max() <= bound
    assert -bound <= weight.min() < -0.99 * bound
    assert abs(float(weight.std()) - bound / math.sqrt(3)) < 0.02 * bound
    assert values["input_blocks.1.0.in_layers.2.bias"].abs().max() <= bound
    labels = values["label_emb.weight"]
    assert abs(float(labels.mean())) < 0.03
    assert abs(float(labels.std()) - 1) < 0.03


def test_initialise_asks_in_the_order_of_the_parameters() -> None:
    asked: list[tuple[int, int]] = []

    def source(index: int, count: int) -> np.ndarray:
        asked.append((index, count))
        return np.zeros(count)

    labels = nn.Embedding(3, 3)
    initialise(nn.Sequential(nn.Linear(2, 3), nn.GroupNorm(1, 3), labels), source)
    assert asked == [(0, 6), (1, 3), (4, 10)]  # norms need none; normals come in pairs
    assert not labels.weight.any()


def test_initialise_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"no rule for 0\.weight, a parameter of PReLU"):
        initialise(nn.Sequential(nn.PReLU()), uniforms)


def test_the_base_class_is_abstract() -> None:
    net = UNet()
    with pytest.raises(NotImplementedError):
        net.time_embedding(torch.zeros(1))
    with pytest.raises(NotImplementedError):
        net.forward_projected(torch.zeros(1), torch.zeros(1))
