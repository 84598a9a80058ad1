"""Sampling: image i depends on its number alone; every sampler; exposure bias; the file."""

from __future__ import annotations

import os
import re
import signal
import tempfile
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from unit.tiny import IMAGES, RUNS, Looks, Undrawn, advance, change
from unit.told import heard

from ipdiff import rng
from ipdiff.data.arrays import save_npz, stream_npz
from ipdiff.data.images import to_network, to_uint8
from ipdiff.device.spec import Compute
from ipdiff.diffusion import GaussianDiffusion
from ipdiff.errors import Preempted, UserError
from ipdiff.rng import Purpose
from ipdiff.sample_sets import sample
from ipdiff.sample_sets.sample import ImageSampler
from ipdiff.sample_sets.spec import Sampler, Sampling
from ipdiff.schedule import make_betas, respace
from ipdiff.training.run import Run
from ipdiff.work.shards import Shards, cut, unit_of

MODELS = {"adm": change(RUNS["adm-ip"], gamma=0.0, lr=5e-3), "adm-ip": change(RUNS["adm-ip"], lr=5e-3)}
SET = Sampling(num_samples=10, batch_size=4)
T = 20
ALPHAS_CUMPROD = np.cumprod(1 - make_betas("cosine", T))
CHAINS = {
    "ancestral-20": range(20),
    "ancestral-5": respace(T, "5"),
    "ancestral-1": [0],
    "ddim0-5": respace(T, "5"),
    "ddim0-ddim5": respace(T, "ddim5"),
    "ddim0-uniform6": respace(T, "uniform6"),
    "ddim0.5-quad5": respace(T, "quad5"),
    "dpmpp2m-5": respace(T, "5"),
    "dpmpp2m-1": [0],
    "unipc-logsnr6": respace(T, "logsnr6", ALPHAS_CUMPROD),
    "unipc-2": [0, 19],
    "ancestral-5-es1.1": respace(T, "5"),
    "unipc-karras5-es0.02t+0.9": respace(T, "karras5", ALPHAS_CUMPROD),
    "exposure-7": range(7),
    "exposure-1": range(1),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """EMA weights of two models trained from one seed, far enough to draw something."""
    root = tmp_path_factory.mktemp("weights")
    for name, spec in MODELS.items():
        save_file(advance(Run(spec, IMAGES), 15).ema_weights(), root / f"{name}.safetensors")
    return {name: root / f"{name}.safetensors" for name in MODELS}


@pytest.fixture
def sampler(weights):
    def make(name, model="adm", images=IMAGES, **changes):
        return ImageSampler(
            change(MODELS[model], **changes),
            weights[model],
            Sampler.parse(name),
            clip_denoised=True,
            compute=Compute(),
            images=images,
        )

    return make


class Recorder:
    """A model that keeps what it is shown."""

    def __init__(self, model) -> None:
        self.model, self.x, self.t = model, [], []

    def __call__(self, x, t):
        self.x.append(x.clone())
        self.t.append(int(t[0]))
        assert (t == t[0]).all()
        return self.model(x, t)


def watched(drawer):
    drawer.model = recorder = Recorder(drawer.model)
    return recorder


@pytest.fixture
def drawn(monkeypatch):
    """Every noise image drawn: (purpose, image, step) -> list of the arrays."""
    noises: dict[tuple, list] = {}
    real = rng.normals

    def spy(seed, purpose, index, shape, *, step=0, lane=0):
        out = real(seed, purpose, index, shape, step=step, lane=lane)
        for image, noise in zip(index, out, strict=True):
            noises.setdefault((purpose, image, step), []).append(noise)
        return out

    monkeypatch.setattr(rng, "normals", spy)
    return noises


def oracle(x0):
    """The network that knows the images, at whatever t: eps and a middling variance."""

    def model(x, t):
        a = torch.from_numpy(ALPHAS_CUMPROD)[t].reshape(-1, 1, 1, 1)
        eps = ((x.double() - a.sqrt() * x0.double()) / (1 - a).sqrt()).float()
        return torch.cat([eps, torch.zeros_like(eps)], 1)

    return model


# Names


@pytest.mark.parametrize("name", ["ancestral-5", "ddim0.5-quad5", "unipc-karras5"])
@pytest.mark.parametrize("scale", ["", "-es1.1", "-es0.02t+0.9"])
@pytest.mark.parametrize("precision", ["", "-float32", "-bfloat16", "-float16"])
@pytest.mark.parametrize("images", ["", "-n5000"])
def test_what_stands_behind_a_chain_is_read_and_written_alike(name, scale, precision, images):
    text = f"{name}{scale}{precision}{images}"
    found = Sampler.parse(text)
    assert found.name == text
    assert (found.precision, found.images) == (precision[1:] or None, 5000 if images else None)
    assert found.bare == (text == name)
    assert found.label().endswith(", N = 5,000") == bool(images)


@pytest.mark.parametrize(
    "name", ["ancestral-5-n", "ancestral-5-n5-es2", "ancestral-5-n5-float32", "ancestral-5-float8", "n5"]
)
def test_it_stands_in_one_order(name):
    with pytest.raises(ValueError, match="is unknown; use"):
        Sampler.parse(name)


# Image i


@pytest.mark.parametrize("name", ["ancestral-5", "ddim0.5-quad5", "exposure-7"])
def test_the_noise_of_an_image_is_its_own(sampler, drawn, name):
    whole, part = sampler(name), sampler(name)
    first, other = watched(whole), watched(part)
    whole.draw(range(8))
    keys = set(drawn)
    part.draw(range(4, 6))
    assert set(drawn) == keys
    assert torch.equal(first.x[0][4:6], other.x[0])
    twice = [pair for (_, image, _), pair in drawn.items() if image in (4, 5)]
    assert all(len(pair) == 2 and np.array_equal(*pair) for pair in twice)
    everything = [pair[0].tobytes() for pair in drawn.values()]
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("name", ["ancestral-20", "ddim0-5", "exposure-7"])
def test_an_image_hardly_depends_on_its_batch(sampler, name):
    drawer = sampler(name)
    whole = drawer.draw(range(8)).astype(int)
    assert np.abs(np.diff(whole, axis=0)).max() > 20
    for size in (1, 3, 8):
        parts = np.concatenate([drawer.draw(index) for index in cut(8, size)])
        assert np.abs(parts - whole).max() <= 1


def test_batches_cut_a_set():
    assert [list(part) for part in cut(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(cut(6, 3)) == [range(3), range(3, 6)]


@pytest.fixture
def run(sampler, tmp_path):
    def make(out, name="ancestral-5", model="adm", sampling=SET, shards=None, **options):
        if shards is None:
            shards = Shards(Path(tempfile.mkdtemp(dir=tmp_path)))  # nothing is there yet
        return sample.run(sampler(name, model), sampling, out, shards, **options)

    return make


def arr_0(out):
    with np.load(out / "samples.npz", allow_pickle=False) as file:
        assert file.files == ["arr_0"]
        return file["arr_0"]


def test_a_set_of_its_own_size_has_the_first_images(run, tmp_path):
    (tmp_path / "few").mkdir()
    run(tmp_path)
    run(tmp_path / "few", "ancestral-5-n6")
    few = arr_0(tmp_path / "few")
    assert len(few) == 6 < len(arr_0(tmp_path))
    assert np.array_equal(few[:4], arr_0(tmp_path)[:4])  # the last call is of another size


def test_a_larger_set_begins_with_the_smaller_one(run, tmp_path):
    (tmp_path / "large").mkdir()
    run(tmp_path, sampling=Sampling(8, 4))
    run(tmp_path / "large", sampling=Sampling(12, 4))
    assert np.array_equal(arr_0(tmp_path), arr_0(tmp_path / "large")[:8])


@pytest.mark.parametrize("name", ["ancestral-5", "exposure-7"])
def test_one_image_drawn_alone_is_that_of_the_set(run, sampler, tmp_path, name):
    run(tmp_path, name)
    found = arr_0(tmp_path)
    drawer = sampler(name)
    for index in (0, 3, 4, 9):
        call = unit_of(index, SET.num_samples, SET.batch_size)
        assert np.array_equal(drawer.draw(call)[index - call.start], found[index])


def test_an_image_belongs_to_one_call():
    assert [unit_of(index, 10, 4) for index in (0, 5, 9)] == [range(4), range(4, 8), range(8, 10)]
    for index in (-1, 10):
        with pytest.raises(UserError, match=rf"index is {index}; the set has images 0\.\.9"):
            unit_of(index, 10, 4)


def test_two_models_of_a_seed_share_their_noise(sampler, drawn):
    firsts = []
    for model in MODELS:
        drawer = sampler("ancestral-5", model)
        firsts.append((watched(drawer), drawer.draw(range(4))))
    (one, image), (other, other_image) = firsts
    assert torch.equal(one.x[0], other.x[0])
    assert not np.array_equal(image, other_image)
    assert all(len(pair) == 2 and np.array_equal(*pair) for pair in drawn.values())


def test_another_seed_is_other_noise(sampler):
    one, other = sampler("ancestral-5"), sampler("ancestral-5", seed=4)
    seen = watched(one), watched(other)
    one.draw(range(4))
    other.draw(range(4))
    assert not torch.equal(seen[0].x[0], seen[1].x[0])


def test_no_global_generator_is_used_or_disturbed(sampler):
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(sampler("ancestral-5").draw(range(4)))
        assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(*results)


# Samplers


@pytest.mark.parametrize("name", CHAINS)
def test_a_sampler_walks_its_chain(sampler, drawn, name):
    drawer = sampler(name)
    seen = watched(drawer)
    made = drawer.draw(range(3))
    assert made.shape == (3, 4, 4, 1)
    assert made.dtype == np.uint8
    assert seen.t == list(reversed(CHAINS[name]))
    assert drawer.nfe == len(seen.t)
    counts = Counter(purpose for purpose, _, _ in drawn)
    start = Purpose.EXPOSURE_EPS if name.startswith("exposure") else Purpose.SAMPLE_START
    noisy = 0 if name.startswith(("ddim0-", "dpmpp2m-", "unipc-")) else len(seen.t) - 1  # no noise in the last step
    assert counts == Counter({start: 3, **({Purpose.SAMPLE_STEP: 3 * noisy} if noisy else {})})
    assert {step for purpose, _, step in drawn if purpose is Purpose.SAMPLE_STEP} == (
        set(map(int, CHAINS[name])) - {0} if noisy else set()
    )


@pytest.mark.parametrize(
    "name", ["ancestral-20", "ancestral-5", "ddim0-5", "ddim0.5-ddim5", "dpmpp2m-8", "unipc-8", "exposure-7"]
)
def test_with_a_perfect_network_every_chain_ends_at_the_images(sampler, name):
    drawer = sampler(name)
    wanted = IMAGES[drawer_order(drawer)[:4]] if name.startswith("exposure") else IMAGES[:4]
    drawer.model = oracle(to_network(wanted))
    assert np.abs(drawer.draw(range(4)).astype(int) - wanted).max() <= 1


def test_eta_changes_the_images(sampler):
    images = {sampler(f"ddim{eta}-5").draw(range(4)).tobytes() for eta in (0, 0.5, 1)}
    assert len(images) == 3


def test_unclipped_sampling_leaves_the_range(weights):
    made = {}
    for clip in (True, False):
        drawer = ImageSampler(
            MODELS["adm"], weights["adm"], Sampler.parse("ddim0-5"), clip_denoised=clip, compute=Compute()
        )
        seen = watched(drawer)
        drawer.model.model = lambda x, t: torch.cat([-x, torch.zeros_like(x)], 1)
        drawer.draw(range(4))
        made[clip] = float(seen.x[-1].abs().max())
    assert made[False] > 1.5 * made[True]


# Exposure bias


def drawer_order(drawer):
    return rng.permutation(drawer.spec.seed, Purpose.EXPOSURE_ORDER, len(IMAGES))


@pytest.mark.parametrize("steps", [1, 7, 20])
def test_exposure_starts_from_diffused_images(sampler, steps):
    drawer = sampler(f"exposure-{steps}")
    seen = watched(drawer)
    drawer.draw(range(2, 6))
    x0 = to_network(IMAGES[drawer_order(drawer)[2:6]]).double().numpy()
    eps = rng.normals(drawer.spec.seed, Purpose.EXPOSURE_EPS, range(2, 6), (1, 4, 4))
    a = ALPHAS_CUMPROD[steps - 1]
    np.testing.assert_allclose(seen.x[0].numpy(), np.sqrt(a) * x0 + np.sqrt(1 - a) * eps, atol=1e-6)


def test_one_exposure_step_of_a_zero_network_leaves_the_noise(sampler):
    drawer = sampler("exposure-1")
    drawer.model = lambda x, t: torch.zeros(len(x), 2, 4, 4)
    x0 = to_network(IMAGES[drawer_order(drawer)[:4]])
    eps = torch.from_numpy(rng.normals(drawer.spec.seed, Purpose.EXPOSURE_EPS, range(4), (1, 4, 4)))
    a = ALPHAS_CUMPROD[0]
    expected = to_uint8((x0 + float(np.sqrt(1 / a - 1)) * eps).clamp(-1, 1)).astype(int)
    made = drawer.draw(range(4)).astype(int)
    assert np.abs(made - expected).max() <= 1
    assert np.abs(made - to_uint8(x0).astype(int)).max() > 10


def test_exposure_uses_every_image_before_it_repeats_one(sampler, drawn):
    drawer = sampler("exposure-1")
    n = len(IMAGES)
    drawer.model = oracle(to_network(IMAGES[drawer_order(drawer)[np.arange(n + 3) % n]]))
    made = drawer.draw(range(n + 3)).astype(int)
    assert sorted(drawer_order(drawer).tolist()) == list(range(n))
    assert np.abs(made[:n] - IMAGES[drawer_order(drawer)]).max() <= 1
    assert np.abs(made[n:] - made[:3]).max() <= 1
    assert not np.array_equal(drawn[Purpose.EXPOSURE_EPS, n, 0][0], drawn[Purpose.EXPOSURE_EPS, 0, 0][0])


def test_exposure_without_images_is_refused(sampler):
    with pytest.raises(UserError, match="starts from real images"):
        sampler("exposure-7", images=None)


# The stage


def test_the_file_is_stable_and_plain(run, tmp_path):
    with heard() as told:
        made = run(tmp_path)
    first = (tmp_path / "samples.npz").read_bytes()
    assert made == {"n": 10, "nfe": 5}
    assert (told.begun, told.done) == ([("images", 10, 0)], [4, 8, 10])
    assert arr_0(tmp_path).shape == (10, 4, 4, 1)
    assert arr_0(tmp_path).dtype == np.uint8
    run(tmp_path)
    assert (tmp_path / "samples.npz").read_bytes() == first
    run(tmp_path, model="adm-ip")
    assert (tmp_path / "samples.npz").read_bytes() != first


@pytest.mark.parametrize(
    ("sampling", "name", "n"),
    [
        (Sampling(6, 4, exposure_samples=5), "exposure-2", 5),
        (Sampling(6, 4), "exposure-2", 6),
        (Sampling(6, 4, exposure_samples=5), "ancestral-5", 6),
    ],
)
def test_exposure_sets_may_have_another_size(run, tmp_path, sampling, name, n):
    assert run(tmp_path, name, sampling=sampling)["n"] == n
    assert len(arr_0(tmp_path)) == n


@pytest.mark.parametrize("name", ["ancestral-21", "ddim0-21", "exposure-21"])
def test_chains_that_do_not_fit_are_refused(sampler, name):
    with pytest.raises(UserError) as caught:
        sampler(name)
    assert "T = 20; use 1..20" in str(caught.value)
    assert name.partition("-")[2] in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ancestral-0", "steps is 0; use 1 or more"),
        ("exposure-0", "steps is 0; use 1 or more"),
        ("ddim0-quad0", "steps is 0; use 1 or more"),
        ("ddim2-5", "eta is 2; use 0..1"),
        ("ancestral-5-es0", "b is 0.0; use more than 0"),
        ("unipc-5-es1", "eps is divided by 1; leave the suffix -es out"),
        ("dpmpp2m-5-es0t+1", "eps is divided by 1; leave the suffix -es out"),
        ("ancestral-5-n1", "images is 1; use 2 or more"),
    ],
)
def test_a_sampler_out_of_range_is_named(name, reason):
    with pytest.raises(ValueError, match=f"sampler '{re.escape(name)}': {re.escape(reason)}"):
        Sampler.parse(name)


def test_a_restart_draws_only_what_is_missing(run, tmp_path, monkeypatch):
    drawn = []
    real = ImageSampler.draw

    def draw(drawer, index, *check):
        drawn.append(index)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return real(drawer, index, *check)

    monkeypatch.setattr(ImageSampler, "draw", draw)
    shards = Shards(tmp_path / "shards")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, shards=shards)
    assert not (tmp_path / "samples.npz").exists()
    run(tmp_path, shards=shards)
    assert drawn == [range(4), range(4, 8), range(8, 10), range(8, 10)]
    first = (tmp_path / "samples.npz").read_bytes()
    run(tmp_path)
    assert (tmp_path / "samples.npz").read_bytes() == first


