"""Samplers: whole reverse chains from noise to images, one function each.

A sampler is written as one step of its chain and decorated into the chain: `ancestral(diffusion, model, x_T, noise)`
runs all of it, `ancestral.step` is what a captured program repeats. Pure: all noise comes from the caller, and a
sampler knows no file, device or random stream.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor

from ipdiff.diffusion import GaussianDiffusion, Index, Model

Noise = Callable[[Index], Tensor]
"""Step i of the chain -> [N,C,H,W] standard normal; not called where a step needs none."""
Memory = tuple[Tensor, ...]
"""What a multistep sampler hands from one step to the next: tensors of the images' shape, zeros before the first."""


Step = Callable[..., tuple[Tensor, Memory]]
"""One reverse step: (diffusion, model, x_i, i, noise, memory, **options) -> (x_{i-1}, memory); i is an int, or [N]."""


class Chain:
    """A sampler: a whole chain made of one step.

    Attributes:
        step: the step alone.
        memory: tensors that it hands on.
    """

    def __init__(self, step: Step, memory: int = 0) -> None:
        self.step, self.memory = step, memory
        update_wrapper(self, step)

    def __call__(
        self,
        diffusion: GaussianDiffusion,
        model: Model,
        x: Tensor,
        noise: Noise,
        *,
        start: int | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
        **options: Any,
    ) -> Tensor:
        """Run the chain.

        Args:
            diffusion: the process, respaced to the steps that are kept.
            model: (x [N,C,H,W], t [N] int64) -> [N,C,H,W], or [N,2C,H,W] with learned sigma.
            x: [N,C,H,W] float, where the chain begins: standard normal, or images diffused to step `start` - 1.
            noise: see `Noise`.
            start: steps to take; all of `diffusion.num_steps` if None.
            callback: called before each step with {"i": int, "x": x_i}; it may leave by raising.
            options: of the step, such as `clip_denoised` and `eta`.

        Returns:
            x_0: [N,C,H,W], dtype of x.

        Raises:
            ValueError: as the step of `diffusion`.
        """
        memory = self.no_memory(x)
        for i in reversed(range(diffusion.num_steps if start is None else start)):
            if callback is not None:
                callback({"i": i, "x": x})
            x, memory = self.step(diffusion, model, x, i, noise, memory, **options)
        return x

    def no_memory(self, x: Tensor) -> Memory:
        """The memory before the first step."""
        return tuple(torch.zeros_like(x) for _ in range(self.memory))


def _last(i: Index) -> bool:
    """Whether this is known to be the last step, which draws no noise; a step that a tensor holds is not known."""
    return not isinstance(i, Tensor) and i == 0


@Chain
def ancestral(
    diffusion: GaussianDiffusion,
    model: Model,
    x: Tensor,
    i: Index,
    noise: Noise,
    memory: Memory,
    *,
    clip_denoised: bool = True,
) -> tuple[Tensor, Memory]:
    """Draw from p(x_{i-1} | x_i) step by step. Source: arXiv:2301.11706 Alg. 2."""
    z = None if _last(i) else noise(i)
    return diffusion.ancestral_step(model, x, i, z, clip_denoised), memory


@Chain
def ddim(
    diffusion: GaussianDiffusion,
    model: Model,
    x: Tensor,
    i: Index,
    noise: Noise,
    memory: Memory,
    *,
    eta: float = 0.0,
    clip_denoised: bool = True,
) -> tuple[Tensor, Memory]:
    """DDIM: eta = 0 is deterministic, 1 has the ancestral sampler's small variance. Source: arXiv:2010.02502 Eq. 12."""
    z = noise(i) if eta > 0 and not _last(i) else None
    return diffusion.ddim_step(model, x, i, z, eta=eta, clip_denoised=clip_denoised), memory


CHAINS = {
    "ancestral": ancestral,
    "ddim": ddim,
    "exposure": ancestral,
}
"""The chain of each kind of sampler (`ipdiff.sample_sets.spec.SAMPLERS`)."""
