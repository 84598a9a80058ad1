"""Noise schedules and the five respacing rules."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipdiff.schedule import make_betas, respace


def strictly_increasing_within(kept, T):
    assert kept.dtype == np.int64
    assert (np.diff(kept) > 0).all()
    assert kept[0] >= 0
    assert kept[-1] < T


def test_cosine_schedule_has_the_published_values():
    betas = make_betas("cosine", 1000)
    alphas_cumprod = np.cumprod(1 - betas)
    assert betas.shape == (1000,)
    assert betas.dtype == np.float64
    np.testing.assert_allclose(betas[[0, 998]], [4.12842e-5, 0.75], rtol=1e-5)
    assert np.flatnonzero(betas == 0.999).tolist() == [999]  # the only clipped one
    np.testing.assert_allclose(
        alphas_cumprod[[0, 99, 499, 998, 999]],
        [0.9999587, 0.972093, 0.493844, 2.4288e-6, 2.4288e-9],
        rtol=2e-5,
    )


def test_linear_schedule_is_the_linspace_of_ddpm():
    np.testing.assert_array_equal(make_betas("linear", 1000), np.linspace(1e-4, 0.02, 1000))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("T", [21, 100, 4000])
def test_betas_are_variances_and_destroy_the_image(schedule, T):
    betas = make_betas(schedule, T)
    assert betas.shape == (T,)
    assert ((betas > 0) & (betas < 1)).all()
    assert np.prod(1 - betas) < 1e-3


@pytest.mark.parametrize(
    ("schedule", "T", "message"),
    [("cosine", 0, "T=0"), ("sigmoid", 10, "'sigmoid'"), ("linear", 20, "T >= 21")],
)
def test_make_betas_refuses(schedule, T, message):
    with pytest.raises(ValueError, match=message) as error:
        make_betas(schedule, T)
    assert "\n" not in str(error.value)


@given(st.data())
def test_fractional_stride_keeps_both_ends(data):
    T = data.draw(st.integers(1, 2000))
    N = data.draw(st.integers(1, T))
    kept = respace(T, str(N))
    strictly_increasing_within(kept, T)
    assert len(kept) == N
    assert kept[0] == 0
    assert N == 1 or kept[-1] == T - 1
    gaps = np.diff(kept)
    assert N < 3 or gaps.max() - gaps.min() <= 1


@given(st.data())
def test_sections_are_respaced_one_by_one(data):
    T = data.draw(st.integers(1, 500))
    sections = data.draw(st.integers(1, min(T, 5)))
    sizes = [len(part) for part in np.array_split(np.arange(T), sections)]
    counts = [data.draw(st.integers(1, size)) for size in sizes]
    starts = np.cumsum([0, *sizes[:-1]])
    parts = [start + respace(size, str(count)) for start, size, count in zip(starts, sizes, counts, strict=True)]
    kept = respace(T, ",".join(map(str, counts)))
    strictly_increasing_within(kept, T)
    np.testing.assert_array_equal(kept, np.concatenate(parts))


@given(st.data())
def test_integer_strides(data):
    T = data.draw(st.integers(2, 1000))
    stride = data.draw(st.integers(1, T - 1))
    N = len(range(0, T, stride))
    kept = respace(T, f"ddim{N}")
    strictly_increasing_within(kept, T)
    assert len(kept) == N
    assert kept[0] == 0
    assert len(set(np.diff(kept))) == 1
    uniform = respace(T, f"uniform{N}")
    strictly_increasing_within(uniform, T)
    assert len(uniform) >= N


@given(st.data())
def test_quadratic_grid_is_denser_near_the_image(data):
    T = data.draw(st.integers(1, 2000))
    N = data.draw(st.integers(1, T))
    kept = respace(T, f"quad{N}")
    strictly_increasing_within(kept, T)
    assert kept[0] == 0
    assert len(kept) <= N
    assert kept[-1] <= 0.8 * T + 1e-6
    gaps = np.diff(kept)
    assert len(kept) < 3 or gaps[-1] >= gaps[0]


def test_grids_of_the_published_code():
    assert respace(1000, "quad10").tolist() == [0, 9, 39, 88, 158, 246, 355, 483, 632, 800]
    assert [len(respace(1000, f"quad{N}")) for N in (50, 100, 1000)] == [49, 96, 688]
    assert respace(1000, "uniform10").tolist() == list(range(0, 1000, 100))
    assert respace(1000, "uniform20")[-1] == 950
    assert respace(1000, "80")[:6].tolist() == [0, 13, 25, 38, 51, 63]
    assert respace(1000, "60")[-2:].tolist() == [982, 999]


@given(st.data())
def test_grids_over_the_noise(data):
    T = data.draw(st.integers(30, 1000))
    N = data.draw(st.integers(1, T))
    betas = make_betas(data.draw(st.sampled_from(["cosine", "linear"])), T)
    alphas_cumprod = np.cumprod(1 - betas)
    found = {rule: respace(T, f"{rule}{N}", alphas_cumprod) for rule in ("logsnr", "karras")}
    half_log_snr = np.log(alphas_cumprod / (1 - alphas_cumprod)) / 2
    for kept in found.values():
        strictly_increasing_within(kept, T)
        assert len(kept) <= N
        assert (half_log_snr[kept] >= -5.1).all()
        assert N == 1 or kept[0] == 0
        assert kept[-1] == T - 1 or half_log_snr[kept[-1] + 1] < -5.1


def test_grids_over_the_noise_have_equal_distances():
    alphas_cumprod = np.cumprod(1 - make_betas("linear", 1000))
    sigmas = np.sqrt(1 / alphas_cumprod - 1)
    steps = np.diff(np.log(sigmas[respace(1000, "logsnr10", alphas_cumprod)]))
    np.testing.assert_allclose(steps, steps.mean(), rtol=0.25)  # whole timesteps are coarse near t = 0
    steps = np.diff(sigmas[respace(1000, "karras10", alphas_cumprod)] ** (1 / 7))
    np.testing.assert_allclose(steps, steps.mean(), rtol=0.25)


@pytest.mark.parametrize("spec", ["1000", "ddim1000", "uniform1000", "500,500"])
def test_as_many_steps_as_there_are_keep_all(spec):
    np.testing.assert_array_equal(respace(1000, spec), np.arange(1000))


@pytest.mark.parametrize(
    ("T", "spec", "message"),
    [
        (1000, "fast", "unknown respacing 'fast'"),
        (1000, "", "unknown"),
        (1000, "-5", "unknown"),
        (1000, "10.5", "unknown"),
        (1000, "10,", "unknown"),
        (1000, "ddim10,20", "unknown"),
        (1000, "quad", "unknown"),
        (1000, "0", "use at least 1"),
        (1000, "ddim0", "use at least 1"),
        (1000, "10,0", "use at least 1"),
        (1000, "1001", "use 1..1000"),
        (1000, "quad1001", "use 1..1000"),
        (1000, "600,10", "section 1 of 2 holds 500 steps"),
        (1000, "ddim60", "no integer stride"),
        (1000, "ddim300", "no integer stride"),
        (1000, "logsnr20", "needs alphas_cumprod"),
        (50, "karras20", "alphas_cumprod has 2 values, expected T=50"),
        (0, "1", "T=0"),
    ],
)
def test_respace_refuses_in_one_line(T, spec, message):
    given = np.array([0.9, 0.5]) if spec == "karras20" else None
    with pytest.raises(ValueError, match=message) as error:
        respace(T, spec, given)
    assert "\n" not in str(error.value)