@pytest.mark.parametrize("count", [1, 3, 7])
def test_any_number_of_shards_makes_the_same_file(run, tmp_path, count):
    for path in (tmp_path / "one", tmp_path / "many"):
        path.mkdir()
    run(tmp_path / "one")
    for rank in reversed(range(count)):
        run(tmp_path / "many", shards=Shards(tmp_path / "shards", rank, count))
    assert (tmp_path / "many/samples.npz").read_bytes() == (tmp_path / "one/samples.npz").read_bytes()


@pytest.mark.parametrize("number", [1, 3])
def test_a_signal_is_seen_between_two_steps_of_the_chain(run, sampler, tmp_path, monkeypatch, number):
    steps = []
    real = GaussianDiffusion.ancestral_step

    def step(diffusion, model, x, i, *rest):
        steps.append(i)
        if len(steps) == 5 + number:  # inside the second network call of 5 steps
            os.kill(os.getpid(), signal.SIGUSR1)
        return real(diffusion, model, x, i, *rest)

    monkeypatch.setattr(GaussianDiffusion, "ancestral_step", step)
    shards = Shards(tmp_path / "shards")
    with pytest.raises(Preempted, match="run me again"):
        run(tmp_path, shards=shards)
    assert (len(steps), steps[-1]) == (5 + number, 5 - number)
    assert shards.has(range(4))
    assert not shards.has(range(4, 8))


