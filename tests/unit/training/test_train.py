"""Training: restarts, segments, micro-batches and updates, on runs that take milliseconds a step."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import random
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from unit.tiny import ADM, DDIM, IMAGES, RUNS, advance, change, files, flip_bit
from unit.told import heard

from ipdiff import rng
from ipdiff.data.batches import batch_indices, flips
from ipdiff.data.images import to_network
from ipdiff.data.readers.digits import read
from ipdiff.data.spec import Source
from ipdiff.device import memory
from ipdiff.diffusion import GaussianDiffusion
from ipdiff.errors import Preempted, UserError
from ipdiff.pipeline import config
from ipdiff.spec import Ramp, RunSpec, Training
from ipdiff.training import optimizer, resume, segment
from ipdiff.training.distributed import Processes, passes_of, share_of
from ipdiff.training.host_feeder import HostFeeder, mean_of
from ipdiff.training.run import Run
from ipdiff.training.segment import Setup
from ipdiff.work.spec import Work
from ipdiff.work.train_states import States, opened, tensors_of

ROOT = Path(__file__).parents[3]


def advanced(spec, steps, state=None):
    """A run that has done `steps` updates, from step 0 or from a state."""
    run = Run(spec, IMAGES)
    if state is not None:
        run.load(state)
    return advance(run, steps)


def frozen(run):
    """name -> (dtype, shape, bytes) of everything in a train state."""
    return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in run.state().items()}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npy"
    np.save(path, IMAGES)
    return path


class Chain:
    """Segments of a run in a directory of its own."""

    def __init__(self, spec: RunSpec, images: Path, root: Path) -> None:
        self.spec, self.images, self.root = spec, images, root
        self.states = States(root / "states")
        self.start: Path | None = None

    def segment(self, step, previous=None, save_every=100, save_seconds=300.0, micro_batch=None) -> str:
        """Train a segment; returns the digest of its state."""
        out = self.root / str(step)
        out.mkdir(parents=True, exist_ok=True)
        work = Work(save_every, save_seconds, micro_batch=micro_batch)
        setup = Setup(self.spec, self.images, self.states, work, self.start, 0, 1)
        return segment.run(setup, out, step, previous)["state"]

    def forget(self) -> None:
        for path in self.states.directory.iterdir():
            path.unlink()

    def published(self, step) -> dict[str, bytes]:
        return files(self.root / str(step))


@pytest.fixture
def chain(images, tmp_path):
    return lambda name, spec=RUNS["adm"]: Chain(spec, images, tmp_path / name)


class Inputs:
    """What training hands to the loss, put together again from its micro-batches."""

    def __init__(self, monkeypatch) -> None:
        self.calls: list[tuple] = []
        self.terms: list[dict] = []
        real = GaussianDiffusion.training_losses

        def spy(diffusion, model, x0, t, eps, xi=None, *, probe=None, gamma=None):
            terms = real(diffusion, model, x0, t, eps, xi, probe=probe, gamma=gamma)
            self.calls.append((x0, t, eps, xi, probe))
            self.terms.append({key: value.detach() for key, value in terms.items()})
            return terms

        monkeypatch.setattr(GaussianDiffusion, "training_losses", spy)

    def take(self):
        calls, self.calls = self.calls, []
        return [None if part[0] is None else torch.cat(part) for part in zip(*calls, strict=True)]


# Restarts and segments


@pytest.mark.parametrize("name", RUNS)
def test_a_restart_changes_no_bit(name, tmp_path):
    straight = advanced(RUNS[name], 6)
    first = advanced(RUNS[name], 3)
    States(tmp_path).save(3, first.state())
    halfway = frozen(first)
    step, state = States(tmp_path).newest(6)
    assert step == 3
    second = advanced(RUNS[name], 3, tensors_of(opened(state)))
    assert frozen(second) == frozen(straight)
    moved = [key for key, value in frozen(second).items() if value != halfway[key]]
    assert any(key.startswith("model.") for key in moved)
    assert any(key.startswith("ema.") for key in moved)


def test_the_loss_history_survives_a_restart():
    first = advanced(RUNS["importance"], 4)
    second = advanced(RUNS["importance"], 0, first.state())
    u = torch.linspace(0, 0.99, 8, dtype=torch.float64)
    t, weights = second.timesteps.sample(u)
    assert len(set(weights.tolist())) == 2
    assert torch.equal(first.timesteps.sample(u)[0], t)


def test_segments_with_moved_boundaries_meet(chain):
    one, two, whole = chain("one"), chain("two"), chain("whole")
    one.segment(6, (2, one.segment(2)))
    two.segment(6, (4, two.segment(4, (2, two.segment(2)))))
    digest = whole.segment(6)
    assert one.published(6)["ema.safetensors"] == two.published(6)["ema.safetensors"]
    assert one.published(6)["ema.safetensors"] == whole.published(6)["ema.safetensors"]
    assert one.published(2) == two.published(2)
    assert one.states.find(6, digest)
    assert two.states.find(6, digest)


def test_a_checkpoint_says_what_it_is(chain):
    run = chain("run")
    run.segment(2)
    with safe_open(run.root / "2/ema.safetensors", "np") as file:
        metadata = file.metadata()
    assert list(metadata) == ["ipdiff"]  # of two the format keeps no order
    said = json.loads(metadata["ipdiff"])
    assert RunSpec.from_json(said.pop("run")) == run.spec
    assert said == {"step": 2, "gamma": run.spec.objective.gamma}


def test_progress_inside_a_segment_changes_no_bit(chain):
    often, seldom = chain("often"), chain("seldom")
    assert often.segment(5, save_every=1) == seldom.segment(5)
    assert often.published(5) == seldom.published(5)


@pytest.mark.parametrize(
    ("took", "every", "steps"), [(0.0, 0.0, [1, 2, 3]), (0.125, 0.0, [1, 8, 9]), (0.125, 9.0, [9, 18, 19])]
)
def test_a_state_is_saved_when_its_time_has_come_and_at_most_a_fiftieth_of_the_time(
    chain, monkeypatch, took, every, steps
):
    """An update takes a second, by this clock."""
    saved, now = [], [0.0]

    def save(states, step, tensors):
        now[0] += took
        saved.append(step)
        return "0" * 32

    def second(step):
        now[0] += 1.0

    monkeypatch.setattr(States, "save", save)
    monkeypatch.setattr(segment, "time", SimpleNamespace(monotonic=lambda: now[0]))
    run = chain("run")
    with heard(second):
        run.segment(steps[-1], save_every=100, save_seconds=every)
    assert saved == steps  # the last is the checkpoint's


def test_a_warning_inside_an_update_is_seen_before_the_next_micro_batch(chain, monkeypatch):
    spec = change(ADM, micro_batch=2, timesteps="loss-second-moment")
    whole, run = chain("whole", spec), chain("run", spec)
    whole.segment(4)
    parts, real = [], Run.loss

    def warned(self, x0, t, places, step, gamma):
        parts.append((step, places.start))
        if parts[-1] == (2, 2):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, x0, t, places, step, gamma)

    monkeypatch.setattr(Run, "loss", warned)
    with pytest.raises(Preempted, match="at step 2 of 4; saved"):
        run.segment(4)
    assert parts[-1] == (2, 2)
    assert run.states.newest(4)[0] == 2
    monkeypatch.undo()
    run.segment(4)
    assert run.published(4) == whole.published(4)


def test_a_lost_state_is_trained_again_through_the_recorded_digest(chain):
    kept, lost = chain("kept"), chain("lost")
    digest = kept.segment(3)
    assert lost.segment(3) == digest
    lost.forget()
    assert lost.segment(5, (3, digest)) == kept.segment(5, (3, digest))
    assert lost.published(5) == kept.published(5)


def test_a_damaged_state_is_trained_again(chain):
    run, other = chain("run"), chain("other")
    digest = run.segment(3)
    flip_bit(run.states.directory / f"{3:09d}-{digest}.safetensors")
    with heard() as told:
        run.segment(5, (3, digest))
    assert told.begun == [("updates", 5, 0)]
    assert told.done == [1, 2, 3, 4, 5]
    other.segment(5, (3, other.segment(3)))
    assert run.published(5) == other.published(5)


@pytest.fixture
def weights(tmp_path):
    """Where the EMA of a run of an equal network lies, and what it is."""
    ema = advanced(change(RUNS["adm"], seed=8), 3).ema_weights()
    save_file(ema, tmp_path / "start.safetensors")
    return tmp_path / "start.safetensors", ema


def test_a_run_starts_from_given_weights_and_all_else_begins_anew(weights):
    path, ema = weights
    run, fresh = Run(RUNS["adm"], IMAGES, load_file(path)), Run(RUNS["adm"], IMAGES)
    state, plain = dict(run.state()), dict(fresh.state())
    assert state.keys() == plain.keys()
    for name, value in ema.items():
        for kind in ("model", "ema"):
            assert np.array_equal(state.pop(f"{kind}.{name}"), value)
            assert not np.array_equal(plain.pop(f"{kind}.{name}"), value) or not value.any()
    assert {name: value.tobytes() for name, value in state.items()} == {n: v.tobytes() for n, v in plain.items()}
    assert run.step == 0
    advance(run)
    assert not np.array_equal(run.ema_weights()["out.2.weight"], ema["out.2.weight"])


def test_a_started_run_is_the_same_through_segments_restarts_and_lost_states(weights, chain, tmp_path):
    whole, parts, unstarted = chain("whole"), chain("parts"), chain("unstarted")
    whole.start = parts.start = weights[0]
    whole.segment(6)
    digest = parts.segment(2)
    parts.forget()  # nothing is left to go on from: it trains again from the start, through the digest
    final = parts.segment(6, (2, digest), save_every=3)
    assert parts.published(6)["ema.safetensors"] == whole.published(6)["ema.safetensors"]
    parts.forget()
    out = tmp_path / "resumed"
    out.mkdir()
    setup = Setup(parts.spec, parts.images, parts.states, Work(), parts.start)
    resume.run(parts.states, out, 6, final, lambda: setup)
    assert hashlib.md5((out / "state.safetensors").read_bytes()).hexdigest() == final
    unstarted.segment(6)
    assert unstarted.published(6)["ema.safetensors"] != whole.published(6)["ema.safetensors"]


@pytest.mark.parametrize("store", ["kept", "lost", "a damaged file of that name"])
def test_another_digest_than_the_recorded_one_is_one_clear_error(chain, store):
    run, recorded = chain("run"), "0" * 32
    digest = run.segment(3)
    if store != "kept":
        run.forget()
    if store.startswith("a damaged"):
        (run.states.directory / f"{3:09d}-{recorded}.safetensors").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        run.segment(5, (3, recorded))
    text = str(caught.value)
    assert "\n" not in text
    assert digest in text
    assert recorded in text
    assert "step 3" in text
    assert run.published(5) == {}
    assert run.segment(5, (3, digest))  # nothing was spoilt by the attempt


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stopped_segment_goes_on_where_it_was(chain, name):
    stopped, calm = chain("stopped"), chain("calm")
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1)]

    def stop(step):
        if step == 2:
            os.kill(os.getpid(), name)

    with pytest.raises(Preempted, match="step 2 of 5"), heard(stop):
        stopped.segment(5)
    assert stopped.published(5) == {}
    assert stopped.states.newest(5)[0] == 2
    with heard() as told:
        again = stopped.segment(5)
    assert (told.begun, told.done) == ([("updates", 5, 2)], [3, 4, 5])
    assert again == calm.segment(5)
    assert stopped.published(5) == calm.published(5)
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1)] == handlers


def test_resume_publishes_the_recorded_state(chain, tmp_path):
    run = chain("run")
    digest = run.segment(2)
    last = run.segment(5, (2, digest), save_every=1)

    def published(step, digest):
        setup = Setup(run.spec, run.images, run.states, Work())
        resume.run(run.states, tmp_path, step, digest, lambda: setup)
        return (tmp_path / "state.safetensors").read_bytes()

    kept = published(5, last)
    assert kept == run.states.find(5, last).read_bytes()
    assert run.states.find(2, digest) is None
    assert hashlib.md5(published(2, digest)).hexdigest() == digest  # trained again, though newer states fill the store
    run.forget()
    assert published(5, last) == kept
    with pytest.raises(UserError, match="recorded state 000"):
        published(5, "0" * 32)


# Data, noise and micro-batches


def in_passes(spec, micro, steps, start):
    """A run taken on from a state, with passes of at most `micro` images."""
    if spec.training.reduction == "exact":
        return advanced(change(spec, micro_batch=micro), steps, start)
    run = Run(spec, IMAGES)
    run.load(start)
    feeder = HostFeeder(run, passes=passes_of(run, most=micro))
    for _ in range(steps):
        feeder.advance()
    return run


@pytest.mark.parametrize("reduction", ["exact", "fast"])
def test_micro_batches_share_data_noise_timesteps_and_masks(reduction, monkeypatch):
    spec = change(RUNS["adm-ip"], dropout=0.3, lr=5e-3, reduction=reduction)
    start = advanced(spec, 10).state()  # not step 0: there the net is zero whatever the masks are
    inputs = Inputs(monkeypatch)
    found = {}
    for micro in (8, 4, 2):
        run = in_passes(spec, micro, 2, start)
        found[micro] = (run.losses, inputs.take(), run.state(), frozen(run))
    losses, (x0, t, eps, xi, _), state, bits = found[8]
    assert not torch.equal(eps, xi)
    for micro in (4, 2):
        np.testing.assert_allclose(found[micro][0], losses, rtol=1e-5)
        for one, other in zip((x0, t, eps, xi), found[micro][1], strict=False):
            assert torch.equal(one, other)
        for name in run.names:
            key = f"optimizer.exp_avg.{name}"
            np.testing.assert_allclose(found[micro][2][key], state[key], rtol=1e-3, atol=1e-5, err_msg=name)
    assert bits != found[4][3]  # but sums are taken in another order


@pytest.mark.parametrize("micro", [1, 2, 3, 4])
def test_the_loss_history_is_the_same_for_every_cut(micro):
    spec = change(RUNS["importance"], reduction="fast")
    start = advanced(spec, 3).state()
    whole, cut = (in_passes(spec, size, 4, start).state() for size in (8, micro))
    assert np.array_equal(whole["timesteps.counts"], cut["timesteps.counts"])
    assert whole["timesteps.counts"].min() == 10  # it decides the timesteps by now
    np.testing.assert_allclose(cut["timesteps.history"], whole["timesteps.history"], rtol=1e-3)
    np.testing.assert_allclose(cut["loss"], whole["loss"], rtol=1e-4)


def gradients_up_to(monkeypatch, most):
    """Passes of more than `most` images run out of memory; returns the sizes of those that are tried."""
    tried, real = [], Run.gradients

    def gradients(self, pictures, *args):
        tried.append(len(pictures))
        if len(pictures) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(self, pictures, *args)

    monkeypatch.setattr(Run, "gradients", gradients)
    return tried


def test_a_pass_that_does_not_fit_is_tried_again_smaller(monkeypatch):
    spec = change(RUNS["adm"], reduction="fast")
    expected = frozen(in_passes(spec, 2, 3, advanced(spec, 2).state()))
    run = advanced(spec, 2)
    tried = gradients_up_to(monkeypatch, 3)
    advance(run, 3)
    assert frozen(run) == expected  # the tries have left nothing behind
    assert tried == [8, 4, 2, 2, 2, 2, *[8, 4, 2, 2, 2, 2][2:] * 2]


def test_a_fixed_micro_batch_that_does_not_fit_is_one_line(monkeypatch, chain):
    run = chain("run", change(ADM, micro_batch=4))
    digest = run.segment(2)
    gradients_up_to(monkeypatch, 3)
    with pytest.raises(UserError) as caught:
        run.segment(4, (2, digest))
    assert str(caught.value).startswith("the memory of this machine does not hold a pass of 4 images: CUDA out of mem")
    assert "; 1 image would fit: set training.micro_batch to 1, which" in str(caught.value)  # 4 are rehearsed at most
    assert "\n" not in str(caught.value)
    assert not run.published(4)


def test_a_host_without_the_memory_refuses_or_cuts(monkeypatch, chain):
    room = passes_of(Run(ADM, IMAGES))._fitting(3)[1]
    monkeypatch.setattr(memory, "host_free", lambda: room)
    with pytest.raises(UserError, match="a pass of 4 images: it needs .* GiB are free; 2 images would fit: set"):
        chain("exact", change(ADM, micro_batch=4)).segment(2)
    fast = change(ADM, micro_batch=None, reduction="fast")
    cut = chain("fast", fast).segment(2)
    monkeypatch.undo()
    assert cut == chain("asked", fast).segment(2, micro_batch=2) != chain("whole", fast).segment(2)


def test_a_run_goes_on_with_another_cut(chain):
    spec = change(RUNS["importance"], reduction="fast", micro_batch=None)
    run, other = chain("run", spec), chain("other", spec)
    run.segment(6, (3, run.segment(3, micro_batch=2)), micro_batch=3)
    other.segment(6)
    found, expected = (load_file(max(each.states.directory.glob("*6-*"))) for each in (run, other))
    assert np.array_equal(found["timesteps.counts"], expected["timesteps.counts"])
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-4)


def test_a_batch_is_what_its_step_and_places_say(monkeypatch):
    inputs = Inputs(monkeypatch)
    run = advanced(change(RUNS["adm-ip"], flip=True), 2)
    x0, t, eps, xi = (part[8:] for part in inputs.take()[:4])
    seed, places = run.spec.seed, range(8)
    expected = to_network(IMAGES[batch_indices(seed, 20, 8, 1)])
    mirrored = flips(seed, 8, 1)
    assert 0 < mirrored.sum() < 8
    expected[mirrored] = expected[mirrored].flip(3)
    assert torch.equal(x0, expected)
    u = rng.uniforms(seed, rng.Purpose.TIMESTEP, places, 1, step=1)[:, 0]
    assert t.tolist() == [int(value * 20) for value in u]
    for noise, purpose in ((eps, rng.Purpose.EPS), (xi, rng.Purpose.XI)):
        assert np.array_equal(noise.numpy(), rng.normals(seed, purpose, places, (1, 4, 4), step=1))


def test_without_flip_no_image_is_mirrored(monkeypatch):
    inputs = Inputs(monkeypatch)
    advanced(change(ADM, flip=False), 1)
    assert torch.equal(inputs.take()[0], to_network(IMAGES[batch_indices(3, 20, 8, 0)]))


def test_a_ramp_is_closed_form_and_exact_at_its_ends():
    line, cosine = Ramp(0.1, 0.5, until=14, after=4), Ramp(0.3, 0.1, until=8, shape="cosine")
    assert [line.at(step) for step in (0, 4, 14, 10**6)] == [0.1, 0.1, 0.5, 0.5]
    assert line.at(9) == pytest.approx(0.3)
    assert [cosine.at(step) for step in (0, 8, 9)] == [0.3, 0.1, 0.1]
    assert [cosine.at(step) for step in (2, 4)] == pytest.approx([0.2 + 0.1 * math.sqrt(0.5), 0.2])
    with pytest.raises(ValueError, match="after is 8, not less than until, 8"):
        Ramp(0.0, 0.1, until=8, after=8)


@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_a_ramp_that_stays_is_the_constant(gamma):
    spec = change(RUNS["adm-ip"], gamma=Ramp(gamma, gamma, until=3))
    assert frozen(advanced(spec, 5)) == frozen(advanced(change(spec, gamma=gamma), 5))
    assert RunSpec.from_json(spec.to_json()) == spec


def test_a_ramp_ends_as_its_last_constant(monkeypatch):
    """From step `until` on, an update is that of a run with the last strength, from the same state."""
    spec = change(RUNS["adm-ip"], gamma=Ramp(0.0, 0.4, until=3))
    state = advanced(spec, 3).state()
    after = frozen(advanced(change(spec, gamma=0.4), 2, state))
    assert frozen(advanced(spec, 2, state)) == after
    assert frozen(advanced(change(spec, gamma=0.3), 2, state)) != after


def test_noise_that_an_objective_does_not_use_is_not_drawn(monkeypatch):
    inputs = Inputs(monkeypatch)
    drawn = {}
    for name in ("adm-wd", "adm-ip", "gamma over t", "gamma over steps", "adm-gp"):
        advanced(RUNS[name], 1)
        drawn[name] = [part is not None for part in inputs.take()[3:]]
    assert drawn == {
        "adm-wd": [False, False],
        "adm-ip": [True, False],
        "gamma over t": [True, False],
        "gamma over steps": [True, False],
        "adm-gp": [False, True],
    }


@pytest.mark.parametrize(("n", "size"), [(10, 4), (10, 10), (7, 23)])
def test_every_epoch_shows_every_image_once(n, size):
    steps = n * 6
    places = np.concatenate([batch_indices(5, n, size, step) for step in range(steps)])
    epochs = places[: len(places) // n * n].reshape(-1, n)
    assert len(epochs) >= 6
    assert (np.sort(epochs, axis=1) == np.arange(n)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > len(epochs) // 2
    assert batch_indices(5, n, size, 3).tolist() != batch_indices(6, n, size, 3).tolist()


def test_flips_are_fair_and_belong_to_step_and_place():
    drawn = np.array([flips(1, 16, step) for step in range(200)])
    assert abs(drawn.mean() - 0.5) < 0.03
    assert (abs(drawn.mean(axis=0) - 0.5) < 0.15).all()
    assert len({row.tobytes() for row in drawn}) == 200
    assert np.array_equal(flips(1, 4, 7), drawn[7, :4])
    assert not np.array_equal(np.array([flips(2, 16, step) for step in range(4)]), drawn[:4])


@pytest.mark.parametrize("name", ["adm", "adm-gp", "ddim"])
def test_no_global_generator_is_used_or_disturbed(name):
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
        results.append(frozen(advanced(RUNS[name], 2)))
        after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
    assert results[0] == results[1]


def test_seeds_give_different_runs():
    assert advanced(ADM, 0).state().keys() == advanced(change(ADM, seed=4), 0).state().keys()
    one, other = advanced(ADM, 0), advanced(change(ADM, seed=4), 0)
    weights = "model.input_blocks.0.0.weight"
    assert not np.array_equal(one.state()[weights], other.state()[weights])
    assert advance(one).losses[-1] != advance(other).losses[-1]


# Updates


def added(leaves, order):
    """Sum leaves as a nested tuple says."""
    if isinstance(order, int):
        return leaves[order].clone()
    total = added(leaves, order[0])
    for part in order[1:]:
        total += added(leaves, part)
    return total


TREES = {
    1: 0,
    2: (0, 1),
    3: (0, 1, 2),
    4: ((0, 1), (2, 3)),
    5: (0, 1, 2, 3, 4),
    6: ((0, 1, 2), (3, 4, 5)),
    8: (((0, 1), (2, 3)), ((4, 5), (6, 7))),
}


@pytest.mark.parametrize("count", TREES)
def test_tree_sum_adds_in_its_written_order(count):
    leaves = torch.from_numpy(np.random.default_rng(0).standard_normal((8, 1000)).astype(np.float32))
    asked = []

    def leaf(i):
        asked.append(i)
        return [leaves[i].clone(), 2 * leaves[i]]

    total = optimizer.tree_sum(count, leaf)
    assert torch.equal(total[0], added(leaves, TREES[count]))
    assert torch.equal(total[1], 2 * total[0])
    assert asked == list(range(count))
    if count == 8:
        assert not torch.equal(total[0], added(leaves, tuple(range(8))))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_that_sum_a_subtree_each_give_the_same_bits(processes):
    leaves = torch.from_numpy(np.random.default_rng(1).standard_normal((8, 1000)).astype(np.float32))
    share = 8 // processes
    partial = [optimizer.tree_sum(share, lambda i: [leaves[i].clone()], rank * share)[0] for rank in range(processes)]
    (joined,) = optimizer.tree_sum(processes, lambda rank: [partial[rank]])
    assert torch.equal(joined, optimizer.tree_sum(8, lambda i: [leaves[i].clone()])[0])


def test_learning_rate():
    def rates(steps, **fields):
        return [optimizer.learning_rate(Training(8, 2.0, **fields), step) for step in steps]

    assert rates([0, 5, 10**6]) == [2.0, 2.0, 2.0]
    assert rates([0, 1, 3, 4, 50], lr_warmup=4) == [0.5, 1.0, 2.0, 2.0, 2.0]
    assert rates([0, 5, 10, 11], lr_decay="linear", lr_decay_steps=10) == [2.0, 1.0, 0.0, 0.0]
    cosine = rates([0, 2, 5, 10, 99], lr_decay="cosine", lr_decay_steps=10)
    assert cosine == pytest.approx([2.0, 1 + math.cos(math.pi / 5), 1.0, 0.0, 0.0], abs=1e-15)
    both = rates([0, 1, 5], lr_warmup=2, lr_decay="linear", lr_decay_steps=10)
    assert both == pytest.approx([1.0, 1.8, 1.0])


def test_the_optimiser_takes_the_rate_of_its_step():
    run = Run(change(ADM, lr_warmup=4), IMAGES)
    rates, step = [], run.optimizer.step

    def noted(lr, **more):
        rates.append(lr)
        step(lr, **more)

    run.optimizer.step = noted
    advance(run, 5)
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3])


def test_ema_decay_and_update():
    assert optimizer.ema_decay(Training(8, 1.0, ema_decay=0.99), 0) == 0.99
    warm = Training(8, 1.0, ema_decay=0.9, ema_warmup=True)
    assert [optimizer.ema_decay(warm, step) for step in (0, 2, 1000)] == [1 / 10, 3 / 12, 0.9]
    ema, params = [torch.tensor([1.0, -2.0])], [torch.tensor([3.0, 2.0])]
    optimizer.ema_update(ema, params, 0.75)
    torch.testing.assert_close(ema[0], torch.tensor([1.5, -1.0]))
    assert params[0].tolist() == [3.0, 2.0]


def test_ema_follows_the_weights():
    run = advanced(ADM, 2)
    before = {name: value.copy() for name, value in run.state().items()}
    advance(run)
    after = run.state()
    for name, value in run.ema_weights().items():
        expected = 0.9 * before[f"ema.{name}"] + 0.1 * after[f"model.{name}"]
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)
    assert any(not np.array_equal(value, after[f"model.{name}"]) for name, value in run.ema_weights().items())


def first_update(spec):
    """Weights before and after the first update, and the gradient that its first moment remembers (beta1 = 0.9)."""
    run = Run(spec, IMAGES)
    before = {name: value.copy() for name, value in run.state().items()}
    advance(run)
    state = run.state()
    return {
        name: (before[f"model.{name}"], state[f"model.{name}"], 10 * state[f"optimizer.exp_avg.{name}"])
        for name in run.names
    }


def test_weight_decay_of_adamw_is_decoupled():
    lr, decay = 0.01, 0.5
    plain = first_update(change(ADM, lr=lr))
    for name, (p0, p1, grad) in first_update(change(ADM, lr=lr, weight_decay=decay)).items():
        np.testing.assert_array_equal(grad, plain[name][2])  # the gradient knows nothing of it
        expected = p0 * (1 - lr * decay) - lr * grad / (np.abs(grad) + 1e-8)
        np.testing.assert_allclose(p1, expected, rtol=1e-5, atol=1e-6)
    moved = "input_blocks.0.0.weight"
    assert np.abs(plain[moved][1] - (plain[moved][0] * (1 - lr * decay))).max() > 1e-3


def test_coupled_weight_decay_is_part_of_the_gradient():
    plain = first_update(ADM)
    for name, (p0, _, grad) in first_update(change(ADM, decay="coupled", weight_decay=0.5)).items():
        np.testing.assert_allclose(grad, plain[name][2] + 0.5 * p0, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("decay", "kind"), [("decoupled", torch.optim.AdamW), ("coupled", torch.optim.Adam)])
def test_a_run_with_weight_decay_is_updated_by_torchs_optimiser(decay, kind, monkeypatch):
    """The weights of a training run beside those of torch's class, fed with the same gradients."""
    run = Run(change(ADM, lr=0.01, weight_decay=0.3, decay=decay), IMAGES)
    theirs = [p.detach().clone().requires_grad_() for p in run.params]
    other, step = kind(theirs, lr=0.01, weight_decay=0.3, fused=True), run.optimizer.step

    def both(rate, *, skip=None):
        for p, copy in zip(run.params, theirs, strict=True):
            copy.grad = p.grad.clone()
        step(rate, skip=skip)
        other.step()

    monkeypatch.setattr(run.optimizer, "step", both)
    for _ in range(4):
        advance(run)
    assert all(torch.equal(p, copy) for p, copy in zip(run.params, theirs, strict=True))


