"""The update as a program over fixed tensors, on the CPU, where only its capture is missing: against the host's."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from patience import wait_until
from unit.tiny import IMAGES, RUNS, Looks, Undrawn, advance, change

from ipdiff.data.batches import batch_indices
from ipdiff.data.prefetch import DEPTH, Prefetch
from ipdiff.device.spec import Compute
from ipdiff.diffusion import GaussianDiffusion
from ipdiff.errors import Preempted, UserError
from ipdiff.training import device_feeder, optimizer, segment
from ipdiff.training.device_feeder import DeviceFeeder
from ipdiff.training.distributed import Processes, passes_of
from ipdiff.training.host_feeder import HostFeeder
from ipdiff.training.run import Diverged, Run
from ipdiff.training.segment import Setup
from ipdiff.work.spec import Work
from ipdiff.work.train_states import States, opened, tensors_of

CPU = torch.device("cpu")
WHOLE = {name: change(spec, micro_batch=None) for name, spec in RUNS.items() if not spec.objective.gp_weight}
SPEC = change(WHOLE["adm"], gamma=0.1)


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    """Pieces of 4 updates, so that a few updates meet every edge of them."""
    monkeypatch.setattr(device_feeder, "EVERY", 4)
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.fixture
def made():
    """Makes feeders, and ends their threads; `log2`: with float16's loss scale, which a CPU trains in float32."""
    feeders = []

    def make(spec=SPEC, steps=0, state=None, log2=None, micro=None):
        run = Run(spec, IMAGES)
        run.scale = None if log2 is None else optimizer.LossScale(log2)
        if state is not None:
            run.load(state)
        feeders.append(DeviceFeeder(run, passes_of(run, most=micro)))
        for _ in range(steps):
            feeders[-1].advance()
        return feeders[-1]

    yield make
    for feeder in feeders:
        feeder.close()


def frozen(feeder):
    return {name: value.tobytes() for name, value in feeder.settle().state().items()}


def assert_near(found, expected, rtol=1e-3, atol=3e-4):
    """A third of a learning rate: of a gradient that is rounding alone (attention's k.bias) Adam makes much."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("here", [True, False])
def test_it_trains_as_the_host_does(name, here, made, monkeypatch):
    monkeypatch.setattr("ipdiff.data.images.fits", lambda images, device: here)
    reference = advance(Run(WHOLE[name], IMAGES), 7)
    feeder = made(WHOLE[name], 7)
    assert feeder.step == 7
    assert len(feeder.run.losses) == feeder.run.step == 4  # the second piece is under way
    state = feeder.settle().state()
    np.testing.assert_allclose(feeder.run.losses, reference.losses, rtol=1e-4)
    assert_near(state, reference.state())
    if "timesteps.counts" in state:
        assert np.array_equal(state["timesteps.counts"], reference.state()["timesteps.counts"])


@pytest.mark.parametrize("name", ["adm", "ddim-ip", "importance", "gamma over steps"])
@pytest.mark.parametrize("at", [3, 4, 6])
def test_a_restart_changes_no_bit(name, at, made, tmp_path):
    straight = made(WHOLE[name], 9)
    first = made(WHOLE[name], at)
    States(tmp_path).save(at, first.settle().state())
    second = made(WHOLE[name], 9 - at, tensors_of(opened(States(tmp_path).newest(at)[1])))
    first_on = frozen(made(WHOLE[name], 0, first.settle().state()))
    assert first_on == frozen(first)
    for _ in range(9 - at):
        first.advance()  # taking a state disturbed nothing
    assert frozen(second) == frozen(first) == frozen(straight)


FAST = {name: change(spec, reduction="fast") for name, spec in WHOLE.items()}


@pytest.mark.parametrize("name", ["adm", "ddim-ip", "importance", "gamma over steps"])
@pytest.mark.parametrize("micro", [1, 2, 3, 4])
def test_passes_add_up_to_a_whole_update(name, micro, made):
    reference = advance(Run(FAST[name], IMAGES), 7)
    feeder = made(FAST[name], 7, micro=micro)
    assert feeder.passes.largest == {1: 1, 2: 2, 3: 2, 4: 4}[micro]
    state = feeder.settle().state()
    np.testing.assert_allclose(feeder.run.losses, reference.losses, rtol=1e-4)
    assert_near(state, reference.state())
    if "timesteps.counts" in state:
        assert np.array_equal(state["timesteps.counts"], reference.state()["timesteps.counts"])


def test_a_run_in_passes_restarts_to_the_bit_and_with_another_cut_nearly(made):
    straight, first = made(FAST["importance"], 6, micro=2), made(FAST["importance"], 3, micro=2)
    state = {key: value.copy() for key, value in first.settle().state().items()}
    assert frozen(made(FAST["importance"], 3, state, micro=2)) == frozen(straight)
    other = made(FAST["importance"], 3, state, micro=8).settle().state()
    assert_near(other, straight.settle().state())
    assert np.array_equal(other["timesteps.counts"], straight.settle().state()["timesteps.counts"])


def test_a_pass_that_does_not_fit_is_tried_again_smaller(made, monkeypatch):
    spec = change(FAST["adm"], gamma=0.1)
    expected = frozen(made(spec, 6, log2=12.0, micro=2))
    real, tried = Run.gradients, []

    def gradients(self, pictures, *args):
        tried.append(len(pictures))
        if len(pictures) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(self, pictures, *args)

    monkeypatch.setattr(Run, "gradients", gradients)
    feeder = made(spec, 6, log2=12.0)
    assert frozen(feeder) == expected  # the tries have left nothing behind
    assert tried == [8, 4] + [2] * 4 * 6
    with pytest.raises(UserError, match="does not hold a pass of 8 images: CUDA out of memory"):
        made(SPEC, 1)  # the exact reduction


def test_a_capture_that_does_not_fit_begins_anew(made, monkeypatch):
    """The capture's own pool of memory may be too small where that of the runs before it was not."""
    prepared = []

    def prepare(program):
        prepared.append(1)
        if len(prepared) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("ipdiff.device.program.Program.prepare", prepare)
    feeder = made(FAST["adm"], 3)
    assert len(prepared) == 3
    assert feeder.passes.largest == 2
    monkeypatch.undo()
    monkeypatch.setattr(device_feeder, "EVERY", 4)
    assert frozen(feeder) == frozen(made(FAST["adm"], 3, micro=2))