# The chain as a program over fixed tensors: what a GPU captures and launches


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("model", MODELS)
@torch.inference_mode()
def test_a_chain_that_counts_its_own_steps_draws_the_same_images(name, model, sampler):
    drawer = sampler(name, model)
    chain = drawer.program(3)
    assert drawer.program(3) is chain
    for index in (range(3), range(7, 10)):
        x = drawer.begin(index)
        checks = []
        found = chain.run(x, index, lambda checks=checks: checks.append(0)).clone()
        torch.testing.assert_close(found, drawer.walk(index), rtol=1e-4, atol=1e-4)
        assert len(checks) == drawer.nfe


@pytest.mark.parametrize("name", ["ancestral-5-es1.1", "ddim0.5-quad5", "ddim0-5", "dpmpp2m-5", "unipc-5"])
@torch.inference_mode()
def test_a_step_of_a_chain_neither_looks_at_values_nor_sends_any(name, sampler, monkeypatch):
    """On the meta device, where there are none."""
    meta = torch.device("meta")
    monkeypatch.setattr("ipdiff.sample_sets.sample.configure", lambda compute: meta)
    drawer = sampler(name)
    drawer.draws = Undrawn(meta)
    chain = drawer.program(3)
    chain._step()
    with Looks() as looks:
        chain._step()
    assert looks.seen > 100
    assert looks.found == []


