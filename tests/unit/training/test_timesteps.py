"""Timestep samplers: distribution, importance weights, history."""

import math
from collections import deque
from collections.abc import Sequence
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ipdiff.spec import Training
from ipdiff.training.timesteps import TIMESTEPS, AntitheticTimesteps, LossSecondMoment, UniformTimesteps

CPU = torch.device("cpu")
LARGEST_BELOW_ONE = np.nextafter(1.0, 0.0)
uniforms = arrays(np.float64, st.integers(1, 20), elements=st.floats(0, float(LARGEST_BELOW_ONE)))


def grid(n):
    """Midpoints of n equal parts of [0, 1): an exact stand-in for many uniforms."""
    return (np.arange(n) + 0.5) / n


def sample(sampler, u):
    t, weights = sampler.sample(torch.from_numpy(np.asarray(u)))
    return t.numpy(), weights.numpy()


def update(sampler, t, losses, keep=True):
    sampler.update(torch.from_numpy(np.asarray(t)), torch.from_numpy(np.asarray(losses)), torch.tensor(keep))


def moments(T, size=10, uniform_prob=0.001):
    return LossSecondMoment(T, CPU, size, uniform_prob)


def warm(T=6, size=3, uniform_prob=0.01):
    sampler = moments(T, size, uniform_prob)
    for round_ in range(size):
        update(sampler, np.arange(T), np.linspace(0.1, 2, T) * (1 + round_))
    return sampler


def test_params_yaml_has_a_word_for_each():
    assert set(get_args(get_type_hints(Training)["timesteps"])) == set(TIMESTEPS)


@pytest.mark.parametrize("name", TIMESTEPS)
@given(u=uniforms, T=st.integers(1, 1000))
def test_every_sampler_gives_valid_steps_of_weight_one_at_first(name, u, T):
    t, weights = sample(TIMESTEPS[name](T, CPU), u)
    assert t.dtype == np.int64
    assert weights.dtype == np.float64
    assert t.shape == weights.shape == u.shape
    assert ((t >= 0) & (t < T)).all()
    assert (weights == 1).all()


def test_uniform_hits_every_step_equally_often():
    t, _ = sample(UniformTimesteps(10, CPU), grid(1000))
    assert np.bincount(t, minlength=10).tolist() == [100] * 10


@pytest.mark.parametrize("n", [1, 2, 3, 8, 9])
def test_antithetic_pairs(n):
    u = grid(n)
    t, _ = sample(AntitheticTimesteps(1000, CPU), u)
    half = n // 2 + 1
    np.testing.assert_array_equal(t[:half], np.floor(u[:half] * 1000))
    np.testing.assert_array_equal(t[half:], 999 - t[: n - half])


class ByHand:
    """The loss history of the published code: a queue for each t; Python's numbers."""

    def __init__(self, T: int, size: int = 10, uniform_prob: float = 0.001) -> None:
        self.T, self.uniform_prob = T, uniform_prob
        self.losses = [deque[float](maxlen=size) for _ in range(T)]

    def update(self, t: Sequence[int], losses: Sequence[float]) -> None:
        for step, loss in zip(t, losses, strict=True):
            self.losses[step].append(loss)

    def probabilities(self) -> np.ndarray:
        if any(len(kept) < (kept.maxlen or 0) for kept in self.losses):
            return np.full(self.T, 1 / self.T)
        rms = np.array([math.sqrt(sum(loss**2 for loss in kept) / len(kept)) for kept in self.losses])
        return (1 - self.uniform_prob) * rms / rms.sum() + self.uniform_prob / self.T


@pytest.mark.parametrize("T", [1, 3, 50])
def test_second_moment_is_the_published_code_s(T):
    """Batches of 40: several losses of one t in each, and for few t more than the history holds."""
    by_hand, sampler = ByHand(T), moments(T)
    draws = np.random.default_rng(0)
    for _ in range(60):
        np.testing.assert_allclose(sampler.probabilities().numpy(), by_hand.probabilities(), rtol=1e-12)
        u = draws.random(40)
        t, weights = sample(sampler, u)
        p = by_hand.probabilities()
        assert t.tolist() == np.searchsorted(np.cumsum(p), u, side="right").tolist()
        np.testing.assert_allclose(weights, 1 / (T * p[t]), rtol=1e-12)
        losses = draws.exponential(size=40) * (1 + t)
        by_hand.update(t.tolist(), losses.tolist())
        update(sampler, t, losses)
        update(sampler, t, np.full(40, np.nan), keep=False)
        for step, kept in enumerate(by_hand.losses):
            assert sampler.state()["counts"][step] == len(kept)
            assert sampler.state()["history"][step, : len(kept)].tolist() == list(kept)
    assert len(set(sampler.probabilities().tolist())) == T