def test_gradients_are_clipped_to_the_global_norm():
    def norm(spec):
        return math.sqrt(
            sum(float(np.square(grad, dtype=np.float64).sum()) for _, _, grad in first_update(spec).values())
        )

    whole = norm(change(DDIM, grad_clip=None))
    assert whole > 0.2
    assert norm(change(DDIM, grad_clip=0.1)) == pytest.approx(0.1, rel=1e-4)
    assert norm(change(DDIM, grad_clip=1e9)) == pytest.approx(whole, rel=1e-5)


def test_the_gradient_penalty_is_part_of_the_loss(monkeypatch):
    plain, weight = change(RUNS["adm-gp"], gp_weight=0.0), 0.01
    start = advanced(plain, 3).state()  # not step 0: there the net is zero, and so is its Jacobian
    inputs = Inputs(monkeypatch)
    without = advanced(plain, 1, start)
    inputs.terms.clear()
    penalised = advanced(change(plain, gp_weight=weight), 1, start)
    penalty = float(torch.cat([terms["gp"] for terms in inputs.terms]).mean())
    assert penalty > 0
    assert penalised.losses[-1] == pytest.approx(without.losses[-1] + weight * penalty, rel=1e-5)
    differing = 0
    for name, value in penalised.state().items():
        assert np.isfinite(value).all()
        if name.startswith("optimizer.exp_avg."):
            differing += not np.allclose(value, without.state()[name], rtol=1e-3, atol=0)
    assert differing > 10