@torch.inference_mode()
def test_warm_ups_leave_no_trace_in_a_chain(sampler):
    drawer = sampler("ancestral-5")
    chain = drawer.program(2)
    fresh = chain.run(drawer.begin(range(2)), range(2), lambda: None).clone()
    for _ in range(9):
        chain._step()
    assert torch.equal(chain.run(drawer.begin(range(2)), range(2), lambda: None), fresh)


def test_a_set_is_written_without_being_held_in_memory(tmp_path):
    rows, shape = 64, (128, 128, 3)
    parts = (np.full((rows, *shape), n, np.uint8) for n in range(30))
    tracemalloc.start()
    stream_npz(tmp_path / "large.npz", "arr_0", (30 * rows, *shape), parts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * rows * np.prod(shape) < 30 * rows * np.prod(shape) / 5
    with np.load(tmp_path / "large.npz") as file:
        assert (file["arr_0"][:, 0, 0, 0] == np.repeat(np.arange(30), rows)).all()


def test_a_stream_has_the_bytes_of_one_write(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 1), dtype=np.uint8)
    save_npz(tmp_path / "whole.npz", arr_0=array)
    stream_npz(tmp_path / "parts.npz", "arr_0", array.shape, np.split(array, [3, 4]))
    assert (tmp_path / "parts.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    for parts in ([array[:9]], [array, array[:1]], [array.astype(np.int64)], [array[..., 0]]):
        with pytest.raises(ValueError, match="part"):
            stream_npz(tmp_path / "wrong.npz", "arr_0", array.shape, parts)
