"""From a run's parameters to its network and its diffusion process."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import torch
from numpy.typing import NDArray

from ipdiff.diffusion import GaussianDiffusion
from ipdiff.errors import UserError
from ipdiff.nets.layers import UNet
from ipdiff.parameters import resolve
from ipdiff.schedule import make_betas
from ipdiff.spec import FAMILIES, Objective, Ramp, RunSpec, Strength


def network(spec: RunSpec) -> UNet:
    """The run's network, not initialised by the run's seed (see `ipdiff.nets.initial`).

    Raises:
        UserError: no network has this shape.
    """
    out_channels = spec.channels * (2 if spec.diffusion.learn_sigma else 1)
    with torch.random.fork_rng(devices=[]):  # torch's own initialisation draws from its global generator
        try:
            built, network = resolve(FAMILIES[spec.family].build), asdict(spec.network)
            return built(spec.image_size, in_channels=spec.channels, out_channels=out_channels, **network)
        except ValueError as error:
            raise UserError(f"families.{spec.family}.network cannot be built: {error}") from error


WIDE = 64
"""Base width from which channels_last pays: below it norms have so few channels a group that they are slower."""


def memory_format(spec: RunSpec) -> torch.memory_format:
    """The layout of the run's images, activations and convolution weights."""
    return torch.channels_last if spec.network.model_channels >= WIDE else torch.contiguous_format


def diffusion(spec: RunSpec, timesteps: NDArray[np.int64] | None = None) -> GaussianDiffusion:
    """The run's diffusion process, respaced to `timesteps` if they are given."""
    objective: Objective = spec.objective
    return GaussianDiffusion(
        make_betas(spec.diffusion.schedule, spec.diffusion.T),
        timesteps=timesteps,
        learn_sigma=spec.diffusion.learn_sigma,
        gamma=gamma_over_t(objective.gamma, spec.diffusion.T),
        target=objective.target,
        fixed_variance=spec.diffusion.fixed_variance,
        loss_reduction=spec.training.loss_reduction,
        gp_weight=objective.gp_weight,
        min_snr=objective.min_snr,
    )


def gamma_over_t(gamma: Strength, T: int) -> float | NDArray[np.float64]:
    """A constant stays one; a list is interpolated linearly over t = 0..T-1 (Eq. 6: gamma_t); a ramp's largest."""
    if isinstance(gamma, list):
        return np.interp(np.arange(T), np.linspace(0, T - 1, len(gamma)), gamma)
    if isinstance(gamma, Ramp):
        return max(gamma.start, gamma.end)
    return gamma
