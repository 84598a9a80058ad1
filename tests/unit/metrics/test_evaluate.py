"""Reference statistics and metrics.json: content, equal bytes, sensitivity, refusals."""

import functools
import hashlib
import json
import os
import signal

import numpy as np
import pytest

from ipdiff.data import prepare
from ipdiff.data.arrays import load_npz, save_npz
from ipdiff.data.spec import Source
from ipdiff.device.spec import Compute
from ipdiff.errors import Preempted, UserError
from ipdiff.metrics import classifier, evaluate, halves, neighbours, reference, sets
from ipdiff.metrics.features import extractors
from ipdiff.metrics.features.classifier_features import ClassifierFeatures
from ipdiff.metrics.features.extractors import Network
from ipdiff.metrics.spec import Classifier, KernelDistance, Reference, label
from ipdiff.work.shards import Shards

SPEC, CPU = Classifier(steps=60, width=16), Compute()
ALL = Reference()


def network(pipeline):
    return Network("classifier", pipeline / "classifier.safetensors", SPEC)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A directory with the digits, a classifier and the reference statistics."""
    out = tmp_path_factory.mktemp("pipeline")
    prepare.run(Source("digits", 8, 1), out)
    classifier.run(SPEC, CPU, out / "images.npy", out / "labels.npy", out)
    reference.run(ALL, network(out), CPU, out / "images.npy", out)
    return out


@pytest.fixture(scope="module")
def images(pipeline):
    return np.load(pipeline / "images.npy")


def measure(pipeline, tmp_path, samples, about=None, **options):
    save_npz(tmp_path / "samples.npz", arr_0=samples)
    stats = options.pop("stats", pipeline / "stats.npz")
    said = evaluate.run(network(pipeline), CPU, tmp_path / "samples.npz", stats, about or {}, tmp_path, **options)
    return {**json.loads((tmp_path / "metrics.json").read_text()), **said["measured"]}


def test_reference_has_equal_bytes_and_the_evaluators_names(pipeline, tmp_path):
    reference.run(ALL, network(pipeline), CPU, pipeline / "images.npy", tmp_path)
    assert (tmp_path / "stats.npz").read_bytes() == (pipeline / "stats.npz").read_bytes()
    stats = load_npz(pipeline / "stats.npz")
    assert {name: stats[name].shape for name in ("mu", "sigma", "mu_s", "sigma_s")} == {
        "mu": (64,),
        "sigma": (64, 64),
        "mu_s": (448,),
        "sigma_s": (448, 448),
    }
    assert int(stats["n"]) == 1797


def test_the_data_itself_is_at_distance_zero(pipeline, images, tmp_path):
    got = measure(pipeline, tmp_path, images)
    assert max(got["fid"], got["sfid"], got["pixel_fd"]) < 1e-8


def test_metrics_carry_what_they_are(pipeline, images, tmp_path):
    about = {"seed": 0, "model": "adm-ip", "nfe": 100}
    got = measure(pipeline, tmp_path, images[:500], about)
    assert set(got) == {
        *("fid", "sfid", "pixel_fd", "n", "reference_n", "features", "features_digest", "seed", "model", "nfe"),
        "dimensions",
    }
    assert got["dimensions"] == {"fid": 64, "sfid": 448, "pixel_fd": 64}
    assert got["features_digest"] == hashlib.md5((pipeline / "classifier.safetensors").read_bytes()).hexdigest()
    assert (got["n"], got["reference_n"], got["features"], got["model"]) == (
        500,
        1797,
        "classifier",
        "adm-ip",
    )
    text = (tmp_path / "metrics.json").read_text()
    words = {"features", "features_digest", "model"}
    numbers = {name: value for name, value in got.items() if name not in words}
    assert text == json.dumps(numbers, indent=1, sort_keys=True) + "\n"
    assert all(isinstance(value, int | float | dict) for value in numbers.values())
    assert all(float(f"{got[name]:.10g}") == got[name] for name in ("fid", "sfid", "pixel_fd"))
    measure(pipeline, tmp_path, images[:500], about)
    assert (tmp_path / "metrics.json").read_text() == text
    with pytest.raises(ValueError, match=r"about holds \['fid'\]"):
        measure(pipeline, tmp_path, images[:500], {"fid": 1.0})


def test_noisier_images_are_farther(pipeline, images, tmp_path):
    noise = np.random.default_rng(0).standard_normal(images.shape) * 127.5
    rows = [
        measure(pipeline, tmp_path, np.clip(np.rint(images + sigma * noise), 0, 255).astype(np.uint8))
        for sigma in (0, 0.02, 0.05, 0.1, 0.3)
    ]
    for metric in ("fid", "sfid", "pixel_fd"):
        values = [row[metric] for row in rows]
        assert values == sorted(values)
        assert values[-1] > 10 * values[1]


def test_refusals(pipeline, images, tmp_path):
    with pytest.raises(UserError, match="2 images or more; got 1"):
        measure(pipeline, tmp_path, images[:1])
    with pytest.raises(UserError, match=r"are \[4, 4, 1\] \[H, W, C\]; the reference's are \[8, 8, 1\]"):
        measure(pipeline, tmp_path, images[:, :4, :4])
    with pytest.raises(UserError, match=r"expected images uint8 \[N, H, W, C\], found float32"):
        measure(pipeline, tmp_path, images.astype(np.float32))
    save_npz(tmp_path / "other.npz", x=images)
    with pytest.raises(UserError, match="expected the array arr_0, found x"):
        evaluate.run(network(pipeline), CPU, tmp_path / "other.npz", pipeline / "stats.npz", {}, tmp_path)
    with pytest.raises(UserError, match="not statistics of the stage `reference`"):
        measure(pipeline, tmp_path, images, stats=tmp_path / "other.npz")


def test_statistics_of_another_network_are_refused(pipeline, images, tmp_path):
    stats = load_npz(pipeline / "stats.npz")
    save_npz(tmp_path / "stats.npz", **{**stats, "features": np.array("classifier 0123")})
    with pytest.raises(
        UserError, match=r"of the features classifier 0123; the samples would be .* classifier [0-9a-f]"
    ):
        measure(pipeline, tmp_path, images, stats=tmp_path / "stats.npz")


def test_a_seeded_subset_as_reference(pipeline, images, tmp_path):
    found = {}
    for name, asked in (("a", Reference(300)), ("b", Reference(300)), ("c", Reference(300, seed=1))):
        (tmp_path / name).mkdir()
        reference.run(asked, network(pipeline), CPU, pipeline / "images.npy", tmp_path / name)
        found[name] = (tmp_path / name / "stats.npz").read_bytes()
    assert found["a"] == found["b"] != found["c"]
    got = measure(pipeline, tmp_path, images, stats=tmp_path / "a" / "stats.npz")
    assert got["reference_n"] == 300
    assert 0.1 < got["fid"] < measure(pipeline, tmp_path, 255 - images)["fid"]
    with pytest.raises(UserError, match=r"reference.images is 1798, but the data set has 1797"):
        reference.run(Reference(1798), network(pipeline), CPU, pipeline / "images.npy", tmp_path)


def test_precision_and_recall(pipeline, images, tmp_path):
    near = tmp_path / "near"
    near.mkdir()
    neighbours.run(ALL, network(pipeline), CPU, pipeline / "images.npy", near)
    features, radii = np.load(near / "features.npy"), np.load(near / "radii.npy")
    assert (features.shape, features.dtype, radii.shape, radii.dtype) == ((1797, 64), np.float32, (1797, 5), np.float32)
    got = measure(pipeline, tmp_path, images, neighbours=near)
    assert (got["precision"], got["recall"]) == (1, 1)
    ones = measure(pipeline, tmp_path, images[np.load(pipeline / "labels.npy") == 1], neighbours=near)
    assert ones["precision"] == 1 > 0.7 > ones["recall"]
    rng = np.random.default_rng(0)
    noise = measure(pipeline, tmp_path, rng.integers(0, 256, (300, 8, 8, 1), dtype=np.uint8), neighbours=near)
    assert noise["precision"] < 0.2
    with pytest.raises(UserError, match="precision needs 4 images or more on both sides; got 3, 1797"):
        measure(pipeline, tmp_path, images[:3], neighbours=near)
    np.save(near / "radii.npy", radii[:-1])
    with pytest.raises(UserError, match="do not agree"):
        measure(pipeline, tmp_path, images, neighbours=near)


def test_metrics_that_are_asked_for_with_their_settings(pipeline, images, tmp_path):
    near = tmp_path / "near"
    near.mkdir()
    neighbours.run(ALL, network(pipeline), CPU, pipeline / "images.npy", near)
    plain = measure(pipeline, tmp_path, images[:400], neighbours=near)
    assert not {"kid", "kid_se", "density", "coverage"} & plain.keys()
    more = {"metrics": ["kid", "density"], "neighbours": near}
    got = measure(pipeline, tmp_path, images[:400], settings={"kid": KernelDistance(10, 100)}, **more)
    assert got.keys() - plain.keys() == {"kid", "kid_se", "density"}
    assert got["dimensions"].keys() - plain["dimensions"].keys() == {"kid", "kid_se", "density"}
    assert got["dimensions"]["kid"] == 64
    assert abs(got["kid"]) < 6 * got["kid_se"]  # images of the set itself
    assert 0.8 < got["density"] < 1.5
    text = (tmp_path / "metrics.json").read_text()
    measure(pipeline, tmp_path, images[:400], settings={"kid": KernelDistance(10, 100)}, **more)
    assert (tmp_path / "metrics.json").read_text() == text
    other = measure(pipeline, tmp_path, images[:400], settings={"kid": KernelDistance(10, 100, seed=1)}, **more)
    assert other["kid"] != got["kid"]
    with pytest.raises(UserError, match="density needs 6 images or more on both sides; got 5, 1797"):
        measure(pipeline, tmp_path, images[:5], **more)


# Halves of the real images


@pytest.mark.parametrize(
    ("of", "n", "count", "size"),
    [(Reference(), 100, 30, 30), (Reference(), 101, 3000, 50), (Reference(images=20, seed=3), 100, 30, 10)],
)
def test_halves_are_disjoint_parts_of_the_reference_images(of, n, count, size):
    first, second = halves.halves(of, n, count)
    assert len({*first} | {*second}) == 2 * size == len(first) + len(second)
    chosen = sets.rows(of, n)
    assert {*first, *second} <= {*(range(n) if chosen is None else chosen)}
    assert [list(half) for half in halves.halves(of, n, count)] == [list(first), list(second)]
    assert max(first) > n // 2 > min(second), "not the first and the last: data sets are sorted by label"


@pytest.mark.parametrize("batch", [1, 7, 500])
def test_a_part_is_the_images_at_its_places_however_they_are_batched(batch):
    rows = np.random.default_rng(0).normal(size=(40, 3))
    part = halves.Part(range(11, 29))
    for start in range(0, 40, batch):
        if start < 29:
            with pytest.raises(ValueError, match=r"images 11\.\.28 have not all been shown"):
                _ = part.moments
        part({"pool": rows[start : start + batch]})
    mean, covariance = part.moments
    np.testing.assert_allclose(mean, rows[11:29].mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(rows[11:29], rowvar=False), rtol=1e-12)


def test_samples_are_held_against_the_same_half_as_real_images(pipeline, images, tmp_path):
    halves.run(ALL, network(pipeline), CPU, pipeline / "images.npy", tmp_path, count=600)
    first, second = halves.halves(ALL, len(images), 600)
    plain = measure(pipeline, tmp_path, images[first])
    got = measure(pipeline, tmp_path, images[first], halves=tmp_path / "halves.npz")
    assert got == {**plain, "half_n": 600, "half_fid": got["half_fid_real"], "half_fid_real": got["half_fid_real"]}
    save_npz(tmp_path / "real.npz", arr_0=images[second])
    assert got["half_fid"] == pytest.approx(against(pipeline, tmp_path, images[first], images[second]), rel=1e-9)
    twice = measure(pipeline, tmp_path, images[np.concatenate([second, first])], halves=tmp_path / "halves.npz")
    assert (twice["n"], twice["half_n"]) == (1200, 600)
    assert twice["half_fid"] < 1e-8, "the first images of a set, and as many"
    noise = np.random.default_rng(0).integers(0, 256, (600, 8, 8, 1), dtype=np.uint8)
    assert measure(pipeline, tmp_path, noise, halves=tmp_path / "halves.npz")["half_fid"] > 5 * got["half_fid_real"]


def against(pipeline, tmp_path, samples, real):
    """FID of two sets of images, by the stages `reference` and `evaluate`."""
    out = tmp_path / "real"
    out.mkdir()
    np.save(out / "images.npy", real)
    reference.run(ALL, network(pipeline), CPU, out / "images.npy", out)
    return measure(pipeline, tmp_path, samples, stats=out / "stats.npz")["fid"]


def test_halves_of_too_few_or_other_images_are_no_halves(pipeline, images, tmp_path):
    np.save(tmp_path / "images.npy", images[:3])
    halves.run(ALL, network(pipeline), CPU, tmp_path / "images.npy", tmp_path, count=50)
    path = tmp_path / "halves.npz"
    assert not [name for name in measure(pipeline, tmp_path, images[:50], halves=path) if name.startswith("half")]
    halves.run(ALL, network(pipeline), CPU, pipeline / "images.npy", tmp_path, count=60)
    with pytest.raises(
        UserError, match=r"halves\.npz: halves of 60 images, but there are 50 samples; make it for as many"
    ):
        measure(pipeline, tmp_path, images[:50], halves=path)
    save_npz(path, **{**load_npz(path), "features": np.array("classifier other")})
    with pytest.raises(UserError, match=r"halves\.npz: halves of the features classifier other; the samples"):
        measure(pipeline, tmp_path, images[:60], halves=path)
    save_npz(path, n=np.array(60))
    with pytest.raises(UserError, match=r"halves\.npz: not written by the stage `halves`: no features"):
        measure(pipeline, tmp_path, images[:60], halves=path)


def test_order_of_the_images_does_not_matter(pipeline, images, tmp_path):
    """To the published ten digits, but for the rounding of sums: 1e-7 relative."""
    rng = np.random.default_rng(1)
    one = measure(pipeline, tmp_path, images[:700])
    other = measure(pipeline, tmp_path, images[rng.permutation(700)])
    for name in ("fid", "sfid", "pixel_fd"):
        assert one[name] == pytest.approx(other[name], rel=1e-7)


# Features of a large set, in units


@pytest.fixture
def small_units(monkeypatch):
    """Sets of more than one network call are cut into units of one (the classifier takes 500 images a call)."""
    monkeypatch.setattr(extractors, "UNIT", 500)


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("count", [1, 3, 7])
def test_any_number_of_processes_makes_the_same_files(pipeline, images, tmp_path, count):
    near = tmp_path / "near"
    for place in ("alone", "near", "half", "shared"):
        (tmp_path / place).mkdir()
    neighbours.run(ALL, network(pipeline), CPU, pipeline / "images.npy", near)
    save_npz(tmp_path / "samples.npz", arr_0=images[::-1])
    arguments = (network(pipeline), CPU, tmp_path / "samples.npz", pipeline / "stats.npz", {})
    halves.run(ALL, network(pipeline), CPU, pipeline / "images.npy", tmp_path / "half", count=1797)
    more = {"neighbours": near, "halves": tmp_path / "half/halves.npz"}
    evaluate.run(*arguments, tmp_path / "alone", **more)
    for rank in reversed(range(count)):
        out, shards = tmp_path / "shared", functools.partial(Shards, rank=rank, count=count)
        reference.run(ALL, network(pipeline), CPU, pipeline / "images.npy", out, shards(tmp_path / "a"))
        neighbours.run(ALL, network(pipeline), CPU, pipeline / "images.npy", out, shards(tmp_path / "b"))
        evaluate.run(*arguments, out, **more, shards=shards(tmp_path / "c"))
        halves.run(ALL, network(pipeline), CPU, pipeline / "images.npy", out, shards(tmp_path / "d"), count=1797)
        assert (len(list(out.iterdir())) == 0) == (rank > 0)
    for made, expected in {
        "stats.npz": pipeline / "stats.npz",
        "features.npy": near / "features.npy",
        "radii.npy": near / "radii.npy",
        "halves.npz": tmp_path / "half/halves.npz",
        "metrics.json": tmp_path / "alone/metrics.json",
    }.items():
        assert (tmp_path / "shared" / made).read_bytes() == expected.read_bytes(), made


@pytest.mark.usefixtures("small_units")
def test_a_signal_and_a_damaged_unit_cost_one_unit_each(pipeline, tmp_path, monkeypatch):
    calls, real = [], ClassifierFeatures.__call__

    def counted(extractor, images):
        calls.append(len(images))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(extractor, images)

    monkeypatch.setattr(ClassifierFeatures, "__call__", counted)
    shards = Shards(tmp_path / "shards")
    arguments = (ALL, network(pipeline), CPU, pipeline / "images.npy", tmp_path, shards)
    with pytest.raises(Preempted, match="what was finished is saved"):
        reference.run(*arguments)
    assert not (tmp_path / "stats.npz").exists()
    assert calls == [500, 500, 500]  # the signal came inside the third call, which was saved
    unit = next(shards.directory.glob("000000500-*.safetensors"))
    unit.write_bytes(unit.read_bytes()[:-1])
    reference.run(*arguments)
    assert sorted(calls[3:]) == [297, 500]
    assert (tmp_path / "stats.npz").read_bytes() == (pipeline / "stats.npz").read_bytes()


def test_a_set_of_one_unit_is_not_saved_on_the_way(pipeline, tmp_path):
    reference.run(ALL, network(pipeline), CPU, pipeline / "images.npy", tmp_path, Shards(tmp_path / "shards"))
    assert (tmp_path / "stats.npz").read_bytes() == (pipeline / "stats.npz").read_bytes()
    assert not (tmp_path / "shards").exists()


def test_pooled_features_are_kept_as_float32_and_no_more_than_were_announced():
    kept = extractors.Pooled(5)
    rows = np.arange(20.0).reshape(5, 4)
    kept({"pool": rows[:3]})
    np.testing.assert_array_equal(kept.array(), rows[:3])
    kept({"pool": rows[3:]})
    assert kept.array().dtype == np.float32
    np.testing.assert_array_equal(kept.array(), rows)
    with pytest.raises(ValueError, match="6 images were shown; 5 were announced"):
        kept({"pool": rows[:1]})


def test_on_pixels_as_features_fid_is_the_pixel_distance(images, tmp_path):
    pixels = Network("pixels")
    np.save(tmp_path / "images.npy", images)
    reference.run(ALL, pixels, CPU, tmp_path / "images.npy", tmp_path)
    save_npz(tmp_path / "samples.npz", arr_0=images[:500])
    words = evaluate.run(pixels, CPU, tmp_path / "samples.npz", tmp_path / "stats.npz", {}, tmp_path)["measured"]
    got = json.loads((tmp_path / "metrics.json").read_text())
    assert got["fid"] == got["pixel_fd"] > 0
    assert "sfid" not in got
    assert label("fid", words["features"], words["features_digest"]) == "FD (pixels:1)"
