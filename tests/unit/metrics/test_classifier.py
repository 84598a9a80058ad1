"""The feature network: accuracy, equal bytes, shapes, refusals."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ipdiff.data import prepare
from ipdiff.data.spec import Source
from ipdiff.device.compute import configure
from ipdiff.device.spec import Compute
from ipdiff.errors import UserError
from ipdiff.metrics import classifier
from ipdiff.metrics.features.classifier_features import ClassifierFeatures
from ipdiff.metrics.features.classifier_net import FeatureNet, load, save
from ipdiff.metrics.features.extractors import Statistics, show
from ipdiff.metrics.features.pixels import pixels
from ipdiff.metrics.spec import Classifier

CPU = Compute()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    out = tmp_path_factory.mktemp("digits")
    prepare.run(Source("digits", 8, 1), out)
    return out


def train(spec, digits, out):
    out.mkdir(exist_ok=True)
    classifier.run(spec, CPU, digits / "images.npy", digits / "labels.npy", out)
    return out / "classifier.safetensors"


def test_default_settings_are_accurate(digits, tmp_path):
    train(Classifier(), digits, tmp_path)
    report = json.loads((tmp_path / "accuracy.json").read_text())
    assert report["accuracy"] >= 0.98
    assert (report["holdout"], report["classes"]) == (359, 10)


def test_two_trainings_give_equal_bytes(digits, tmp_path):
    spec = Classifier(steps=20, width=8)
    torch.manual_seed(1)
    first = train(spec, digits, tmp_path / "a")
    torch.manual_seed(2)
    np.random.default_rng(3)
    second = train(spec, digits, tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    other = train(Classifier(steps=20, width=8, seed=1), digits, tmp_path / "c")
    assert other.read_bytes() != first.read_bytes()
    with safe_open(first, framework="pt") as file:
        assert file.metadata() == {"image_size": "8"}


def test_no_holdout(digits, tmp_path):
    train(Classifier(steps=1, width=4, holdout=0.0), digits, tmp_path)
    assert json.loads((tmp_path / "accuracy.json").read_text()) == {
        "accuracy": None,
        "classes": 10,
        "holdout": 0,
    }


@pytest.mark.parametrize(("size", "channels", "side"), [(8, 1, 8), (28, 1, 14), (32, 3, 16), (64, 3, 16)])
def test_feature_shapes(size, channels, side):
    spec = Classifier(width=6, features=5)
    net = FeatureNet(spec, size, channels, 4)
    x = torch.zeros(3, channels, size, size)
    pool, spatial = net.features(x)
    assert (net(x).shape, pool.shape, spatial.shape) == ((3, 4), (3, 5), (3, 7 * side * side))
    assert min(pool.min(), spatial.min()) >= 0


def test_rebuilds_from_its_file(tmp_path):
    spec = Classifier(width=6, features=5)
    net = FeatureNet(spec, 8, 1, 10)
    save(net, tmp_path / "net.safetensors")
    x = torch.linspace(-1, 1, 2 * 64).reshape(2, 1, 8, 8)
    again = load(tmp_path / "net.safetensors", spec)
    assert torch.equal(again(x), net(x))
    assert not again.training
    with pytest.raises(UserError, match="not a classifier of these settings"):
        load(tmp_path / "net.safetensors", Classifier(width=8, features=5))
    (tmp_path / "net.safetensors").write_bytes(b"12345678")
    with pytest.raises(UserError, match=r"net\.safetensors"):
        load(tmp_path / "net.safetensors", spec)


def test_features_and_statistics(tmp_path):
    spec = Classifier(width=6, features=5)
    save(FeatureNet(spec, 8, 1, 10), tmp_path / "net.safetensors")
    extract = ClassifierFeatures(tmp_path / "net.safetensors", spec, CPU)
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
    features = extract(images)
    assert {kind: rows.shape for kind, rows in features.items()} == {
        "pool": (30, 5),
        "spatial": (30, 448),
        "pixel": (30, 64),
    }
    extract.batch_size = 7
    found = Statistics()
    show(extract, images, found)
    stats = found.arrays(extract, images.shape[1:])
    assert sorted(stats) == [
        *("features", "image_shape", "mu", "mu_pixel", "mu_s", "n", "sigma", "sigma_pixel", "sigma_s")
    ]
    assert str(stats["features"]).startswith("classifier ")
    assert (int(stats["n"]), stats["image_shape"].tolist()) == (30, [8, 8, 1])
    np.testing.assert_allclose(stats["mu"], features["pool"].mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["sigma_pixel"], np.cov(features["pixel"], rowvar=False), atol=1e-6)
    with pytest.raises(UserError, match="2 images or more; got 1"):
        show(extract, images[:1])
    with pytest.raises(UserError, match=r"\[8, 8, 3\] \[H, W, C\]; the classifier was trained on \[8, 8, 1\]"):
        extract(np.repeat(images, 3, axis=3))


def test_pixels_of_large_images_are_averaged():
    images = np.zeros((2, 64, 64, 3), np.uint8)
    images[:, ::2] = 255
    got = pixels(images)
    assert got.shape == (2, 3 * 32 * 32)
    np.testing.assert_allclose(got, 0, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full(1797, -1, np.int64), "data set has no labels: features 'classifier' need them"),
        (np.zeros(1797, np.int64), "all images have one label"),
        (np.zeros(5, np.int64), r"expected labels int64 \[1797\], found int64 \[5\]"),
        (np.zeros(1797, np.float32), "found float32"),
    ],
)
def test_labels_are_checked(digits, tmp_path, labels, message):
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(UserError, match=message):
        classifier.run(Classifier(), CPU, digits / "images.npy", tmp_path / "labels.npy", tmp_path)


def test_compute_refusals(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds no CUDA device"):
        configure(Compute("cuda"))
    with pytest.raises(ValueError, match="threads is 0"):
        Compute(threads=0)
    assert configure(Compute(threads=1)) == torch.device("cpu")
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
