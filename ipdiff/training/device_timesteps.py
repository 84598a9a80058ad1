"""The samplers of `training.timesteps` on a device: the same numbers by operations of fixed shapes that never wait.

Each goes with the sampler it stands for, which takes over its history where the host wants to see it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ipdiff.training.timesteps import AntitheticTimesteps, LossSecondMoment, TimestepSampler


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

    def push(self) -> None:
        """Take the history over from it."""

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

    def push(self) -> None:
        """Take the history over from it."""
        state = self.sampler.state()
        self.history.copy_(torch.from_numpy(state["history"]))
        self.counts.copy_(torch.from_numpy(state["counts"]))


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
