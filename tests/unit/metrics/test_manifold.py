"""Precision and recall, density and coverage against brute force, blocks that do not matter, the Inception Score."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ipdiff.device.spec import Compute
from ipdiff.metrics.scores import density, overlap
from ipdiff.metrics.scores.density import density_coverage
from ipdiff.metrics.scores.inception_score import SPLIT, InceptionScore
from ipdiff.metrics.scores.overlap import K, precision_recall, radii
from ipdiff.metrics.spec import METRICS

CPU = Compute()
RNG = np.random.default_rng(0)


def points(n, dim=6, shift=0.0):
    return (RNG.standard_normal((n, dim)) + shift).astype(np.float32)


def brute(samples, reference):
    """Compute the definition in float64, one pair at a time."""

    def distances(a, b):
        return ((a[:, None].astype(np.float64) - b[None]) ** 2).sum(axis=2)

    reach = [np.sort(distances(side, side), axis=1)[:, 3] for side in (samples, reference)]
    across = distances(samples, reference)
    return (across <= reach[1]).any(axis=1).mean(), (across <= reach[0][:, None]).any(axis=0).mean()


def measured(samples, reference):
    return precision_recall(samples, reach(samples), reference, reach(reference), CPU)


def reach(features, k=3):
    return radii(features, CPU)[:, k - 1]


@pytest.mark.parametrize("shift", [0.0, 0.7, 1.5])
def test_agrees_with_brute_force(shift):
    samples, reference = points(150, shift=shift), points(230)
    assert measured(samples, reference) == brute(samples, reference)


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_blocks_do_not_matter(block, monkeypatch):
    samples, reference = points(64, shift=0.5), points(91)
    whole = radii(reference, CPU)
    expected = measured(samples, reference)
    monkeypatch.setattr(overlap, "BLOCK", block)
    np.testing.assert_allclose(radii(reference, CPU), whole, rtol=1e-5)
    assert measured(samples, reference) == expected


def test_a_set_s_own_distances_are_computed_once(monkeypatch):
    """Each pair of blocks in one order only: four blocks of four make ten products, not sixteen."""
    seen = []

    def count(rows, columns):
        seen.append((len(rows), len(columns)))
        return squared(rows, columns)

    squared = overlap.squared_distances
    near = points(26)
    whole = radii(near, CPU)
    monkeypatch.setattr(overlap, "squared_distances", count)
    monkeypatch.setattr(overlap, "BLOCK", 8)
    np.testing.assert_allclose(radii(near, CPU), whole, rtol=1e-5)
    assert len(seen) == 10
    assert seen[-1] == (2, 2)  # the last block is smaller than the neighbours that are looked for


PEAK = """
import sys
from pathlib import Path
import numpy as np
from ipdiff.device.spec import Compute
from ipdiff.metrics.scores import density, overlap
from ipdiff.metrics.scores.density import density_coverage
overlap.BLOCK = 1024
near = np.random.default_rng(0).standard_normal((int(sys.argv[1]), 16), dtype=np.float32)
reach = overlap.radii(near, Compute())[:, 2]
overlap.precision_recall(near, reach, near, reach, Compute())
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process' peak memory from Linux")
def test_memory_does_not_grow_with_the_square_of_the_images():
    def peak_mib(images):
        done = subprocess.run([sys.executable, "-c", PEAK, str(images)], capture_output=True, text=True, check=True)
        return int(done.stdout) / 1024

    assert peak_mib(8192) - peak_mib(2048) < 60  # all distances of 8192 images are 256 MiB


def test_radii_are_distances_to_the_nearest_other_ones():
    line = np.array([[0.0], [1.0], [3.0], [7.0], [100.0]], np.float32)
    found = radii(line, CPU)
    assert found.shape == (5, 5)
    assert found[:, 2].tolist() == [49.0, 36.0, 16.0, 49.0, 99.0**2]
    assert found[1].tolist() == [1.0, 4.0, 36.0, 99.0**2, np.inf]
    assert np.isinf(radii(line[:3], CPU)[:, 2:]).all()


def test_rows_say_how_many_images_the_metrics_need():
    needed = {name: METRICS[name].least for name in ("precision", "recall", "density", "coverage")}
    assert needed == {"precision": K + 1, "recall": K + 1, "density": density.K + 1, "coverage": density.K + 1}


def test_repeated_features_have_radius_zero():
    """Four equal images reach no farther than themselves, whatever rounding does to the distance of equal rows."""
    same = np.repeat(points(1, dim=2048) * 3 + 5, 4, axis=0)
    near = np.concatenate([same, points(30, dim=2048)])
    assert reach(near)[:4].max() <= 1e-5 * float((same[0] ** 2).sum())