def test_second_moment_probabilities_follow_the_root_mean_square():
    sampler = moments(3, 2, 0.1)
    for losses in ([3.0, 0.0, 1.0], [4.0, 0.0, 1.0]):
        update(sampler, np.arange(3), losses)
    rms = np.sqrt([12.5, 0, 1])
    np.testing.assert_allclose(sampler.probabilities(), 0.9 * rms / rms.sum() + 0.1 / 3, rtol=1e-14)


def test_second_moment_draws_by_these_probabilities_and_is_unbiased():
    sampler = warm()
    p = sampler.probabilities().numpy()
    t, weights = sample(sampler, grid(200_000))
    np.testing.assert_allclose(np.bincount(t, minlength=6) / len(t), p, atol=1e-5)
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-14)
    # E[w f(t)] is the plain mean of f: for f = 1, and for any other
    assert np.mean(weights) == pytest.approx(1, abs=1e-4)
    f = np.array([5.0, -1, 0, 2, 7, 1])
    assert np.mean(weights * f[t]) == pytest.approx(f.mean(), abs=1e-3)


def test_second_moment_is_uniform_until_every_step_is_known():
    sampler = moments(2, 2)
    update(sampler, [0, 0, 0, 1], [1.0, 2, 3, 9])
    t, weights = sample(sampler, [0.0, 0.49, 0.51])
    assert t.tolist() == [0, 0, 1]
    assert weights.tolist() == [1, 1, 1]
    update(sampler, [1], [9.0])
    assert sampler.probabilities()[1] > sampler.probabilities()[0]


def test_second_moment_extreme_uniforms_and_zero_losses():
    assert sample(warm(), [0.0, LARGEST_BELOW_ONE])[0].tolist() == [0, 5]
    zero = moments(4, 1)
    update(zero, np.arange(4), np.zeros(4))
    assert zero.probabilities().tolist() == [0.25] * 4
    # the boundary between two steps belongs to the upper one, as in floor(u T)
    assert sample(zero, [0.25, 0.5, 0.75])[0].tolist() == [1, 2, 3]


def test_history_is_first_in_first_out_in_index_order():
    sampler = moments(2, 3)
    update(sampler, [1, 0, 1, 1, 1, 1], [1.0, 7, 2, 3, 4, 5])
    state = sampler.state()
    assert state["history"].tolist() == [[7, 0, 0], [3, 4, 5]]
    assert state["counts"].tolist() == [1, 3]


def test_one_update_equals_many():
    rng = np.random.default_rng(0)
    t, losses = rng.integers(0, 5, 200), rng.random(200)
    at_once, one_by_one = moments(5), moments(5)
    update(at_once, t, losses)
    for k in range(200):
        update(one_by_one, t[k : k + 1], losses[k : k + 1])
    np.testing.assert_array_equal(at_once.state()["history"], one_by_one.state()["history"])


@pytest.mark.parametrize("updates", [0, 3, 50])
def test_state_round_trip_continues_exactly(updates):
    rng = np.random.default_rng(updates)
    sampler, restored = moments(4), moments(4)
    for _ in range(updates):
        update(sampler, rng.integers(0, 4, 8), rng.random(8))
    state = sampler.state()
    before = {key: value.copy() for key, value in state.items()}
    restored.load(state)
    t, losses, u = rng.integers(0, 4, 8), rng.random(8), rng.random(100)
    for each in (sampler, restored):
        update(each, t, losses)
    for mine, theirs in zip(sample(sampler, u), sample(restored, u), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for key, value in before.items():
        np.testing.assert_array_equal(state[key], value)  # neither sampler shares memory with the state
