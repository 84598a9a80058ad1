"""The self-check of the GPU's ways of computing, tried on a CPU with faults injected into what it looks at."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ipdiff import cli
from ipdiff.device import kernels, program
from ipdiff.device.spec import Compute
from ipdiff.device.streams import Draws
from ipdiff.nets.layers import GroupNorm
from ipdiff.pipeline import selfcheck
from ipdiff.pipeline.selfcheck import CHECKS, Check
from ipdiff.pipeline.store import receipts
from ipdiff.sample_sets.captured import CapturedChain
from ipdiff.sample_sets.sample import ImageSampler
from ipdiff.training.device_feeder import DeviceFeeder

GPU = Compute("cuda", precision="bfloat16")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[None]:
    """No switch is set, none stays set, and no verdict of this user's counts."""
    for name in (*selfcheck.PATHS, selfcheck.SWITCH):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("IPDIFF_CACHE", str(tmp_path))
    kernels.available.cache_clear()
    yield
    kernels.available.cache_clear()


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samplers draw by the program over fixed tensors, as on a GPU."""

    def draw(self: ImageSampler, index: range) -> object:
        from ipdiff.data.images import to_uint8

        with torch.inference_mode():
            return to_uint8(self.program(len(index)).run(self.begin(index), index, lambda: None))

    monkeypatch.setattr(ImageSampler, "draw", draw)


def found(family: str = "adm") -> dict[str, Check]:
    return {check.name: check for check in selfcheck.run(family, Compute())}


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize("family", ["adm", "ddpm"])
def test_what_is_right_passes(family: str) -> None:
    checks = found(family)
    assert list(checks) == list(CHECKS)
    assert all(check.right for check in checks.values()), list(map(str, checks.values()))


def _one_number_off(draw):
    def wrong(*args: object, **options: object) -> Tensor:
        drawn = draw(*args, **options).clone()
        drawn.view(-1)[17] = 1 - drawn.view(-1)[17].to(torch.float32)
        return drawn

    return wrong


def _scaled(function, factor: float):
    return lambda *args, **options: function(*args, **options) * factor


FAULTS = {
    "random numbers": lambda patch: patch.setattr(Draws, "normals", _one_number_off(Draws.normals)),
    "norms": lambda patch: patch.setattr(
        GroupNorm,
        "_float32",
        lambda self, x, *w, of=GroupNorm._float32: of(self, x, *w) * (1.01 if x.dtype == torch.float32 else 1),
    ),
    "updates": lambda patch: patch.setattr(
        DeviceFeeder,
        "_update",
        lambda self, grads, norm, *rest, of=DeviceFeeder._update: of(self, [1.01 * g for g in grads], norm, *rest),
    ),
    "sampling": lambda patch: patch.setattr(
        CapturedChain, "_step", lambda self, of=CapturedChain._step: (of(self), self._x.mul_(1.02))[0]
    ),
}


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_where_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[name](monkeypatch)
    checks = found()
    assert not checks[name].right
    assert checks[name].error is not None


@pytest.mark.usefixtures("captured")
def test_numbers_that_are_none_and_errors_are_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Draws, "normals", lambda *args, **options: 1 / 0)
    assert found()["random numbers"].why == "ZeroDivisionError: division by zero"
    monkeypatch.undo()
    monkeypatch.setattr(GroupNorm, "_float32", _scaled(GroupNorm._float32, float("nan")))
    assert found()["norms"].error == float("inf")


def test_the_plain_way_leaves_the_switches_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(program.SWITCH, "1")
    with selfcheck._plain():
        assert not kernels.available()
        assert os.environ[program.SWITCH] == "0"
    assert os.environ[program.SWITCH] == "1"
    assert kernels.SWITCH not in os.environ


def right(name: str) -> Check:
    return Check(name, 0.0, 1.0, 0.1)


@pytest.mark.parametrize(
    ("wrong", "off"),
    [
        ((), set()),
        (("norms",), {kernels.SWITCH}),
        (("updates", "sampling"), {program.SWITCH}),
        (CHECKS, set(selfcheck.PATHS)),
    ],
)
def test_what_is_wrong_is_switched_off_and_said_once(wrong, off: set[str], capsys) -> None:
    verdict = [Check(name, 0.5, 0.1, 0.1) if name in wrong else right(name) for name in CHECKS]
    for _ in range(2):
        selfcheck.apply(verdict)
    assert {name for name in selfcheck.PATHS if os.environ.get(name) == "0"} == off
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(off)
    assert all(line.startswith("ipdiff: the self-check of this GPU failed (") for line in said)
    assert {f"{name}=0" for name in off} == {one for one in receipts.machine()["settings"] if "IPDIFF" in one}


def test_a_check_that_dies_or_hangs_is_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    line = '{"name": "random numbers", "error": 0.0, "bound": 0.0, "seconds": 0.1, "why": ""}'
    script = f"import os, time; print('{line}', flush=True); "
    died = selfcheck.elsewhere("adm", GPU, [sys.executable, "-c", script + "os.kill(os.getpid(), 11)"])
    assert [check.right for check in died] == [True, False, False, False]
    assert str(died[1]) == "norms: killed by signal 11"
    monkeypatch.setattr(selfcheck, "PATIENCE", 5.0)
    hung = selfcheck.elsewhere("adm", GPU, [sys.executable, "-c", script + "time.sleep(600)"])
    assert [check.right for check in hung] == [True, False, False, False]
    assert str(hung[3]) == "sampling: no answer in 5 s"


def test_the_check_runs_in_a_process_of_its_own() -> None:
    checks = selfcheck.elsewhere("ddpm", Compute())
    assert [check.name for check in checks] == list(CHECKS)
    assert all(check.right for check in checks)


def test_a_verdict_is_kept_for_this_machine_and_this_code(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    machine = ["NVIDIA H100", "580", "2.11", "13.0"]
    monkeypatch.setattr(selfcheck, "_machine", lambda: machine)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(selfcheck, "elsewhere", lambda *what: tried.append(what[0]) or [right(name) for name in CHECKS])
    if not kernels.available():
        pytest.skip("triton is not installed")
    for family in ("adm", "adm", "ddpm"):
        selfcheck.trust(family, GPU)
    assert tried == ["adm", "ddpm"]
    machine[1] = "590"
    selfcheck.trust("adm", GPU)
    assert tried == ["adm", "ddpm", "adm"]
    folder = selfcheck.cache()
    assert folder is not None
    next(folder.glob("*.json")).write_text("[{")  # one of three is damaged: made again when it is met
    selfcheck.trust("adm", GPU)
    machine[1] = "580"
    for family in ("adm", "ddpm"):
        selfcheck.trust(family, GPU)
    assert len(tried) == 4
    monkeypatch.setenv(selfcheck.SWITCH, "0")
    machine[1] = "600"
    selfcheck.trust("adm", GPU)
    assert len(tried) == 4


def test_a_cpu_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "_verdict", lambda *what: pytest.fail("checked"))
    selfcheck.trust("adm", Compute())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_left_for_the_device_to_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "_verdict", lambda *what: pytest.fail("checked"))
    selfcheck.trust("adm", GPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs it")
def test_doctor_says_that_there_is_none(capsys) -> None:
    assert cli.main(["doctor", "--gpu"]) == 0
    assert capsys.readouterr().out == "note  GPU  torch finds no CUDA device here: nothing to check\n"