@pytest.mark.parametrize("name", ["gamma over steps", "ddpm-y over steps"])
def test_a_gamma_over_steps_is_the_host_s_to_the_bit(name, made, monkeypatch):
    seen: list[list[float]] = [[], []]
    for gammas, feeder in zip(seen, (HostFeeder(Run(WHOLE[name], IMAGES)), made(WHOLE[name])), strict=True):
        with monkeypatch.context() as patch:
            real = GaussianDiffusion.training_losses

            def spy(*args, gamma, gammas=gammas, real=real, **more):
                gammas.append(float(gamma))
                return real(*args, gamma=gamma, **more)

            patch.setattr(GaussianDiffusion, "training_losses", spy)
            for _ in range(9):
                feeder.advance()
    ramp = WHOLE[name].objective.gamma
    assert seen[0] == seen[1] == [ramp.at(step) for step in range(9)]


def test_either_goes_on_from_the_other_s_states(made):
    reference = advance(Run(WHOLE["importance"], IMAGES), 3)
    feeder = made(WHOLE["importance"], 3, reference.state())
    back = Run(WHOLE["importance"], IMAGES)
    back.load(feeder.settle().state())
    advance(reference, 3)
    assert_near(back.state(), reference.state())
    advance(back)


def spoil(monkeypatch, step, value, where="loss"):
    """A loss, or a number of the gradient, of update `step` becomes `value`."""
    loss, gradients = Run.loss, Run.gradients

    def spoilt_loss(self, x0, t, places, at, gamma):
        here = (torch.arange(len(x0)) == 5) & (at == step)
        return torch.where(here, value, loss(self, x0, t, places, at, gamma))

    def spoilt_gradients(self, *args):
        losses, grads = gradients(self, *args)
        if int(args[-3]) == step:
            grads[3].view(-1)[0] = value
        return losses, grads

    if where == "loss":
        monkeypatch.setattr(Run, "loss", spoilt_loss)
    else:
        monkeypatch.setattr(Run, "gradients", spoilt_gradients)


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("step", [4, 5, 7])
def test_what_is_not_finite_stops_the_run_before_it(where, value, step, made, monkeypatch):
    spec = change(SPEC, timesteps="loss-second-moment")
    before = frozen(made(spec, step))
    spoil(monkeypatch, step, value, where)
    feeder = made(spec)
    with pytest.raises(Diverged) as caught:
        for _ in range(12):
            feeder.advance()
    indices = batch_indices(spec.seed, len(IMAGES), 8, step)
    text = str(caught.value)
    assert f"at step {step} " in text
    assert "\n" not in text
    assert (f"data indices [{indices[5]}]" if where == "loss" else f"gradient norm is {value} (loss") in text
    assert feeder.step == feeder.run.step == step
    monkeypatch.undo()
    assert frozen(feeder) == before
    monkeypatch.setattr(device_feeder, "EVERY", 4)
    for _ in range(3):
        feeder.advance()
    assert frozen(feeder) == frozen(made(spec, step + 3))