def test_the_penalised_digits_network_keeps_the_norm_of_its_prediction():
    """At the strength of params.yaml; with the penalty summed over the pixels the network answers with zeros."""
    params, images = config.load(ROOT / "params.yaml"), digits()
    x0 = to_network(images[:128])
    eps = torch.from_numpy(rng.normals(0, rng.Purpose.EPS, range(128), tuple(x0.shape[1:])))
    norms = {}
    for model in ("adm", "adm-gp"):
        spec = change(params.run_spec("digits_short", model, 0), batch_size=32, lr_warmup=50)
        run = advance(Run(spec, images), 200)
        for t in (100, 300, 500):
            with torch.no_grad():
                predicted = run.net.eval()(run.diffusion.q_sample(x0, t, eps), torch.full((128,), t))
            norms[model, t] = float(predicted.square().mean().sqrt())
            run.net.train()
    for t in (100, 300, 500):
        assert norms["adm", t] > 0.6
        assert 0.85 < norms["adm-gp", t] / norms["adm", t] < 1.1


def digits():
    """The digits data set as `prepare` makes it, [1797, 8, 8, 1] uint8."""
    return next(read(Source("digits", 8, 1), (), Path(), {}))[0]


@pytest.mark.parametrize("name", ["adm", "ddim-ip"])
def test_training_learns(name):
    run = advanced(change(RUNS[name], lr=5e-3), 60)
    assert run.losses.shape == (60,)
    assert run.losses.dtype == np.float32
    assert run.losses[-15:].mean() < 0.9 * run.losses[:5].mean()


