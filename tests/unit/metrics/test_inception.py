"""The Inception extractor against a direct computation, TensorFlow's old resizing, and files that are not it."""

import hashlib
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from inception import build, write_inception

from ipdiff.device.spec import Compute
from ipdiff.errors import IntegrityError, UserError
from ipdiff.metrics.features import inception_file
from ipdiff.metrics.features.extractors import Network, Statistics, show
from ipdiff.metrics.features.inception import InceptionFeatures, resize
from ipdiff.metrics.spec import INCEPTION_SHA256, Inception

CPU = Compute()
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 12, 10, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_inception(tmp_path_factory.mktemp("network") / "network.pt", seed=5)


@pytest.fixture(scope="module")
def extractor(path):
    return InceptionFeatures(path, CPU)


def legacy_bilinear(image: np.ndarray, size: int) -> np.ndarray:
    """Compute TensorFlow 1's resize_bilinear(align_corners=False) as it is written there, in float64."""
    for axis in (0, 1):
        place = np.arange(size) * (image.shape[axis] / size)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, image.shape[axis] - 1)
        weight = np.expand_dims(place - low, tuple(set(range(image.ndim)) - {axis}))
        image = np.take(image, low, axis) * (1 - weight) + np.take(image, high, axis) * weight
    return image


@pytest.mark.parametrize("shape", [(12, 10), (32, 32), (64, 64), (299, 299)])
def test_resize_is_tensorflows_old_one(shape):
    image = RNG.integers(0, 256, (*shape, 3)).astype(np.float64)
    got = resize(torch.from_numpy(image).permute(2, 0, 1)[None].to(torch.float32))[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(got, legacy_bilinear(image, 299), atol=0.02)  # grey levels, of 255


def test_resize_is_not_the_usual_one():
    x = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).to(torch.float32)
    usual = torch.nn.functional.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
    assert (resize(x) - usual).abs().mean() > 1


def test_features_are_those_of_the_network(extractor):
    network, got = build(5), extractor(IMAGES)
    caught = {}
    network.layers.mixed_6.conv.register_forward_hook(lambda module, inputs, output: caught.update(map=output))
    with torch.no_grad():
        x = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).to(torch.float32)
        pool = network(x, return_features=True)
        biased, unbiased = network(x), network(x, no_output_bias=True)
    np.testing.assert_allclose(got["pool"], pool.numpy(), rtol=1e-4, atol=1e-5)
    spatial = caught["map"][:, :7].permute(0, 2, 3, 1).reshape(6, 2023)  # H, W, C: the official evaluator's order
    np.testing.assert_allclose(got["spatial"], spatial.numpy(), rtol=1e-4, atol=1e-5)
    assert (got["spatial"] >= 0).all()
    assert got["spatial"].std() > 0.1
    probabilities = torch.softmax(torch.from_numpy(got["logits"]), dim=1).numpy()
    np.testing.assert_allclose(probabilities, unbiased.numpy(), rtol=1e-3)
    assert np.abs(probabilities - biased.numpy()).max() > 1e-3 * probabilities.max()


def test_grey_images_are_repeated_to_three_channels(extractor):
    grey = IMAGES[..., :1]
    one, three = extractor(grey), extractor(np.repeat(grey, 3, axis=3))
    for kind in ("pool", "spatial", "logits"):
        assert np.array_equal(one[kind], three[kind])
    assert one["pixel"].shape == (6, 120)


def test_batches_and_order_do_not_matter(extractor):
    """To 1e-5 of the largest value: convolutions of other batches may sum in another order."""
    whole = extractor(IMAGES)
    order = np.array([3, 1, 5, 0, 4, 2])
    shuffled = extractor(IMAGES[order])
    for kind in ("pool", "spatial", "logits"):
        single = np.concatenate([extractor(IMAGES[i : i + 1])[kind] for i in range(6)])
        scale = np.abs(whole[kind]).max()
        np.testing.assert_allclose(single, whole[kind], atol=1e-5 * scale)
        np.testing.assert_allclose(shuffled[kind], whole[kind][order], atol=1e-5 * scale)


def statistics(extract, images):
    found = Statistics()
    show(extract, images, found)
    return found.arrays(extract, images.shape[1:])


def test_the_same_bytes_every_time(extractor, path):
    first = statistics(extractor, IMAGES)
    for other in (extractor, InceptionFeatures(path, CPU)):
        again = statistics(other, IMAGES)
        assert all(np.array_equal(first[name], again[name]) for name in first)
    assert str(first["features"]) == f"other inception {hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_a_network_of_another_digest_is_refused(path):
    with pytest.raises(IntegrityError, match=f"expected sha256 {INCEPTION_SHA256}"):
        Network("inception", path, Inception(INCEPTION_SHA256)).open(CPU)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert Network("inception", path, Inception(digest)).open(CPU).digest == digest


class Nested(torch.nn.Module):
    """The layers one level deeper."""

    def __init__(self) -> None:
        super().__init__()
        network = build(5)
        self.layers = torch.nn.Sequential(network.layers)
        self.output = network.output

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return img


def scripted(module: torch.nn.Module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(str(path))
    return path


class Altered(torch.nn.Module):
    """Something beyond its layers happens to the features."""

    def __init__(self) -> None:
        super().__init__()
        whole = build(5)
        self.layers, self.output = whole.layers, whole.output

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        x = torch.nn.functional.interpolate(img, size=(299, 299), mode="bilinear")
        return self.layers((x - 128) / 128).flatten(1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<html>Not found</html>", "is an HTML page"),
        (b"", "is an empty file"),
        (torch.nn.Linear(3, 3), "not the Inception network of 2015-12-05"),
        (Nested(), "not the Inception network of 2015-12-05"),
        (Altered(), "do not give the features that the whole network gives"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content, said):
    path = tmp_path / "network.pt"
    path.write_bytes(content) if isinstance(content, bytes) else scripted(content, path)
    with pytest.raises(UserError, match=said) as caught:
        InceptionFeatures(path, CPU)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_cut_file_is_refused(tmp_path, path):
    cut = tmp_path / "cut.pt"
    cut.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="damaged or truncated"):
        InceptionFeatures(cut, CPU)


# Where the file is


def test_the_file_is_found_where_it_was_said_to_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(inception_file.VARIABLE, raising=False)
    monkeypatch.delenv("IPDIFF_RAW", raising=False)
    spec = Inception()
    assert inception_file.find(Inception(raw="some/net.pt")) == Path("some/net.pt")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / spec.file).write_bytes(b"x")
    assert inception_file.find(spec).resolve() == tmp_path / "raw" / spec.file
    monkeypatch.setenv(inception_file.VARIABLE, str(tmp_path / "nowhere.pt"))
    with pytest.raises(UserError, match=r"IPDIFF_INCEPTION is '.*nowhere.pt', where no file is"):
        inception_file.find(spec)
    (tmp_path / "nowhere.pt").write_bytes(b"x")
    assert inception_file.find(spec) == tmp_path / "nowhere.pt"
