"""Metrics on a GPU: the CPU's numbers, but for rounding."""

import hashlib
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from ipdiff.device.spec import Compute
from ipdiff.metrics.features.torchscript import TorchScriptFeatures
from ipdiff.metrics.scores.density import density_coverage
from ipdiff.metrics.scores.kernel import subset_distances
from ipdiff.metrics.scores.overlap import radii
from ipdiff.metrics.spec import KernelDistance, TorchScript

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")

CPU, CUDA = Compute(), Compute("cuda")
RNG = np.random.default_rng(0)


def test_distances_of_features():
    first, second = (RNG.standard_normal((n, 64), dtype=np.float32) for n in (900, 700))
    settings = KernelDistance(5, 300)
    on_cpu, on_gpu = (subset_distances(first, second, settings, where) for where in (CPU, CUDA))
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-9, atol=1e-12)
    reach, on_gpu = (radii(second, where) for where in (CPU, CUDA))
    np.testing.assert_allclose(on_gpu, reach, rtol=1e-5)
    found = [density_coverage(first, second, reach[:, 4], where) for where in (CPU, CUDA)]
    assert found[1] == pytest.approx(found[0], abs=2e-3)


@pytest.mark.parametrize("resize", ["bicubic", "bilinear"])
def test_features_of_a_torchscript_network(tmp_path, resize):
    path = tmp_path / "net.pt"
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(net, torch.rand(2, 3, 20, 20)), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    settings = TorchScript(str(path), digest, 20, resize, [0.5] * 3, [0.5] * 3, 8)
    images = RNG.integers(0, 256, (70, 12, 12, 3), dtype=np.uint8)
    on_cpu, on_gpu = (TorchScriptFeatures(None, settings, where)(images)["pool"] for where in (CPU, CUDA))
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-3, atol=1e-4)