def test_a_loss_that_is_not_finite_stops_training():
    run = advanced(change(ADM, lr=1e30), 1)
    before = frozen(run)
    with pytest.raises(UserError) as caught:
        advance(run)
    text = str(caught.value)
    assert "\n" not in text
    assert "step 1 " in text
    assert str(batch_indices(3, 20, 8, 1).tolist()) in text
    assert frozen(run) == before


def spoil_gradient(monkeypatch, step, value):
    """One number of the gradient of update `step` becomes `value`; the losses stay."""
    real = Run.gradients

    def spoilt(self, *args):
        losses, grads = real(self, *args)
        if self.step == step:
            grads[3].view(-1)[0] = value
        return losses, grads

    monkeypatch.setattr(Run, "gradients", spoilt)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_stops_training_at_its_step(chain, monkeypatch, value):
    run = chain("run", change(ADM, timesteps="loss-second-moment"))
    digest = run.segment(2)
    spoil_gradient(monkeypatch, 4, value)
    monkeypatch.setattr(segment, "PAUSE", 0)
    with pytest.raises(UserError) as caught:
        run.segment(6, (2, digest), save_every=1)
    text = str(caught.value)
    assert "\n" not in text
    assert re.search(rf"gradient norm is {value} \(loss \d", text)
    assert "at step 4 " in text
    assert str(batch_indices(3, 20, 8, 4).tolist()) in text
    assert f"the last state saved is of step 4 ({run.states.directory})" in text
    assert "the last checkpoint is of step 2" in text
    monkeypatch.undo()
    other = chain("other", run.spec)
    other.segment(6, (2, other.segment(2)))
    run.segment(6, (2, digest))  # nothing was spoilt
    assert run.published(6) == other.published(6)


