"""Samplers: whole reverse chains from noise to images, one function each.

A sampler is written as one step of its chain and decorated into the chain: `ancestral(diffusion, model, x_T, noise)`
runs all of it, `ancestral.step` is what a captured program repeats. Pure: all noise comes from the caller, and a
sampler knows no file, device or random stream.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from ipdiff.coefficients import at
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
        self.__name__, self.__doc__ = step.__name__, step.__doc__

    def __call__(
        self,
        diffusion: GaussianDiffusion,
        model: Model,
        x: Tensor,
        noise: Noise,
        *,
        start: int | None = None,
        eps_scale: npt.ArrayLike | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
        **options: Any,
    ) -> Tensor:
        """Run the chain.

        Args:
            diffusion: the process, respaced to the steps that are kept.
            model: (x [N,C,H,W], t [N] int64) -> [N,C,H,W], or [N,2C,H,W] with learned sigma.
            x: [N,C,H,W] float, where the chain begins: standard normal, or images diffused to step `start` - 1.
            noise: see `Noise`.
            start: steps to take; all of `diffusion.num_steps` if None, and always with a memory.
            eps_scale: see `GaussianDiffusion.with_eps_scale`; as `diffusion` has it if None.
            callback: called before each step with {"i": int, "x": x_i}; it may leave by raising.
            options: of the step, such as `clip_denoised` and `eta`.

        Returns:
            x_0: [N,C,H,W], dtype of x.

        Raises:
            ValueError: as the step of `diffusion`, or a start that the chain does not have.
        """
        start = diffusion.num_steps if start is None else start
        least = diffusion.num_steps if self.memory else 1  # what remembers begins where its chain does
        if not least <= start <= diffusion.num_steps:
            raise ValueError(f"start is {start}; {self.__name__} takes {least}..{diffusion.num_steps} of these steps")
        if eps_scale is not None:
            diffusion = diffusion.with_eps_scale(eps_scale)
        memory = self.no_memory(x)
        for i in reversed(range(start)):
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
    clip_denoised: bool | None = None,
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
    clip_denoised: bool | None = None,
) -> tuple[Tensor, Memory]:
    """DDIM: eta = 0 is deterministic, 1 has the ancestral sampler's small variance. Source: arXiv:2010.02502 Eq. 12."""
    z = noise(i) if eta > 0 and not _last(i) else None
    return diffusion.ddim_step(model, x, i, z, eta=eta, clip_denoised=clip_denoised), memory


@partial(Chain, memory=1)
def dpmpp2m(
    diffusion: GaussianDiffusion,
    model: Model,
    x: Tensor,
    i: Index,
    noise: Noise,
    memory: Memory,
    *,
    clip_denoised: bool | None = None,
) -> tuple[Tensor, Memory]:
    """DPM-Solver++(2M): deterministic, of second order; remembers the x0 of the step before.

    Source: arXiv:2211.01095 Alg. 2.
    """
    (x0_before,) = memory
    x0, _ = diffusion.prediction(model, x, i, clip_denoised)
    of_x, of_x0, of_before = diffusion.chain.multistep_predictor()
    return at(of_x, i, x) * x + at(of_x0, i, x) * x0 + at(of_before, i, x) * x0_before, (x0,)


@partial(Chain, memory=3)
def unipc(
    diffusion: GaussianDiffusion,
    model: Model,
    x: Tensor,
    i: Index,
    noise: Noise,
    memory: Memory,
    *,
    clip_denoised: bool | None = None,
) -> tuple[Tensor, Memory]:
    """UniPC-2: what the network says at x corrects x itself before the next step; no call more than DPM-Solver++(2M).

    It remembers the corrected x and the x0 of the step before, and the x0 of the one before that. Source:
    arXiv:2302.04867 Alg. 5 to 8 with B(h) = e^h - 1, data prediction.
    """
    x_before, x0_before, x0_earlier = memory
    x0, _ = diffusion.prediction(model, x, i, clip_denoised)
    tables = diffusion.chain.multistep_corrector()
    parts = (x, x_before, x0_before, x0_earlier, x0)
    x = sum((at(table, i, x) * part for table, part in zip(tables, parts, strict=True)), torch.zeros_like(x))
    of_x, of_x0, of_before = diffusion.chain.multistep_predictor()
    return at(of_x, i, x) * x + at(of_x0, i, x) * x0 + at(of_before, i, x) * x0_before, (x, x0, x0_before)


CHAINS = {
    "ancestral": ancestral,
    "ddim": ddim,
    "dpmpp2m": dpmpp2m,
    "unipc": unipc,
    "exposure": ancestral,
}
"""The chain of each kind of sampler (`ipdiff.sample_sets.spec.SAMPLERS`)."""
