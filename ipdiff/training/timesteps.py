"""Which timestep each training image gets: pure functions of uniforms that the caller draws.

A sampler holds no random state. `LossSecondMoment` holds a loss history, which belongs to the train state:
`state()` and `load()` carry it through a restart (the published code loses it).

The second half is the same samplers on a device: the same numbers by operations of fixed shapes that never wait. Each
goes with the sampler it stands for, which takes over its history where the host wants to see it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
State = dict[str, npt.NDArray[np.generic]]


class TimestepSampler(ABC):
    """What the training loop needs of a timestep sampler; unless it says otherwise, it has no history."""

    def __init__(self, T: int) -> None:
        """`T`: number of train steps, >= 1; ValueError otherwise."""
        if T < 1:
            raise ValueError(f"T={T}: expected at least 1 train step; use T=1000 for the paper's models")
        self.T = T

    @abstractmethod
    def sample(self, u: FloatArray) -> tuple[IntArray, FloatArray]:
        """Map uniforms to timesteps.

        Args:
            u: [n] float64 in [0, 1), one for each image of the batch, in index order.

        Returns:
            t: [n] int64 in 0..T-1.
            weights: [n] float64, factor on each image's loss that keeps the expected loss that of uniform t.
        """

    def update(self, t: IntArray, losses: FloatArray) -> None:  # noqa: B027
        """Take note of the losses of one step, in index order.

        Args:
            t: [n] int64 in 0..T-1.
            losses: [n] float, finite: the unweighted total loss (mse + vb) of each image.

        Raises:
            ValueError: shapes differ, t out of range, or a loss that is not finite (nothing is changed then).
        """

    def state(self) -> State:
        """Return a copy of what must survive a restart (empty where nothing must)."""
        return {}

    def load(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take over what `state()` of an equal sampler returned.

        Raises:
            ValueError: it is another sampler's.
        """
        if state:
            raise ValueError(f"timestep state has {sorted(state)}, expected none; it is another sampler's state")


class UniformTimesteps(TimestepSampler):
    """Every t with equal probability.

    Args:
        T: number of train steps, >= 1.

    Raises:
        ValueError: T < 1.

    Source: arXiv:2301.11706 Alg. 1 and 3.
    """

    def sample(self, u: FloatArray) -> tuple[IntArray, FloatArray]:
        """Return t = floor(u T) and weights of 1; shapes and errors as in `TimestepSampler.sample`."""
        return _floor_uniform(_checked_u(u), self.T), np.ones(len(u))