def scaled(spec=ADM, log2=20.0):
    """A run with float16's loss scale, which a CPU trains in float32."""
    run = Run(spec, IMAGES)
    run.scale = optimizer.LossScale(log2)
    return run


def test_a_power_of_two_as_loss_scale_changes_no_weight():
    plain, run = advanced(DDIM, 1), scaled(DDIM, 12.0)
    advance(run)
    assert run.scale.log2 == pytest.approx(12.001)
    state = dict(run.state())
    assert float(state.pop("loss_scale.log2")) == run.scale.log2
    for name, value in plain.state().items():
        np.testing.assert_allclose(state[name], value, rtol=1e-5, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_an_overflow_of_float16_skips_the_update(monkeypatch, value):
    run = scaled(change(ADM, timesteps="loss-second-moment"))
    advance(run)
    before = frozen(run)
    spoil_gradient(monkeypatch, 1, value)
    advance(run)
    after = frozen(run)
    assert run.step == 2
    assert run.scale.log2 == pytest.approx(20.001 - 1)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"loss", "step", "loss_scale.log2", "timesteps.history", "timesteps.counts"}
    advance(run)
    assert run.scale.log2 == pytest.approx(20.001 - 1 + 0.001)
    moved = frozen(run)
    assert any(moved[name] != after[name] for name in after if name.startswith("ema."))