def test_extremes():
    reference = points(80)
    assert measured(reference, reference) == (1.0, 1.0)
    assert measured(reference + 1000, reference) == (0.0, 0.0)
    assert measured(np.repeat(reference[:1], 80, axis=0), reference)[0] == 1.0  # one good image, again and again
    assert measured(np.repeat(reference[:1], 80, axis=0), reference)[1] < 0.1


def test_order_does_not_matter():
    samples, reference = points(100, shift=0.5), points(120)
    assert measured(samples[::-1].copy(), RNG.permutation(reference)) == measured(samples, reference)


# Density and coverage


def counted(samples, reference):
    return density_coverage(samples, reference, reach(reference, density.K), CPU)


@pytest.mark.parametrize("shift", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("block", [16, 4096])
def test_density_and_coverage_agree_with_brute_force(shift, block, monkeypatch):
    monkeypatch.setattr(overlap, "BLOCK", block)
    samples, reference = points(150, shift=shift), points(230)
    across = ((samples[:, None].astype(np.float64) - reference[None]) ** 2).sum(axis=2)
    among = ((reference[:, None].astype(np.float64) - reference[None]) ** 2).sum(axis=2)
    inside = across < np.sort(among, axis=1)[:, 5]
    assert counted(samples, reference) == (inside.sum() / (5 * 150), inside.any(axis=0).mean())


def test_a_ball_is_open():
    """As in the published code: a sample at exactly the fifth neighbour's distance does not count."""
    reference = np.arange(6, dtype=np.float32)[:, None]  # the fifth neighbour of 0 is 5, that of 5 is 0
    assert counted(np.array([[-5.0]], np.float32), reference) == (0.0, 0.0)
    found, covered = counted(np.array([[-2.5]], np.float32), reference)
    assert (found, covered) == (2 / 5, 2 / 6)  # 0 reaches 5 far and 1 reaches 4 far; 2 reaches only 3


@pytest.mark.parametrize("samples", [20, 40, 80])
def test_expectations_for_one_distribution(samples):
    """Closed forms of the paper: density 1, coverage 1 - (M-1)...(M-k) / ((N+M-1)...(N+M-k))."""
    reals, rounds = 40, 400
    found = np.array([counted(points(samples, 3), points(reals, 3)) for _ in range(rounds)])
    missed = math.prod((reals - i) / (samples + reals - i) for i in range(1, 6))
    error = found.std(axis=0, ddof=1) / math.sqrt(rounds)
    assert (np.abs(found.mean(axis=0) - (1.0, 1 - missed)) < 4 * error).all()
    assert error.max() < 0.02


def test_density_sees_what_recall_does_not_and_is_above_one_where_samples_crowd():
    reference = points(200)
    crowd = np.repeat(points(1) / 10, 200, axis=0)
    found, covered = counted(crowd, reference)
    assert found > 1
    assert covered < 0.3
    assert counted(reference + 1000, reference) == (0.0, 0.0)


# Inception Score


def score(logits, batch=None):
    found = InceptionScore()
    for start in range(0, len(logits), batch or len(logits)):
        found.update(logits[start : start + (batch or len(logits))])
    return found.value


def test_score_of_certain_and_of_undecided_images():
    certain = np.tile(np.eye(8, dtype=np.float32) * 1000, (10, 1))
    assert score(certain) == pytest.approx(8, rel=1e-12)  # each class as often, each image sure: the classes' number
    assert score(np.zeros((40, 8), np.float32)) == pytest.approx(1, rel=1e-12)
    assert score(np.tile(certain[:1], (40, 1))) == pytest.approx(1, rel=1e-12)
    assert InceptionScore().value is None


def test_score_is_the_mean_over_splits_of_5000():
    logits = RNG.standard_normal((SPLIT + 300, 6)).astype(np.float32)
    expected = (score(logits[:SPLIT]) + score(logits[SPLIT:])) / 2
    assert score(logits) == pytest.approx(expected, rel=1e-14)


def test_score_agrees_with_the_definition():
    logits = RNG.standard_normal((500, 12)) * 3
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = np.exp((p * (np.log(p) - np.log(p.mean(axis=0)))).sum(axis=1).mean())
    assert score(logits) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batches_do_not_matter_to_the_score(batch):
    logits = RNG.standard_normal((SPLIT + 130, 5)).astype(np.float32) * 2
    assert score(logits, batch) == pytest.approx(score(logits), rel=1e-12)
