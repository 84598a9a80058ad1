"""The Frechet distance against closed forms and scipy's matrix square root; moments and batches."""

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import linalg
from threadpoolctl import threadpool_info, threadpool_limits

from ipdiff.metrics import frechet_distance
from ipdiff.metrics.scores import linear
from ipdiff.metrics.scores.frechet import Moments
from ipdiff.metrics.scores.linear import ACCURACY, one_thread


def gaussian(rng, dim, rank=None):
    root = rng.standard_normal((dim, rank or 2 * dim))
    return rng.standard_normal(dim), root @ root.T / root.shape[1]


def reference_distance(mu1, cov1, mu2, cov2):
    """Compute the formula as it stands in guided-diffusion's evaluator."""
    cross = np.trace(np.real(linalg.sqrtm(cov1 @ cov2)))
    return float(((mu1 - mu2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * cross)


def by_singular_values(mu1, cov1, mu2, cov2):
    """The distance by eigenvectors and singular values alone: slower, exact for singular covariances."""

    def root(cov):
        values, vectors = linalg.eigh(cov)
        kept = values > len(values) * np.finfo(float).eps * values[-1]
        return vectors[:, kept] * np.sqrt(values[kept])

    shared = linalg.svdvals(root(cov1).T @ root(cov2)).sum()
    return float(((mu1 - mu2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * shared)


SPECTRA = {
    "even": np.ones(64),
    "as i^-1": np.arange(1, 65) ** -1.0,
    "as i^-3": np.arange(1, 65) ** -3.0,
    "down to 1e-6": np.geomspace(1, 1e-6, 64),
    "down to 1e-12": np.geomspace(1, 1e-12, 64),
    "down to 1e-18": np.geomspace(1, 1e-18, 64),
    "large": np.geomspace(1e200, 1e199, 64),
    "small": np.geomspace(1e-170, 1e-174, 64),
}


def sets(spectrum, n1, n2):
    """Moments of two samples of Gaussians with one basis and nearly one spectrum."""
    rng = np.random.default_rng(n1 + n2)
    mix = np.linalg.qr(rng.standard_normal((64, 64)))[0] * np.sqrt(spectrum)
    found = []
    for n, scale in ((n1, 1.0), (n2, 1.01)):
        rows = rng.standard_normal((n, 64)) @ mix.T * scale
        found += [rows.mean(0), np.cov(rows, rowvar=False)]
    return found


@pytest.mark.parametrize("sizes", [(500, 300), (70, 65), (64, 64), (30, 500), (500, 30), (40, 20)])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_both_ways_are_exact_to_the_stated_accuracy(spectrum, sizes, monkeypatch):
    """Random, ill-conditioned and rank-deficient sets (fewer images than features), of any size of values."""
    arguments = sets(SPECTRA[spectrum], *sizes)
    traces = np.trace(arguments[1]) + np.trace(arguments[3])
    expected = by_singular_values(*arguments)
    assert frechet_distance(*arguments) == pytest.approx(expected, rel=0, abs=1e-13 * traces)
    monkeypatch.setattr(linear, "SMALL", 0)  # as if there were thousands of features
    assert frechet_distance(*arguments) == pytest.approx(expected, rel=0, abs=ACCURACY * traces)
    assert frechet_distance(*arguments) == pytest.approx(expected, rel=1e-7)


def test_well_conditioned_sets_take_the_quick_way_and_the_others_do_not(monkeypatch):
    monkeypatch.setattr(linear, "SMALL", 0)

    def refuse(*_, **__):
        raise AssertionError("singular values were asked for")

    with monkeypatch.context() as patch:
        patch.setattr(linear.linalg, "svdvals", refuse)
        patch.setattr(linear.linalg, "eigh", refuse)
        frechet_distance(*sets(SPECTRA["as i^-1"], 500, 300))
    asked = []
    exact = linalg.svdvals
    monkeypatch.setattr(linear.linalg, "svdvals", lambda *a, **k: asked.append(1) or exact(*a, **k))
    frechet_distance(*sets(SPECTRA["down to 1e-12"], 500, 300))
    assert len(asked) == 1
    monkeypatch.setattr(linear, "SMALL", 64)
    frechet_distance(*sets(SPECTRA["as i^-1"], 500, 300))
    assert len(asked) == 2


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_a_set_against_itself(spectrum, monkeypatch):
    """0 for the same moments, and for the same rows in another order what rounding leaves of the traces."""
    rng = np.random.default_rng(12)
    rows = rng.standard_normal((300, 64)) * np.sqrt(SPECTRA[spectrum])
    mu, cov = rows.mean(0), np.cov(rows, rowvar=False)
    again = np.cov(rows[::-1], rowvar=False)
    assert frechet_distance(mu, cov, mu, cov) == 0
    assert frechet_distance(mu, cov, mu, again) <= 1e-13 * np.trace(cov)
    monkeypatch.setattr(linear, "SMALL", 0)
    assert frechet_distance(mu, cov, mu, again) <= ACCURACY * 2 * np.trace(cov)


def test_equal_covariances_leave_the_means():
    mu, cov = gaussian(np.random.default_rng(0), 20)
    assert frechet_distance(mu, cov, mu + 0.5, cov) == pytest.approx(20 * 0.25, rel=1e-15)
    indefinite = np.diag([1, -0.5])
    with pytest.raises(ValueError, match="negative eigenvalue"):
        frechet_distance([0, 0], indefinite, [0, 0], indefinite)


def test_bits_do_not_depend_on_the_blas_threads():
    """In processes of their own, as OpenBLAS reads the number of its threads when it is loaded."""
    code = (
        "import numpy as np\n"
        "from ipdiff.metrics.scores.frechet import Moments, frechet_distance\n"
        "rng, found = np.random.default_rng(0), []\n"
        "for n in (1500, 1400, 1300, 300):\n"
        "    moments = Moments(600)\n"
        "    moments.update(np.abs(rng.standard_normal((n, 600))) * np.geomspace(1, 1e-2, 600))\n"
        "    found.append((moments.mu, moments.cov))\n"
        "    print(moments.mu.tobytes().hex()[-64:], float(moments.cov.sum()).hex())\n"
        "print(*(frechet_distance(*one, *other).hex() for one in found for other in found))\n"
    )
    said = []
    for threads in "1", "2":
        environment = os.environ | {f"{pool}_NUM_THREADS": threads for pool in ("OMP", "OPENBLAS", "MKL")}
        done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
        said.append(done.stdout)
    assert said[0] == said[1]
    assert len(said[0].split()) == 8 + 16


def test_the_number_of_blas_threads_comes_back():
    def threads():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    with threadpool_limits(2, user_api="blas"):
        before, within = threads(), []

        @one_thread()
        def work():
            within.extend(threads())
            raise ValueError("stop")

        with pytest.raises(ValueError, match="stop"):
            work()
        assert set(within) == {1}
        assert threads() == before


def test_one_dimension():
    assert frechet_distance([1.0], [[4.0]], [3.0], [[9.0]]) == pytest.approx(4 + (2 - 3) ** 2, rel=1e-14)
    assert frechet_distance(1.0, 4.0, 3.0, 9.0) == pytest.approx(5, rel=1e-14)


def test_diagonal_covariances():
    rng = np.random.default_rng(1)
    a, b, mu1, mu2 = (
        rng.uniform(0.1, 3, 30),
        rng.uniform(0.1, 3, 30),
        rng.normal(size=30),
        rng.normal(size=30),
    )
    expected = ((mu1 - mu2) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(mu1, np.diag(a), mu2, np.diag(b)) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("dim", [2, 17, 64])
def test_agrees_with_the_matrix_square_root(dim):
    rng = np.random.default_rng(dim)
    first, second = gaussian(rng, dim), gaussian(rng, dim)
    assert frechet_distance(*first, *second) == pytest.approx(reference_distance(*first, *second), rel=1e-8)


def test_rank_deficient_covariances():
    """With a common basis the distance is the diagonal one; tiny and zero eigenvalues cost no accuracy."""
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    a, b = rng.uniform(0.5, 2, 40), rng.uniform(0.5, 2, 40)
    a[:25], b[15:30] = 0, 0
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    zero = np.zeros(40)
    got = frechet_distance(zero, basis * a @ basis.T, zero, basis * b @ basis.T)
    assert got == pytest.approx(expected, rel=1e-12)


def test_rank_deficient_against_eigenvalues_in_general_position():
    """Trace (C1 C2)^(1/2) is the sum of the square roots of the eigenvalues of R1^T C2 R1, R1 thin."""
    rng = np.random.default_rng(3)
    root1, root2 = rng.standard_normal((50, 6)), rng.standard_normal((50, 11))
    cov1, cov2 = root1 @ root1.T, root2 @ root2.T
    cross = np.sqrt(np.linalg.eigvalsh(root1.T @ cov2 @ root1)).sum()
    expected = np.trace(cov1) + np.trace(cov2) - 2 * cross
    assert frechet_distance(np.zeros(50), cov1, np.zeros(50), cov2) == pytest.approx(expected, rel=1e-12)


def test_zero_covariances():
    assert frechet_distance([0, 0], np.zeros((2, 2)), [3, 4], np.zeros((2, 2))) == 25
    assert frechet_distance([0, 0], np.zeros((2, 2)), [0, 0], np.eye(2)) == 2


@pytest.mark.parametrize("rank", [3, 30, None])
def test_symmetric_in_its_arguments(rank):
    rng = np.random.default_rng(4)
    first, second = gaussian(rng, 30, rank), gaussian(rng, 30)
    there, back = frechet_distance(*first, *second), frechet_distance(*second, *first)
    assert there == pytest.approx(back, rel=1e-10)


def test_never_negative():
    rng = np.random.default_rng(5)
    for _ in range(50):
        mu, cov = gaussian(rng, 12, 5)
        assert 0 <= frechet_distance(mu, cov, mu, cov * (1 + 1e-15)) < 1e-10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 0], np.eye(3), [0, 0], np.eye(2)), "mu1 is"),
        (([0, 0], np.eye(2), [0, 0, 0], np.eye(3)), "2 dimensions and mu2 has 3"),
        (([0, np.nan], np.eye(2), [0, 0], np.eye(2)), "not finite"),
        (([0, 0], np.eye(2), [0, 0], np.full((2, 2), np.inf)), "cov2 holds"),
        (([0, 0], [[1, 0.5], [0.4, 1]], [0, 0], np.eye(2)), "cov1 is not symmetric"),
        (([0, 0], np.eye(2), [0, 0], np.diag([1, -0.5])), "negative eigenvalue"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(*arguments)


def test_moments_are_numpys():
    rows = np.random.default_rng(6).standard_normal((3000, 9)) * 3 + 100
    moments = Moments(9)
    moments.update(rows)
    assert moments.n == 3000
    np.testing.assert_allclose(moments.mu, rows.mean(0), rtol=1e-13)
    np.testing.assert_allclose(moments.cov, np.cov(rows, rowvar=False), rtol=1e-9, atol=1e-12)


def test_moments_do_not_depend_on_the_batches():
    rows = np.random.default_rng(7).standard_normal((2500, 33)).astype(np.float32)
    whole = Moments(33)
    whole.update(rows)
    for size in (1, 7, 500, 1024, 1500):
        pieces = Moments(33)
        for start in range(0, len(rows), size):
            pieces.update(rows[start : start + size])
            if size == 500:
                _ = pieces.mu  # looking does not disturb
        assert pieces.mu.tobytes() == whole.mu.tobytes()
        assert pieces.cov.tobytes() == whole.cov.tobytes()


def test_moments_do_not_depend_on_the_order_beyond_rounding():
    rows = np.random.default_rng(8).standard_normal((2500, 12))
    first, second = Moments(12), Moments(12)
    first.update(rows)
    second.update(rows[::-1])
    np.testing.assert_allclose(first.mu, second.mu, atol=1e-15)
    np.testing.assert_allclose(first.cov, second.cov, rtol=1e-12, atol=1e-14)


def test_moments_refusals():
    moments = Moments(3)
    with pytest.raises(ValueError, match="no rows"):
        _ = moments.mu
    with pytest.raises(ValueError, match=r"expected \[n, 3\]"):
        moments.update(np.zeros((2, 4)))
    moments.update(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="2 rows or more; got 1"):
        _ = moments.cov


def test_needs_no_torch():
    code = "import sys, ipdiff.metrics, ipdiff.data.prepare, ipdiff.data.images; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("offset", [1e6, -1e6])
def test_moments_of_float32_rows_far_from_0_are_numpys_in_float64(offset):
    """A sum of squares would keep nothing of a spread of 1e-3 at a mean of 1e6, in float64."""
    rows = np.random.default_rng(9).standard_normal((3 * Moments.BLOCK + 77, 6)) + offset
    rows[:, 0] = 1000 * offset + np.arange(len(rows)) % 7  # exact in float64
    rows[:, 1] = offset + 1e-3 * (rows[:, 1] - offset)
    rows[: len(rows) // 2, 2] -= 2 * offset  # a mean that moves
    for given in (rows, rows.astype(np.float32)):
        moments = Moments(6)
        for start in range(0, len(given), 64):
            moments.update(given[start : start + 64])
        exact = given.astype(np.float64)
        centred = exact - exact.mean(0)
        np.testing.assert_allclose(moments.mu, exact.mean(0), rtol=1e-14, atol=abs(offset) * 1e-14)
        spread = centred.std(0)
        np.testing.assert_allclose(
            moments.cov, centred.T @ centred / (len(exact) - 1), rtol=0, atol=1e-6 * np.outer(spread, spread).max()
        )
        within = np.diag(moments.cov)[[0, 1, 3, 4, 5]]
        np.testing.assert_allclose(within, exact.var(0, ddof=1)[[0, 1, 3, 4, 5]], rtol=1e-6)


def test_looking_at_moments_changes_nothing_and_what_was_given_stays():
    rows = np.random.default_rng(10).standard_normal((Moments.BLOCK + 100, 5))
    moments = Moments(5)
    moments.update(rows[: Moments.BLOCK])
    mu, cov = moments.mu, moments.cov
    kept = mu.copy(), cov.copy()
    mu += 1
    cov += 1
    np.testing.assert_array_equal(moments.mu, kept[0])
    np.testing.assert_array_equal(moments.cov, kept[1])
    first = moments.cov
    moments.update(rows[Moments.BLOCK :])
    np.testing.assert_array_equal(first, kept[1])
    assert moments.cov.tobytes() == moments.cov.tobytes()
    np.testing.assert_allclose(moments.cov, np.cov(rows, rowvar=False), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("strip", [1, 5, 64])
def test_strips_of_the_scatter_matrix_do_not_matter(strip, monkeypatch):
    rows = np.random.default_rng(11).standard_normal((3000, 13))

    def cov():
        moments = Moments(13)
        moments.update(rows)
        return moments.cov.tobytes()

    whole = cov()
    monkeypatch.setattr(Moments, "STRIP", strip)
    assert cov() == whole
