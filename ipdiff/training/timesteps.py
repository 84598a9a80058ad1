"""Which timestep each training image gets: functions of uniforms that the caller draws.

They are operations of fixed shapes that never look at a value: the host calls them, a GPU captures them, and the
numbers are the same. A sampler holds no random state. `LossSecondMoment` holds a loss history, which belongs to the
train state: `state()` and `load()` carry it through a restart (the published code loses it).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

State = Mapping[str, npt.NDArray[np.generic]]


class UniformTimesteps:
    """Every t with equal probability, and no history.

    Args:
        T: number of train steps, >= 1.
        device: where all its tensors are.

    Source: arXiv:2301.11706 Alg. 1 and 3.
    """

    def __init__(self, T: int, device: torch.device) -> None:
        self.T, self.device = T, device

    def sample(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Map uniforms to timesteps.

        Args:
            u: [n] float64 in [0, 1), one for each image of the batch, in index order.

        Returns:
            t: [n] int64 in 0..T-1.
            weights: [n] float64, factor on each image's loss that keeps the expected loss that of uniform t.
        """
        return self._uniform(u), torch.ones_like(u)

    def update(self, t: Tensor, losses: Tensor, keep: Tensor) -> None:
        """Take note of the losses of one step, in index order.

        Args:
            t: [n] int64 in 0..T-1.
            losses: [n] float64: the loss of each image, without the weights that `sample` gave.
            keep: one bool: false changes nothing.
        """

    def state(self) -> State:
        """Return a copy of what must survive a restart (empty where nothing must)."""
        return {}

    def load(self, state: State) -> None:
        """Take over what `state()` of an equal sampler returned."""

    def _uniform(self, u: Tensor) -> Tensor:
        return (u * self.T).to(torch.int64).clamp(max=self.T - 1)  # u T can round up to T for the largest u below 1


class AntitheticTimesteps(UniformTimesteps):
    """Uniform t in pairs (t, T-1-t), which lowers the variance of the batch loss.

    The first n//2 + 1 uniforms are used, the others are not looked at.

    Source: ermongroup/ddim runners/diffusion.py@e8df66c (train).
    """

    def sample(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return n//2 + 1 uniform t followed by their mirror images, cut to n, and weights of 1."""
        n = len(u)
        half = self._uniform(u[: n // 2 + 1])
        return torch.cat([half, self.T - 1 - half])[:n], torch.ones_like(u)


class LossSecondMoment(UniformTimesteps):
    """Importance sampling of t by the root mean square of its recent losses.

    Uniform until every t has a full history.

    Args:
        T: number of train steps, >= 1.
        device: where all its tensors are.
        size: losses remembered for each t, >= 1.
        uniform_prob: share of the probability spread evenly, in (0, 1], so that no t starves.

    Source: guided-diffusion guided_diffusion/resample.py@22e0df8; arXiv:2102.09672 Eq. 18. Timesteps are
        drawn by inverse CDF from given uniforms, not by a global generator, so that a restart repeats them.
    """

    def __init__(self, T: int, device: torch.device, size: int = 10, uniform_prob: float = 0.001) -> None:
        super().__init__(T, device)
        self.size, self.uniform_prob = size, uniform_prob
        self.history = torch.zeros((T, size), dtype=torch.float64, device=device)  # oldest first
        self.counts = torch.zeros(T, dtype=torch.int64, device=device)

    def probabilities(self) -> Tensor:
        """Of each t: [T] float64, positive, sum 1."""
        square = self.history.square()
        total_square = square[:, 0]
        for column in square.unbind(1)[1:]:
            total_square = total_square + column
        rms = torch.sqrt(total_square / self.size)
        total = _running_sum(rms)[-1]
        uniform = torch.full_like(rms, 1 / self.T)
        informed = self._warm() & (total != 0)
        return torch.where(informed, (1 - self.uniform_prob) * rms / total + self.uniform_prob * uniform, uniform)

    def sample(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Draw t by inverse CDF, with weights 1/(T p_t)."""
        p = self.probabilities()
        cdf = _running_sum(p)
        t = torch.searchsorted(cdf, u * cdf[-1], right=True).clamp(max=self.T - 1)
        t = torch.where(self._warm(), t, self._uniform(u))
        return t, torch.where(self._warm(), 1 / (self.T * p[t]), 1.0)

    def update(self, t: Tensor, losses: Tensor, keep: Tensor) -> None:
        """Append losses in index order, the oldest of a t dropping out of a full history."""
        n = len(t)
        before = torch.ones(n, n, dtype=torch.bool, device=t.device).tril(-1)  # [i, j]: j comes before i
        turn = ((t[:, None] == t[None, :]) & before).sum(1)  # how many of its t come before a loss
        new = (t[None, :] == torch.arange(self.T, device=t.device)[:, None]).sum(1)  # [T]
        dropped = (self.counts + new - self.size).clamp(min=0)
        source = torch.arange(self.size, device=t.device) + dropped[:, None]
        kept = self.history.gather(1, source.clamp(max=self.size - 1))
        moved = torch.where(source < self.counts[:, None], kept, 0.0)
        to = t * self.size + self.counts[t] + turn - dropped[t]
        to = torch.where(turn + self.counts[t] >= dropped[t], to, -1)  # more of one t than the history holds
        cells = torch.arange(self.T * self.size, device=t.device)
        added = torch.where(cells[:, None] == to[None, :], losses, 0.0).sum(1)  # one of them at most is not 0
        self.history.copy_(torch.where(keep, moved + added.view_as(moved), self.history))
        self.counts.copy_(torch.where(keep, (self.counts + new).clamp(max=self.size), self.counts))

    def state(self) -> State:
        """Return copies: "history" [T, size] float64, oldest first, 0 where empty; "counts" [T] int64."""
        return {name: getattr(self, name).cpu().numpy().copy() for name in ("history", "counts")}

    def load(self, state: State) -> None:
        """Copy what `state()` of an equal sampler returned."""
        for name in ("history", "counts"):
            getattr(self, name).copy_(torch.from_numpy(np.array(state[name])))

    def _warm(self) -> Tensor:
        """Whether every t has a full history: one bool."""
        return (self.counts == self.size).all()


TIMESTEPS: dict[str, type[UniformTimesteps]] = {
    "uniform": UniformTimesteps,
    "antithetic": AntitheticTimesteps,
    "loss-second-moment": LossSecondMoment,
}
"""By the name that params.yaml has for them."""


def _running_sum(values: Tensor) -> Tensor:
    """Inclusive running sum of [n] by doubling: the same bits everywhere, which torch.cumsum has not on a GPU."""
    shift = 1
    while shift < len(values):
        values = torch.cat([values[:shift], values[shift:] + values[:-shift]])
        shift *= 2
    return values
