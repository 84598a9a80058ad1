"""The same numbers as pytorch-fid, torch-fidelity and clean-fid on the same features."""

import importlib
import warnings

import numpy as np
import pytest
import torch
from inception import write_inception

from benchmarks.peers import torchvision_or_names
from ipdiff.device.spec import Compute
from ipdiff.metrics import frechet_distance
from ipdiff.metrics.features.extractors import Pooled, Statistics, show
from ipdiff.metrics.features.inception import InceptionFeatures
from ipdiff.metrics.scores.frechet import Moments
from ipdiff.metrics.scores.inception_score import InceptionScore
from ipdiff.metrics.scores.kernel import distances, kernel_distance
from ipdiff.metrics.scores.overlap import precision_recall, radii
from ipdiff.metrics.spec import KernelDistance, Measured

CPU = Compute()


@pytest.fixture(scope="module")
def other():
    """Import a module of another tool."""
    with torchvision_or_names():
        yield importlib.import_module


def features(seed: int, n: int, dim: int = 48) -> np.ndarray:
    """Rows like a network's: not negative, correlated, some of them nearly constant."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((n, dim)) @ np.random.default_rng(99).standard_normal((dim, dim)) / 7
    return np.maximum(mixed + 0.1 * seed, 0).astype(np.float32)


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    return features(0, 1500), features(1, 1200)


def test_frechet_distance_of_the_same_features(other, rows):
    pytorch_fid, fidelity = other("pytorch_fid.fid_score"), other("torch_fidelity.metric_fid")
    ours, theirs = [], []
    for part in rows:
        moments = Moments(part.shape[1])
        moments.update(part)
        ours += [moments.mu, moments.cov]
        theirs.append({"mu": part.astype(np.float64).mean(axis=0), "sigma": np.cov(part, rowvar=False)})
    got = frechet_distance(*ours)
    one = fidelity.fid_statistics_to_metric(*theirs, verbose=False)["frechet_inception_distance"]
    assert got == pytest.approx(one, rel=1e-9)
    arguments = [side[key] for side in theirs for key in ("mu", "sigma")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # scipy's sqrtm will lose an argument that it uses
        assert got == pytest.approx(pytorch_fid.calculate_frechet_distance(*arguments), rel=1e-9)


def test_inception_score_of_the_same_logits(other):
    score = other("torch_fidelity.metric_isc")
    logits = np.random.default_rng(2).standard_normal((10_000, 30)).astype(np.float32) * 2
    ours = InceptionScore()
    ours.update(logits)
    theirs = score.isc_features_to_metric(torch.from_numpy(logits), splits=2, shuffle=False)
    assert ours.value == pytest.approx(theirs["inception_score_mean"], rel=1e-12)


def test_precision_and_recall_of_the_same_features(other, rows):
    overlap = other("torch_fidelity.metric_prc")
    samples, reference = rows
    own, reach = (radii(side, CPU)[:, 2] for side in (samples, reference))
    got = precision_recall(samples, own, reference, reach, CPU)
    theirs = overlap.calculate_precision_recall_full(torch.from_numpy(samples), torch.from_numpy(reference))
    assert got == pytest.approx(theirs, abs=1.5 / 1200)  # a rounded distance may move one image
    assert 0.05 < min(got) < max(got) < 0.99


def test_kernel_distance_of_the_same_features(other, rows):
    """torch-fidelity's estimate of a subset as large as both sets is that of the sets."""
    kernel = other("torch_fidelity.metric_kid")
    first, second = (part[:1200] for part in rows)
    theirs = kernel.kid_features_to_metric(
        *(torch.from_numpy(part.astype(np.float64)) for part in (first, second)),
        kid_subsets=1,
        kid_subset_size=1200,
        verbose=False,
    )["kernel_inception_distance_mean"]
    assert kernel_distance(first, second) == pytest.approx(theirs, rel=1e-9)
    assert theirs > 1e-3


def test_kid_is_within_the_error_of_torch_fidelitys_subsets(other, rows):
    """Other random subsets of the same features: their mean and ours differ by no more than both standard errors."""
    theirs = other("torch_fidelity.metric_kid").kid_features_to_metric(
        *map(torch.from_numpy, rows), kid_subsets=100, kid_subset_size=300, verbose=False
    )
    ours = distances(Measured({}, None, rows[0]), Measured({}, None, rows[1]), ["kid"], CPU, KernelDistance(100, 300))
    error = np.hypot(ours["kid_se"], theirs["kernel_inception_distance_std"] / np.sqrt(100))
    assert abs(ours["kid"] - theirs["kernel_inception_distance_mean"]) < 4 * error
    assert ours["kid_se"] == pytest.approx(theirs["kernel_inception_distance_std"] / np.sqrt(100), rel=0.5)


def test_pooled_features_are_those_of_clean_fids_legacy_mode(tmp_path):
    """At the published sizes: clean-fid wants 2048 features, and the file's own name."""
    from cleanfid.inception_torchscript import InceptionV3W

    path = write_inception(tmp_path / "inception-2015-12-05.pt", seed=3, width=1)
    images = np.random.default_rng(4).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        network = InceptionV3W(str(tmp_path), download=False, resize_inside=True)
    with torch.no_grad():
        theirs = network(torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32)).numpy()
    pooled, statistics = Pooled(len(images)), Statistics()
    extractor = InceptionFeatures(path, CPU)
    show(extractor, images, pooled, statistics)
    np.testing.assert_allclose(pooled.array(), theirs, rtol=1e-4, atol=1e-5)
    found = statistics.arrays(extractor, images.shape[1:])
    assert (found["mu"].shape, found["mu_s"].shape) == ((2048,), (2023,))
    assert extractor(images)["logits"].shape == (2, 1008)
