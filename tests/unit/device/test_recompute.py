"""Gradients that make norms and dropout's factors again: the same bits, and the memory that a formula allows."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn
from unit.kept import PAPER, kept_for_backward, paper
from unit.tiny import ADM, DDIM, change

from ipdiff import rng
from ipdiff.device import recompute
from ipdiff.device.recompute import remade, through
from ipdiff.nets import build
from ipdiff.nets.dropout import Dropout, dropout_masks
from ipdiff.nets.initial import initialise
from ipdiff.spec import RunSpec

ADM_NET = change(ADM, dropout=0.2, learn_sigma=True)
NETS = {
    "adm": ADM_NET,
    "adm added": change(ADM_NET, use_scale_shift_norm=False, resblock_updown=False),
    "ddpm": DDIM,
}


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, "remakes", lambda value: torch.is_grad_enabled())


def gradients(spec: RunSpec) -> list[bytes]:
    """The loss and every gradient of a network whose zero layers are no zeros."""
    net = build.network(spec).to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    initialise(net, lambda index, count: rng.uniforms(7, rng.Purpose.INIT, [index], count)[0])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))

    def masks(layer: int, shape: torch.Size) -> Tensor:
        return torch.from_numpy(rng.keep_mask(1, range(shape[0]), tuple(shape[1:]), 13107, step=0, lane=layer))

    x = torch.randn(3, 1, 4, 4, generator=generator).to(memory_format=torch.channels_last)
    with dropout_masks(net, masks):
        loss = net(x, torch.tensor([3, 7, 11])).square().mean()
    loss.backward()  # where the masks are no longer given
    return [
        loss.detach().numpy().tobytes(),
        *(p.grad.numpy().tobytes() for p in net.parameters() if p.grad is not None),
    ]


@pytest.mark.parametrize("name", NETS)
def test_the_gradients_have_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gradients(NETS[name])
    made: list[torch.Size] = []
    factor = Dropout._factor

    def counted(self: Dropout, masks, shape, device, dtype) -> Tensor:
        made.append(shape)
        return factor(self, masks, shape, device, dtype)

    monkeypatch.setattr(Dropout, "_factor", counted)
    gradients(NETS[name])
    once = len(made)
    monkeypatch.setattr(recompute, "remakes", lambda value: torch.is_grad_enabled())
    made.clear()
    assert gradients(NETS[name]) == expected
    assert len(made) == 3 * once  # in the chain; for the convolution's weights; for dropout's own gradient


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_value_is_made_again_only_for_a_gradient() -> None:
    calls = []

    def make(x: Tensor) -> Tensor:
        calls.append(x.requires_grad)
        return x.exp()

    layer, x = nn.Linear(3, 2), torch.randn(4, 3, requires_grad=True)
    with torch.no_grad():
        through(layer, make, x)
    assert calls == [True]
    through(layer, make, x).sum().backward()
    assert calls == [True, True, False]


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_value_is_given_up() -> None:
    made: list[weakref.ref[Tensor]] = []

    def make(x: Tensor) -> Tensor:
        made.append(weakref.ref(value := x.exp()))
        return value

    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    y = through(layer, make, x)
    assert made[0]() is None
    y.sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.usefixtures("as_on_a_gpu")
def test_other_tensors_are_kept_as_they_are() -> None:
    x, y = torch.randn(4, requires_grad=True), torch.randn(4, requires_grad=True)
    with remade(x, lambda: torch.full((4,), 7.0)):
        product = x * y
    product.sum().backward()
    assert torch.equal(x.grad, y.detach())  # pyright: ignore[reportArgumentType]
    assert torch.equal(y.grad, torch.full((4,), 7.0))  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("as_on_a_gpu")
def test_what_torch_s_generator_drops_is_kept() -> None:
    dropout = Dropout(0.5)
    assert not dropout.repeats
    x, weight = torch.ones(1000), torch.ones(1000, requires_grad=True)
    y = through(lambda h: h * weight, dropout.as_now(), x, again=dropout.repeats)
    y.sum().backward()
    assert torch.equal(weight.grad, y.detach())  # pyright: ignore[reportArgumentType]


def test_a_cpu_keeps_everything() -> None:
    assert not recompute.remakes(torch.zeros(1))


@pytest.mark.parametrize("dataset", PAPER)
def test_an_image_s_memory(dataset: str) -> None:
    """In bfloat16: half of what keeping everything takes."""
    assert 0.8 * PAPER[dataset] < kept_for_backward(paper(dataset)) / 2**20 < PAPER[dataset]
