"""Timestep samplers: distribution, importance weights, history."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ipdiff.training.timesteps import (
    NAMES,
    AntitheticTimesteps,
    LossSecondMoment,
    UniformTimesteps,
    make_timestep_sampler,
)

FLOAT32: Any = np.zeros(3, dtype=np.float32)
LARGEST_BELOW_ONE = np.nextafter(1.0, 0.0)
uniforms = arrays(np.float64, st.integers(1, 20), elements=st.floats(0, float(LARGEST_BELOW_ONE)))


def grid(n):
    """Midpoints of n equal parts of [0, 1): an exact stand-in for many uniforms."""
    return (np.arange(n) + 0.5) / n


def warm(T=6, history=3, uniform_prob=0.01):
    sampler = LossSecondMoment(T, history, uniform_prob)
    for round_ in range(history):
        sampler.update(np.arange(T), np.linspace(0.1, 2, T) * (1 + round_))
    return sampler


@pytest.mark.parametrize("name", NAMES)
@given(u=uniforms, T=st.integers(1, 1000))
def test_every_sampler_gives_valid_steps_of_weight_one_at_first(name, u, T):
    t, weights = make_timestep_sampler(name, T).sample(u)
    assert t.dtype == np.int64
    assert weights.dtype == np.float64
    assert t.shape == weights.shape == u.shape
    assert ((t >= 0) & (t < T)).all()
    assert (weights == 1).all()


def test_uniform_hits_every_step_equally_often():
    t, _ = UniformTimesteps(10).sample(grid(1000))
    assert np.bincount(t, minlength=10).tolist() == [100] * 10


@pytest.mark.parametrize("n", [1, 2, 3, 8, 9])
def test_antithetic_pairs(n):
    u = grid(n)
    t, _ = AntitheticTimesteps(1000).sample(u)
    half = n // 2 + 1
    np.testing.assert_array_equal(t[:half], np.floor(u[:half] * 1000))
    np.testing.assert_array_equal(t[half:], 999 - t[: n - half])


def test_second_moment_probabilities_follow_the_root_mean_square():
    sampler = LossSecondMoment(3, history=2, uniform_prob=0.1)
    for losses in ([3.0, 0.0, 1.0], [4.0, 0.0, 1.0]):
        sampler.update(np.arange(3), np.array(losses))
    rms = np.sqrt([12.5, 0, 1])
    np.testing.assert_allclose(sampler.probabilities(), 0.9 * rms / rms.sum() + 0.1 / 3, rtol=1e-14)


def test_second_moment_draws_by_these_probabilities_and_is_unbiased():
    sampler = warm()
    p = sampler.probabilities()
    t, weights = sampler.sample(grid(200_000))
    np.testing.assert_allclose(np.bincount(t, minlength=6) / len(t), p, atol=1e-5)
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-14)
    # E[w f(t)] is the plain mean of f: for f = 1, and for any other
    assert np.mean(weights) == pytest.approx(1, abs=1e-4)
    f = np.array([5.0, -1, 0, 2, 7, 1])
    assert np.mean(weights * f[t]) == pytest.approx(f.mean(), abs=1e-3)
    np.testing.assert_allclose((p * (1 / (6 * p))).sum(), 1)


def test_second_moment_is_uniform_until_every_step_is_known():
    sampler = LossSecondMoment(2, history=2)
    sampler.update(np.array([0, 0, 0, 1]), np.array([1.0, 2, 3, 9]))
    assert not sampler.warmed_up
    t, weights = sampler.sample(np.array([0.0, 0.49, 0.51]))
    assert t.tolist() == [0, 0, 1]
    assert weights.tolist() == [1, 1, 1]
    sampler.update(np.array([1]), np.array([9.0]))
    assert sampler.warmed_up
    assert sampler.probabilities()[1] > sampler.probabilities()[0]


def test_second_moment_extreme_uniforms_and_zero_losses():
    sampler = warm()
    assert sampler.sample(np.array([0.0, LARGEST_BELOW_ONE]))[0].tolist() == [0, 5]
    zero = LossSecondMoment(4, history=1)
    zero.update(np.arange(4), np.zeros(4))
    assert zero.probabilities().tolist() == [0.25] * 4
    # the boundary between two steps belongs to the upper one, as in floor(u T)
    assert zero.sample(np.array([0.25, 0.5, 0.75]))[0].tolist() == [1, 2, 3]


def test_history_is_first_in_first_out_in_index_order():
    sampler = LossSecondMoment(2, history=3)
    sampler.update(np.array([1, 0, 1, 1, 1, 1]), np.array([1.0, 7, 2, 3, 4, 5]))
    state = sampler.state()
    assert state["history"].tolist() == [[7, 0, 0], [3, 4, 5]]
    assert state["counts"].tolist() == [1, 3]


def test_one_update_equals_many():
    rng = np.random.default_rng(0)
    t, losses = rng.integers(0, 5, 200), rng.random(200)
    at_once, one_by_one = LossSecondMoment(5), LossSecondMoment(5)
    at_once.update(t, losses)
    for k in range(200):
        one_by_one.update(t[k : k + 1], losses[k : k + 1])
    np.testing.assert_array_equal(at_once.state()["history"], one_by_one.state()["history"])


@pytest.mark.parametrize("updates", [0, 3, 50])
def test_state_round_trip_continues_exactly(updates):
    rng = np.random.default_rng(updates)
    sampler, restored = LossSecondMoment(4), LossSecondMoment(4)
    for _ in range(updates):
        sampler.update(rng.integers(0, 4, 8), rng.random(8))
    state = sampler.state()
    before = {key: value.copy() for key, value in state.items()}
    restored.load(state)
    t, losses, u = rng.integers(0, 4, 8), rng.random(8), rng.random(100)
    for each in (sampler, restored):
        each.update(t, losses)
    for mine, theirs in zip(sampler.sample(u), restored.sample(u), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for key, value in before.items():
        np.testing.assert_array_equal(state[key], value)  # neither sampler shares memory with the state


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_timestep_sampler("quad", 10), "unknown timestep sampler 'quad'"),
        (lambda: UniformTimesteps(0), "T=0"),
        (lambda: LossSecondMoment(10, history=0), "history=0"),
        (lambda: LossSecondMoment(10, uniform_prob=0.0), "uniform_prob=0.0"),
        (lambda: UniformTimesteps(10).sample(np.array([1.0])), r"\[0, 1\)"),
        (lambda: UniformTimesteps(10).sample(FLOAT32), "float32"),
        (lambda: warm().sample(np.array([np.nan])), r"\[0, 1\)"),
        (lambda: warm().update(np.array([6]), np.array([1.0])), r"expected 0\.\.5"),
        (lambda: warm().update(np.array([1, 2]), np.array([1.0])), "one loss for each"),
        (lambda: warm().update(np.array([1, 2]), np.array([1.0, np.nan])), r"losses\[1\]=nan at t=2"),
        (lambda: warm().load({}), "expected"),
        (lambda: warm().load(LossSecondMoment(7).state()), r"\(7, 10\)"),
        (lambda: warm().load({**warm().state(), "counts": np.full(6, 9)}), "span 9..9"),
        (lambda: UniformTimesteps(10).load(warm().state()), "another sampler"),
    ],
)
def test_refuses_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_refused_update_changes_nothing():
    sampler = warm()
    before = sampler.state()
    with pytest.raises(ValueError, match="inf"):
        sampler.update(np.array([1, 2]), np.array([1.0, np.inf]))
    np.testing.assert_array_equal(sampler.state()["history"], before["history"])
