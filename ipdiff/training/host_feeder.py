"""Updates that the host takes one by one: passes, gradients summed in a fixed order, one process or several.

Every update is looked at when it is done. The CPU trains so: these are the bytes of the published artifacts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipdiff.device.memory import Passes
from ipdiff.training import optimizer
from ipdiff.training.distributed import ALONE, Processes, passes_of
from ipdiff.training.run import Run


class HostFeeder:
    """See `ipdiff.training.run.Feeder`; `check` is called between passes."""

    every = 1

    def __init__(self, run: Run, processes: Processes = ALONE, passes: Passes | None = None) -> None:
        """Go on from the run's state; `passes`: of this process' share of each update.

        Raises:
            UserError: these processes cannot share its updates.
        """
        self.run, self.processes = run, processes
        self.passes = passes or passes_of(run, processes)

    @property
    def step(self) -> int:
        """See `Feeder`."""
        return self.run.step

    def advance(self, check: Callable[[], None] = lambda: None) -> None:
        """See `Feeder`."""
        run = self.run
        t, weights = run.timesteps.sample(self._tensor(run.uniforms(run.step)))
        losses, grads = self._gradients(t, weights, check)
        mean, norm = mean_of(losses * weights.cpu().numpy()), torch.nn.utils.get_total_norm(grads)
        if math.isfinite(mean) and bool(torch.isfinite(norm)):
            self._update(grads, norm)
        run.note(losses, mean, float(norm))
        run.timesteps.update(t, self._tensor(losses), self._tensor(np.isfinite(losses).all()))

    def _gradients(
        self, t: Tensor, weights: Tensor, check: Callable[[], None]
    ) -> tuple[NDArray[np.float64], list[Tensor]]:
        """Losses of the whole batch in index order, and the gradients of its mean loss, times the loss scale."""
        run, spec = self.run, self.run.spec.training
        exact = spec.reduction == "exact"
        indices, mirrored = run.indices(run.step), run.mirrored(run.step)
        factor = 1.0 if run.scale is None else run.scale.factor
        strength = run.gamma(run.step)
        gamma = None if strength is None else self._tensor(strength)

        def gradients(part: range) -> tuple[Tensor, list[Tensor]]:
            check()
            here = slice(part.start, part.stop)
            flipped = None if mirrored is None else self._tensor(mirrored[here])
            pictures = run.pictures(indices[here])
            losses, grads = run.gradients(pictures, flipped, t[here], weights[here], part, run.step, factor, gamma)
            return losses.cpu(), grads

        losses, grads = self.passes.fitting(lambda cut: optimizer.of_parts(cut, gradients, halves=exact))
        self.processes.sum_(grads, exact=exact)
        return self.processes.join(losses, spec.batch_size).numpy(), grads

    def _tensor(self, values: NDArray[np.generic] | np.generic | float) -> Tensor:
        return torch.from_numpy(np.asarray(values)).to(self.run.device)

    def _update(self, grads: list[Tensor], norm: Tensor) -> None:
        """Optimiser and EMA; the gradients are still times the loss scale."""
        run, spec = self.run, self.run.spec.training
        if run.scale is not None:
            torch._foreach_mul_(grads, 1 / run.scale.factor)  # type: ignore[attr-defined]
            norm = norm / run.scale.factor
        run.descend(grads, norm, optimizer.learning_rate(spec, run.step))
        optimizer.ema_update(run.ema, run.weights, optimizer.ema_decay(spec, run.step))

    def settle(self) -> Run:
        """See `Feeder`; each update was made sure of when it was done."""
        return self.run

    def close(self) -> None:
        """See `Feeder`; nothing works beside this process."""


def mean_of(values: NDArray[np.floating]) -> float:
    """Mean with one rounding: np.mean's order, and so its last bits, depend on the CPU's SIMD width."""
    if not np.isfinite(values).all():
        return float(np.sum(values))
    return math.fsum(values.tolist()) / len(values)