class AntitheticTimesteps(TimestepSampler):
    """Uniform t in pairs (t, T-1-t), which lowers the variance of the batch loss.

    The first n//2 + 1 uniforms are used, the others are not looked at.

    Args:
        T: number of train steps, >= 1.

    Raises:
        ValueError: T < 1.

    Source: ermongroup/ddim runners/diffusion.py@e8df66c (train).
    """

    def sample(self, u: FloatArray) -> tuple[IntArray, FloatArray]:
        """Return n//2 + 1 uniform t followed by their mirror images, cut to n, and weights of 1."""
        n = len(_checked_u(u))
        half = _floor_uniform(u[: n // 2 + 1], self.T)
        return np.concatenate([half, self.T - 1 - half])[:n], np.ones(n)


class LossSecondMoment(TimestepSampler):
    """Importance sampling of t by the root mean square of its recent losses.

    Uniform until every t has a full history.

    Args:
        T: number of train steps, >= 1.
        history: losses remembered for each t, >= 1.
        uniform_prob: share of the probability spread evenly, in (0, 1], so that no t starves.

    Raises:
        ValueError: an argument out of its range.

    Source: guided-diffusion guided_diffusion/resample.py@22e0df8; arXiv:2102.09672 Eq. 18. Timesteps are
        drawn by inverse CDF from given uniforms, not by a global generator, so that a restart repeats them.
    """

    def __init__(self, T: int, history: int = 10, uniform_prob: float = 0.001) -> None:
        if history < 1:
            raise ValueError(f"history={history}: expected at least 1 loss for each timestep; use 10")
        if not 0 < uniform_prob <= 1:
            raise ValueError(f"uniform_prob={uniform_prob}: expected a probability in (0, 1]; use 0.001")
        super().__init__(T)
        self.uniform_prob = uniform_prob
        self._history: FloatArray = np.zeros((T, history))  # oldest first
        self._counts: IntArray = np.zeros(T, dtype=np.int64)

    @property
    def warmed_up(self) -> bool:
        """Whether every t has a full history."""
        return bool((self._counts == self._history.shape[1]).all())

    def probabilities(self) -> FloatArray:
        """Return the probability of each t: [T] float64, positive, sum 1."""
        uniform = np.full(self.T, 1 / self.T)
        # cumsum adds from left to right on every CPU; the order of np.sum depends on its SIMD width.
        rms = np.sqrt(np.cumsum(np.square(self._history), axis=1)[:, -1] / self._history.shape[1])
        total = np.cumsum(rms)[-1]
        if not self.warmed_up or total == 0:
            return uniform
        return (1 - self.uniform_prob) * rms / total + self.uniform_prob * uniform

    def sample(self, u: FloatArray) -> tuple[IntArray, FloatArray]:
        """Draw t by inverse CDF, with weights 1/(T p_t); shapes and errors as in `TimestepSampler.sample`."""
        _checked_u(u)
        if not self.warmed_up:
            return _floor_uniform(u, self.T), np.ones(len(u))
        p = self.probabilities()
        cdf = np.cumsum(p)
        t = np.minimum(np.searchsorted(cdf, u * cdf[-1], side="right"), self.T - 1).astype(np.int64)
        return t, 1 / (self.T * p[t])

    def update(self, t: IntArray, losses: FloatArray) -> None:
        """Append losses in index order, the oldest of a t dropping out of a full history; see `TimestepSampler`."""
        t, losses = np.asarray(t), np.asarray(losses, dtype=np.float64)
        self._check_update(t, losses)
        size = self._history.shape[1]
        for step, loss in zip(t.tolist(), losses.tolist(), strict=True):
            count = self._counts[step]
            if count < size:
                self._history[step, count] = loss
                self._counts[step] += 1
            else:
                self._history[step, :-1] = self._history[step, 1:]
                self._history[step, -1] = loss

    def _check_update(self, t: IntArray, losses: FloatArray) -> None:
        if t.ndim != 1 or t.shape != losses.shape:
            raise ValueError(f"t has shape {t.shape}, losses {losses.shape}; give one loss for each timestep")
        if t.size and not (0 <= t.min() and t.max() < self.T):
            raise ValueError(f"t spans {t.min()}..{t.max()}, expected 0..{self.T - 1}")
        bad = np.flatnonzero(~np.isfinite(losses))
        if bad.size:
            raise ValueError(
                f"losses[{bad[0]}]={losses[bad[0]]} at t={t[bad[0]]} is not finite; "
                "training has diverged, or skip the update of an overflowed step"
            )

    def state(self) -> State:
        """Return copies: "history" [T, history] float64, oldest first, 0 where empty; "counts" [T] int64."""
        return {"history": self._history.copy(), "counts": self._counts.copy()}

    def load(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Copy what `state()` returned; ValueError for other keys, shapes or counts than an equal sampler's."""
        if set(state) != {"history", "counts"}:
            raise ValueError(f"timestep state has {sorted(state)}, expected ['counts', 'history']")
        history, counts = state["history"].astype(np.float64), state["counts"].astype(np.int64)
        if history.shape != self._history.shape or counts.shape != self._counts.shape:
            raise ValueError(
                f"timestep state has history {history.shape} and counts {counts.shape}, expected "
                f"{self._history.shape} and {self._counts.shape}; T or history length differ from the run's"
            )
        if counts.min() < 0 or counts.max() > history.shape[1]:
            raise ValueError(f"timestep counts span {counts.min()}..{counts.max()}, expected 0..{history.shape[1]}")
        self._history, self._counts = history, counts


NAMES: dict[str, type[TimestepSampler]] = {
    "uniform": UniformTimesteps,
    "antithetic": AntitheticTimesteps,
    "loss-second-moment": LossSecondMoment,
}


def make_timestep_sampler(name: str, T: int) -> TimestepSampler:
    """Build a sampler by the name it has in params.yaml.

    Args:
        name: one of `NAMES`.
        T: number of train steps, >= 1.

    Raises:
        ValueError: unknown name or T < 1.
    """
    if name not in NAMES:
        raise ValueError(f"unknown timestep sampler {name!r}; use one of {', '.join(NAMES)}")
    return NAMES[name](T)


def _checked_u(u: FloatArray) -> FloatArray:
    if u.ndim != 1 or u.dtype != np.float64:
        raise ValueError(f"u is {u.dtype} of shape {u.shape}, expected float64 [n]; give one uniform an image")
    if u.size and not (u.min() >= 0 and u.max() < 1):
        raise ValueError(f"u spans {u.min()}..{u.max()}, expected uniforms in [0, 1)")
    return u


def _floor_uniform(u: FloatArray, T: int) -> IntArray:
    # u T can round up to T for the largest u below 1.
    return np.minimum((u * T).astype(np.int64), T - 1)


# On a device


class DeviceTimesteps:
    """Every t with equal probability."""

    def __init__(self, sampler: TimestepSampler, device: torch.device) -> None:
        """Stand for `sampler` on `device`."""
        self.sampler, self.device, self.T = sampler, device, sampler.T

    def sample(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Uniforms [n] float64 to timesteps [n] int64 and weights [n] float64."""
        return self._uniform(u), torch.ones_like(u)

    def update(self, t: Tensor, losses: Tensor, keep: Tensor) -> None:
        """Take note of losses [n] float64 at t [n], in index order, where `keep` (one bool) is true."""

    def pull(self) -> None:
        """Hand the history over to the sampler on the host."""

    def _uniform(self, u: Tensor) -> Tensor:
        return (u * self.T).to(torch.int64).clamp(max=self.T - 1)


class DeviceAntithetic(DeviceTimesteps):
    """Uniform t in pairs (t, T-1-t)."""

    def sample(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """As `AntitheticTimesteps.sample`."""
        n = len(u)
        half = self._uniform(u[: n // 2 + 1])
        return torch.cat([half, self.T - 1 - half])[:n], torch.ones_like(u)


class DeviceLossSecondMoment(DeviceTimesteps):
    """Importance sampling by the root mean square of recent losses.

    Sums over t are taken in another order than numpy's: probabilities may differ in the last bit, and t where a uniform
    number lies that close to a boundary.
    """

    def __init__(self, sampler: LossSecondMoment, device: torch.device) -> None:
        """Stand for `sampler` on `device`, from its present history."""
        super().__init__(sampler, device)
        self.uniform_prob = sampler.uniform_prob
        state = sampler.state()
        self.history = torch.from_numpy(state["history"]).to(device)
        self.counts = torch.from_numpy(state["counts"]).to(device)

    def probabilities(self) -> Tensor:
        """Of each t: [T] float64."""
        size, history = self.history.shape[1], self.history.square()
        square = history[:, 0]
        for column in history.unbind(1)[1:]:
            square = square + column
        rms = torch.sqrt(square / size)
        total = _running_sum(rms)[-1]
        uniform = torch.full_like(rms, 1 / self.T)
        informed = (self.counts == size).all() & (total != 0)
        return torch.where(informed, (1 - self.uniform_prob) * rms / total + self.uniform_prob * uniform, uniform)

    def sample(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """As `LossSecondMoment.sample`."""
        p = self.probabilities()
        cdf = _running_sum(p)
        t = torch.searchsorted(cdf, u * cdf[-1], right=True).clamp(max=self.T - 1)
        warm = (self.counts == self.history.shape[1]).all()
        t = torch.where(warm, t, self._uniform(u))
        return t, torch.where(warm, 1 / (self.T * p[t]), 1.0)

    def update(self, t: Tensor, losses: Tensor, keep: Tensor) -> None:
        """As `LossSecondMoment.update`: several losses of one t come in index order, the oldest drop out."""
        size, n = self.history.shape[1], len(t)
        before = torch.ones(n, n, dtype=torch.bool, device=t.device).tril(-1)  # [i, j]: j comes before i
        turn = ((t[:, None] == t[None, :]) & before).sum(1)  # how many of its t come before a loss
        new = (t[None, :] == torch.arange(self.T, device=t.device)[:, None]).sum(1)  # [T]
        dropped = (self.counts + new - size).clamp(min=0)
        place = torch.arange(size, device=t.device)
        source = place + dropped[:, None]
        moved = torch.where(source < self.counts[:, None], self.history.gather(1, source.clamp(max=size - 1)), 0.0)
        to = t * size + self.counts[t] + turn - dropped[t]
        to = torch.where(turn + self.counts[t] >= dropped[t], to, -1)  # more of one t than the history holds
        cells = torch.arange(self.T * size, device=t.device)
        added = torch.where(cells[:, None] == to[None, :], losses, 0.0).sum(1)  # one of them at most is not 0
        self.history.copy_(torch.where(keep, moved + added.view_as(moved), self.history))
        self.counts.copy_(torch.where(keep, (self.counts + new).clamp(max=size), self.counts))

    def pull(self) -> None:
        """Hand the history over to the sampler on the host."""
        self.sampler.load({"history": self.history.cpu().numpy(), "counts": self.counts.cpu().numpy()})


def timesteps_on(sampler: TimestepSampler, device: torch.device) -> DeviceTimesteps:
    """What stands for a sampler on a device."""
    if isinstance(sampler, LossSecondMoment):
        return DeviceLossSecondMoment(sampler, device)
    kind = DeviceAntithetic if isinstance(sampler, AntitheticTimesteps) else DeviceTimesteps
    return kind(sampler, device)


def _running_sum(values: Tensor) -> Tensor:
    """Inclusive running sum of [n] by doubling: torch.cumsum has no deterministic form on a GPU."""
    shift = 1
    while shift < len(values):
        values = torch.cat([values[:shift], values[shift:] + values[:-shift]])
        shift *= 2
    return values
