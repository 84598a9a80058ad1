"""Adam and AdamW: the bytes of torch's classes, without what those import."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from ipdiff.training.adam import Adam

CLASSES = {True: torch.optim.AdamW, False: torch.optim.Adam}


def leaves() -> list[Tensor]:
    """Parameters of several shapes and layouts."""
    draw = torch.Generator().manual_seed(0)
    wide = torch.randn(8, 6, 3, 3, generator=draw).contiguous(memory_format=torch.channels_last)
    return [each.requires_grad_() for each in (wide, torch.randn(17, generator=draw), torch.zeros(()))]


def give_gradients(params: list[Tensor], step: int) -> None:
    draw = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=draw))


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("fused", [True, None])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_updates_are_those_of_torchs_classes(decoupled: bool, fused: bool | None, weight_decay: float) -> None:
    ours, theirs = leaves(), leaves()
    one = Adam(ours, weight_decay=weight_decay, decoupled=decoupled, fused=fused)
    other = CLASSES[decoupled](theirs, lr=0.1, weight_decay=weight_decay, fused=fused)
    assert one.moments == {}
    for step in range(6):
        rate = 0.1 / (step + 1)
        other.param_groups[0]["lr"] = rate
        give_gradients(ours, step)
        give_gradients(theirs, step)
        one.step(rate)
        other.step()
    mine, torchs = one.moments, other.state_dict()["state"]
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(a, b)
        assert mine[i].keys() == torchs[i].keys()
        assert all(torch.equal(mine[i][key], value) for key, value in torchs[i].items())
        assert mine[i]["exp_avg"].stride() == a.stride()


def test_it_goes_on_from_a_saved_state() -> None:
    whole, parts = leaves(), leaves()
    first = Adam(whole, weight_decay=0.01, decoupled=True, fused=True)
    second = Adam(parts, weight_decay=0.01, decoupled=True, fused=True)
    for step in range(4):
        if step == 2:
            saved = copy.deepcopy(second.moments)
            second = Adam(parts, weight_decay=0.01, decoupled=True, fused=True)
            second.load(saved)
        for params, optimizer in ((whole, first), (parts, second)):
            give_gradients(params, step)
            optimizer.step(0.1)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_parameters_without_a_gradient_stay() -> None:
    params = leaves()
    before = [p.detach().clone() for p in params]
    optimizer = Adam(params, weight_decay=0.01, decoupled=True)
    give_gradients(params[:1], 0)
    optimizer.step(0.1)
    assert [torch.equal(p, old) for p, old in zip(params, before, strict=True)] == [False, True, True]
    assert list(optimizer.moments) == [0]
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


def test_a_skipped_update_changes_nothing() -> None:
    params = leaves()
    optimizer = Adam(params, weight_decay=0.01, decoupled=True, fused=True)
    for step, skip in enumerate((1.0, 0.0, 1.0)):
        before = copy.deepcopy((params, optimizer.moments))
        give_gradients(params, step)
        optimizer.step(0.1, skip=torch.tensor(skip))
        stays = all(torch.equal(p, old) for p, old in zip(params, before[0], strict=True))
        assert stays == (skip == 1.0)
        if step:
            counts = [state["step"].item() for state in optimizer.moments.values()]
            assert counts == [1.0] * len(params)
    assert torch.equal(optimizer.moments[1]["exp_avg"], before[1][1]["exp_avg"])


def test_an_update_imports_no_compiler() -> None:
    code = (
        "import sys, torch\n"
        "from ipdiff.training.adam import Adam\n"
        "p = torch.zeros(3, requires_grad=True)\n"
        "p.grad = torch.ones(3)\n"
        "optimizer = Adam([p], weight_decay=0.0, decoupled=True, fused=True)\n"
        "optimizer.step(0.1)\n"
        "optimizer.zero_grad()\n"
        "print(*sorted({'torch._dynamo', 'torch._inductor', 'sympy'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
