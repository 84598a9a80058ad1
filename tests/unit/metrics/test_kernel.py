"""KID: the estimate by brute force, without bias, over subsets that are always the same."""

import math

import numpy as np
import pytest

from ipdiff.device.spec import Compute
from ipdiff.metrics.scores import kernel
from ipdiff.metrics.scores.kernel import distances, kernel_distance, subset_distances
from ipdiff.metrics.spec import KernelDistance, Measured

CPU = Compute()


def points(seed, n, dim=6, shift=0.0):
    return (np.random.default_rng(seed).standard_normal((n, dim)) + shift).astype(np.float32)


def brute(first, second):
    """The definition, one pair at a time."""

    def k(x, y):
        return (float(np.dot(x.astype(np.float64), y.astype(np.float64))) / len(x) + 1) ** 3

    def within(side):
        found = [k(x, y) for i, x in enumerate(side) for j, y in enumerate(side) if i != j]
        return sum(found) / len(found)

    across = [k(x, y) for x in first for y in second]
    return within(first) + within(second) - 2 * sum(across) / len(across)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (7, 12), (30, 11)])
@pytest.mark.parametrize("rows", [1, 5, 2048])
def test_agrees_with_brute_force(n, m, rows, monkeypatch):
    monkeypatch.setattr(kernel, "_ROWS", rows)
    first, second = points(0, n), points(1, m, shift=0.5)
    assert kernel_distance(first, second) == pytest.approx(brute(first, second), rel=1e-12)


def test_two_points_each_by_hand():
    """d = 1: k(1, -1) = 0 within the first set, k(3, 5) = 16^3 within the second, four products across."""
    first, second = np.array([[1.0], [-1.0]]), np.array([[3.0], [5.0]])
    across = (4**3 + 6**3 + (-2) ** 3 + (-4) ** 3) / 4
    assert kernel_distance(first, second) == pytest.approx(0 + 16**3 - 2 * across, rel=1e-14)


def test_is_unbiased():
    """One feature, N(0, 1) and N(1, 1): E k(x, y) = 1 + 3 m n + 3 (m^2+1)(n^2+1) + (m^3+3m)(n^3+3n) for means m, n."""

    def expected(m, n):
        return 1 + 3 * m * n + 3 * (m * m + 1) * (n * n + 1) + (m**3 + 3 * m) * (n**3 + 3 * n)

    true = expected(0, 0) + expected(1, 1) - 2 * expected(0, 1)
    rounds = 4000
    found = np.array([kernel_distance(points(2 * i, 8, 1), points(2 * i + 1, 5, 1, shift=1.0)) for i in range(rounds)])
    error = found.std(ddof=1) / math.sqrt(rounds)
    assert abs(found.mean() - true) < 4 * error
    assert error < 0.05 * true
    same = np.array([kernel_distance(points(2 * i, 8, 3), points(2 * i + 1, 5, 3)) for i in range(rounds)])
    assert abs(same.mean()) < 4 * same.std(ddof=1) / math.sqrt(rounds)
    assert same.min() < 0 < same.max()


def test_is_the_mean_over_subsets_with_its_standard_error():
    first, second = points(0, 400, shift=0.3), points(1, 300)
    settings = KernelDistance(20, 50, seed=7)
    each = subset_distances(first, second, settings, CPU)
    assert each.shape == (20,)
    assert len(set(each)) == 20
    found = distances(Measured({}, None, first), Measured({}, None, second), ["kid"], CPU, settings)
    assert found["kid"] == each.mean()
    assert found["kid_se"] == pytest.approx(each.std(ddof=1) / math.sqrt(20), rel=1e-15)
    whole = kernel_distance(first, second)
    assert abs(found["kid"] - whole) < 5 * found["kid_se"]


def test_subsets_are_drawn_anew_by_the_seed_and_each_from_its_own_stream():
    first, second = points(0, 200), points(1, 200)
    one = subset_distances(first, second, KernelDistance(6, 40), CPU)
    np.testing.assert_array_equal(one, subset_distances(first, second, KernelDistance(6, 40), CPU))
    np.testing.assert_array_equal(one[:3], subset_distances(first, second, KernelDistance(3, 40), CPU))
    assert not (one == subset_distances(first, second, KernelDistance(6, 40, seed=1), CPU)).any()
    both = subset_distances(first, first, KernelDistance(6, 40), CPU)  # equal rows on both sides would make these low
    assert np.abs(both.mean()) < 5 * both.std(ddof=1) / math.sqrt(6)


def test_sets_smaller_than_a_subset():
    first, second = points(0, 30), points(1, 20, shift=0.2)
    found = distances(Measured({}, None, first), Measured({}, None, second), ["kid", "kid_se"], CPU)
    assert found == {"kid": pytest.approx(kernel_distance(first, second), rel=1e-12)}
    each = subset_distances(first, points(1, 2000), KernelDistance(5, 100), CPU)
    assert each.shape == (5,)  # all of the smaller set against different parts of the larger one
    assert len(set(each)) == 5


def test_settings_that_make_no_distance():
    with pytest.raises(ValueError, match="subset_size is 1; use 2 or more"):
        KernelDistance(100, 1)
    with pytest.raises(ValueError, match="subsets is 1; use 2 or more"):
        KernelDistance(1)