def test_a_state_with_such_an_update_is_not_given(made, monkeypatch):
    spoil(monkeypatch, 1, math.nan)
    feeder = made(SPEC, 2)  # the losses are not read yet
    with pytest.raises(Diverged, match="at step 1 "):
        feeder.settle()
    assert feeder.settle().state()["step"] == 1


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_an_overflow_of_float16_skips_the_update(where, made, monkeypatch):
    spec = change(SPEC, timesteps="loss-second-moment")
    feeder, before = made(spec, log2=20.0), made(spec, log2=20.0)
    before.advance()
    spoil(monkeypatch, 1, math.inf, where)
    feeder.advance()
    feeder.advance()
    states = before.settle().state(), feeder.settle().state()
    changed = {name for name in states[0] if states[0][name].tobytes() != states[1][name].tobytes()}
    history = {"timesteps.history", "timesteps.counts"} if where == "gradient" else set()
    assert changed == {"loss", "step", "loss_scale.log2"} | history
    assert feeder.run.scale.log2 == pytest.approx(20.001 - 1)
    for _ in range(3):
        feeder.advance()
    feeder.settle()
    assert feeder.run.scale.log2 == pytest.approx(20.001 - 1 + 0.003)
    assert float(feeder._log2) == feeder.run.scale.log2
    assert feeder.step == 5


def test_a_loss_scale_changes_no_weight(made):
    plain, feeder = made(SPEC, 3), made(SPEC, 3, log2=12.0)
    state = dict(feeder.settle().state())
    assert float(state.pop("loss_scale.log2")) == pytest.approx(12.003)
    assert_near(state, plain.settle().state())


def test_a_loss_scale_below_one_is_divergence(made, monkeypatch):
    feeder = made(SPEC, log2=0.5)
    spoil(monkeypatch, 2, math.inf, "gradient")
    with pytest.raises(Diverged, match="loss scale of float16 fell below 1 at step 2"):
        for _ in range(8):
            feeder.advance()
    assert feeder.step == 2
    assert float(feeder._log2) == feeder.run.scale.log2 >= 0


def test_an_update_that_is_not_live_changes_nothing(made):
    """A capture is preceded by such updates."""
    feeder = made(change(SPEC, timesteps="loss-second-moment", dropout=0.1), 3)
    before = frozen(feeder)
    feeder._live.fill_(False)
    for _ in range(2):
        feeder._run_update()
    feeder._live.fill_(True)
    assert frozen(feeder) == before
    feeder.advance()
    assert frozen(feeder) == frozen(made(feeder.run.spec, 4))


@pytest.mark.parametrize("micro", [8, 2])
@pytest.mark.parametrize("name", ["adm", "ddim-ip", "ddpm-y over steps", "v"])
def test_an_update_neither_looks_at_values_nor_sends_any(name, micro, monkeypatch):
    """On the meta device, where there are none; torch has no fused optimiser there."""
    meta = torch.device("meta")
    monkeypatch.setattr("ipdiff.data.images.fits", lambda images, device: True)
    monkeypatch.setattr("ipdiff.training.run.configure", lambda compute: meta)
    monkeypatch.setattr("ipdiff.training.run.initialise", lambda net, uniforms: None)
    run = Run(FAST[name], IMAGES)
    run.draws = Undrawn(meta)
    feeder = DeviceFeeder(run, passes_of(run, most=micro))
    monkeypatch.setattr(run.optimizer, "step", lambda lr, *, skip: None)
    feeder._run_update()  # the diffusion's tables are then where they are wanted
    with Looks() as looks:
        feeder._run_update()
    assert looks.seen > 1000
    assert looks.found == []