def test_a_loss_that_overflows_leaves_no_mark_in_the_loss_history(monkeypatch):
    run = scaled(change(ADM, timesteps="loss-second-moment"))
    real = Run.gradients
    overflown = torch.full((4,), np.inf, dtype=torch.float64)
    monkeypatch.setattr(Run, "gradients", lambda *args: (overflown, real(*args)[1]))
    advance(run)
    assert not run.timesteps.state()["counts"].any()
    assert run.scale.log2 == 19


def test_the_loss_scale_survives_a_restart():
    first = scaled()
    advance(first, 3)
    second = scaled()
    second.load(first.state())
    assert second.scale.log2 == first.scale.log2 == pytest.approx(20.003)


def test_a_loss_scale_below_one_is_no_overflow_but_divergence(monkeypatch):
    run = scaled(log2=0.5)
    spoil_gradient(monkeypatch, 0, math.inf)
    with pytest.raises(UserError, match="loss scale of float16 fell below 1 at step 0"):
        advance(run)


def test_a_mean_is_rounded_once():
    values = np.random.default_rng(0).standard_normal(1000) * 10.0 ** np.arange(1000).clip(max=12)
    assert mean_of(values) == math.fsum(values) / 1000
    assert mean_of(values) == mean_of(values[::-1])
    assert math.isnan(mean_of(np.array([1.0, math.nan])))
    assert mean_of(np.array([1.0, math.inf])) == math.inf


