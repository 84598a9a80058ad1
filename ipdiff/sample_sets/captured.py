"""A whole reverse chain as one captured program, for a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ipdiff.device.program import Program
from ipdiff.samplers import Memory
from ipdiff.schedule import IntArray

Step = Callable[[Tensor, Tensor, Tensor, Tensor, Memory], tuple[Tensor, Memory]]
"""One reverse step of a batch: (x, steps [N], image numbers [N], timestep [1], memory) -> (x, memory)."""


class CapturedChain:
    """The reverse steps of a batch of fixed size as one program: the device counts the steps itself.

    Coefficients, the row of the time table and the noise are looked up at the step that a tensor holds, so that one
    captured step serves the whole chain and a step costs the host a single launch.
    """

    def __init__(self, step: Step, x: Tensor, memory: Memory, timesteps: IntArray, nfe: int) -> None:
        """Make the tensors, and capture the step where there is a GPU.

        Args:
            step: one step of the chain.
            x: [N,C,H,W], where its images are kept.
            memory: what the sampler hands on, before the first step.
            timesteps: [K] of the chain, ascending.
            nfe: steps to take: of index nfe-1 to 0.
        """
        self._of_chain, self._nfe, self._x, self._memory = step, nfe, x, memory
        self._index = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self._i = torch.zeros(1, dtype=torch.int64, device=x.device)
        self._timesteps = torch.from_numpy(timesteps).to(x.device)
        self._program = Program(self._step, x.device, "a step of sampling")
        self._program.prepare()

    def run(self, x: Tensor, index: range, check: Callable[[], None]) -> Tensor:
        """From x_T [n,C,H,W] of the images `index` to x_0; the result is overwritten by the next run."""
        self._x.copy_(x)
        for part in self._memory:
            part.zero_()
        self._index.copy_(torch.arange(index.start, index.stop, device=x.device))
        self._i.fill_(self._nfe - 1)
        for _ in range(self._nfe):
            check()
            self._program()
        return self._x

    def _step(self) -> None:
        steps, t = self._i.expand(len(self._x)), self._timesteps[self._i]
        x, memory = self._of_chain(self._x, steps, self._index, t, self._memory)
        self._x.copy_(x)
        kept = [new.clone() if any(new is part for part in self._memory) else new for new in memory]
        for part, new in zip(self._memory, kept, strict=True):
            part.copy_(new)
        self._i.sub_(1).clamp_(min=0)  # warm-ups do not leave the chain