# The stage


def trained_to(spec, root, step, previous=None, **work):
    out = root / str(step)
    out.mkdir(parents=True, exist_ok=True)
    np.save(root / "images.npy", IMAGES)
    setup = Setup(spec, root / "images.npy", States(root / "states"), Work(**work))
    return segment.run(setup, out, step, previous)["state"]


@pytest.fixture
def stay(monkeypatch):
    """The stage trains with the device's feeder."""
    monkeypatch.setattr(segment, "feeder_for", lambda run, *more: DeviceFeeder(run))


def test_segments_meet(stay, tmp_path):
    whole = trained_to(SPEC, tmp_path / "whole", 9, save_every=100)
    first = trained_to(SPEC, tmp_path / "two", 3, save_every=2)
    assert trained_to(SPEC, tmp_path / "two", 9, (3, first), save_every=2) == whole


def test_the_stage_saves_nothing_behind_a_bad_update(stay, tmp_path, monkeypatch):
    monkeypatch.setattr(segment, "PAUSE", 0)
    digest = trained_to(SPEC, tmp_path, 2)
    spoil(monkeypatch, 5, math.nan)
    with pytest.raises(UserError) as caught:
        trained_to(SPEC, tmp_path, 7, (2, digest), save_every=3)
    assert "at step 5 " in str(caught.value)
    assert "the last state saved is of step 3 (" in str(caught.value)
    assert "the last checkpoint is of step 2" in str(caught.value)
    assert States(tmp_path / "states").newest(100)[0] == 3


def test_a_warning_is_heeded(stay, tmp_path):
    real = DeviceFeeder.advance

    def warned(self, check):
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, check)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeviceFeeder, "advance", warned)
        with pytest.raises(Preempted, match="at step 2 of 6; saved"):
            trained_to(SPEC, tmp_path, 6)
    assert trained_to(SPEC, tmp_path, 6) == trained_to(SPEC, tmp_path / "other", 6)


def test_which_runs_stay_on_the_device():
    gpu = dataclasses.replace(SPEC, compute=Compute("cuda"))
    assert device_feeder.feeds(gpu)
    assert device_feeder.feeds(change(gpu, micro_batch=8), Processes())
    assert not device_feeder.feeds(change(gpu, micro_batch=4))
    assert device_feeder.feeds(change(gpu, micro_batch=4, reduction="fast"))
    assert not device_feeder.feeds(change(gpu, gamma=0.0, gp_weight=0.1))
    assert not device_feeder.feeds(gpu, Processes(0, 2))
    assert not device_feeder.feeds(SPEC)
    assert type(segment.feeder_for(Run(SPEC, IMAGES))) is HostFeeder


# Batches from a memory map


def prefetch(batch=lambda step: np.arange(step, step + 3) % 20, first=0):
    return Prefetch(IMAGES, batch, first, 3, CPU)


def test_batches_come_in_order():
    batches, to = prefetch(first=2), torch.empty((3, 4, 4, 1), dtype=torch.uint8)
    for step in range(2, 12):
        batches.take_into(to)
        assert np.array_equal(to.numpy(), IMAGES[np.arange(step, step + 3) % 20])
    batches.close()


def test_no_more_batches_are_gathered_than_may_be_under_way():
    asked = []
    batches = prefetch(lambda step: asked.append(step) or np.arange(3))
    wait_until(lambda: len(asked) == DEPTH)
    time.sleep(0.1)  # one more would come now
    assert asked == list(range(DEPTH))
    batches.close()


def test_the_thread_s_error_reaches_the_feeder():
    def broken(step):
        if step == 2:
            raise OSError("disk gone")
        return np.arange(3)

    batches, to = prefetch(broken), torch.empty((3, 4, 4, 1), dtype=torch.uint8)
    batches.take_into(to)
    batches.take_into(to)
    for _ in range(2):
        with pytest.raises(OSError, match="disk gone"):
            batches.take_into(to)
    batches.close()