@pytest.mark.parametrize(("micro", "counts"), [(8, [1]), (4, [1, 2]), (1, [1, 2, 4, 8])])
def test_processes_that_can_share_an_exact_update(micro, counts):
    spec = Training(8, 1.0, micro_batch=micro)
    for count in range(1, 10):
        if count in counts:
            shares = [share_of(spec, Processes(rank, count)) for rank in range(count)]
            assert [place for share in shares for place in share] == list(range(8))
            assert {len(share) for share in shares} == {8 // count}
        else:
            with pytest.raises(UserError, match=f"{count} processes cannot share the {8 // micro} micro-batches"):
                share_of(spec, Processes(0, count))
    with pytest.raises(UserError, match="use 1 or 2, or"):
        share_of(Training(6, 1.0, micro_batch=1), Processes(0, 3))


@pytest.mark.parametrize("batch", [8, 128, 256])
def test_any_number_of_processes_shares_a_fast_update(batch):
    spec = Training(batch, 1.0, reduction="fast")
    for count in range(1, 9):
        shares = [share_of(spec, Processes(rank, count)) for rank in range(count)]
        assert [place for share in shares for place in share] == list(range(batch))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    with pytest.raises(UserError, match=f"{batch + 1} processes cannot share the {batch} images of an update; use few"):
        share_of(spec, Processes(0, batch + 1))


def test_images_of_another_shape_are_refused():
    with pytest.raises(UserError, match=r"\(4, 4, 3\)"):
        Run(ADM, np.zeros((20, 4, 4, 3), np.uint8))


# The loss curve


def curve(path):
    with path.open(newline="") as stream:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(stream)]


def test_a_segment_writes_its_own_losses(chain):
    run = chain("run")
    run.segment(5, (2, run.segment(2)))
    losses = advanced(run.spec, 5).losses
    assert curve(run.root / "2" / "loss.csv") == [(i + 1, pytest.approx(losses[i], rel=1e-6)) for i in range(2)]
    assert curve(run.root / "5" / "loss.csv") == [(i + 1, pytest.approx(losses[i], rel=1e-6)) for i in range(2, 5)]


def test_a_long_loss_curve_is_averaged(tmp_path):
    losses = np.random.default_rng(0).random(1050).astype(np.float32)
    segment.write_losses(tmp_path / "loss.csv", losses, 50)
    rows = curve(tmp_path / "loss.csv")
    assert len(rows) == segment.LOSS_ROWS
    assert [step for step, _ in rows] == list(range(55, 1051, 5))
    means = losses[50:].astype(np.float64).reshape(-1, 5).mean(axis=1)
    assert [loss for _, loss in rows] == pytest.approx(means, rel=1e-6)


def test_a_curve_that_does_not_divide_evenly_loses_no_update(tmp_path):
    losses = np.random.default_rng(1).random(333).astype(np.float32)
    segment.write_losses(tmp_path / "loss.csv", losses, 0)
    steps, means = zip(*curve(tmp_path / "loss.csv"), strict=True)
    assert steps[-1] == 333
    counts = np.diff([0, *steps])
    assert set(counts.tolist()) == {1, 2}
    assert float(np.dot(counts, means)) == pytest.approx(float(losses.sum(dtype=np.float64)), rel=1e-6)
