"""The coefficients of a Markov chain, how they meet a batch of images, and the terms of the variational bound.

Coefficients are float64 numpy tables, converted to the images' dtype where they meet them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ipdiff.schedule import FloatArray, IntArray, half_log_snr

Index = int | Tensor
"""One step for the whole batch (int, the fast path) or one for each image ([N] int64)."""


@dataclass(frozen=True)
class Coefficients:
    """Coefficients of one Markov chain, each [K] float64.

    Source: arXiv:2006.11239 Eq. 4, 7 and 15; guided-diffusion guided_diffusion/gaussian_diffusion.py@22e0df8.
    """

    betas: FloatArray
    alphas_cumprod: FloatArray
    alphas_cumprod_prev: FloatArray
    posterior_variance: FloatArray
    posterior_log_variance: FloatArray
    fixed_large_log_variance: FloatArray

    @classmethod
    def build(cls, betas: FloatArray, alphas_cumprod: FloatArray) -> Coefficients:
        """From beta and alpha-bar of each step, [K] float64 in (0, 1)."""
        previous = np.append(1.0, alphas_cumprod[:-1])
        # DDPM Eq. 7: beta tilde
        variance = betas * (1 - previous) / (1 - alphas_cumprod)
        # beta tilde_0 = 0 has no logarithm: its neighbour stands in (beta_0 itself in a chain of one step).
        first = variance[1:2] if len(betas) > 1 else betas
        return cls(
            betas=betas,
            alphas_cumprod=alphas_cumprod,
            alphas_cumprod_prev=previous,
            posterior_variance=variance,
            posterior_log_variance=np.log(np.append(first, variance[1:])),
            fixed_large_log_variance=np.log(np.append(first, betas[1:])),
        )

    def respaced(self, timesteps: IntArray) -> Coefficients:
        """The chain that keeps only these steps ([K'] int64, increasing), with the same alpha-bar at each."""
        if len(timesteps) == len(self.betas):
            return self
        kept = self.alphas_cumprod[timesteps]
        return Coefficients.build(1 - kept / np.append(1.0, kept[:-1]), kept)

    def diffuse(self, x0: Tensor, t: Index, eps: Tensor) -> Tensor:
        """x_t = sqrt(alpha-bar) x0 + sqrt(1 - alpha-bar) eps, [N,C,H,W] of x0's dtype (Eq. 4)."""
        return at(np.sqrt(self.alphas_cumprod), t, x0) * x0 + at(np.sqrt(1 - self.alphas_cumprod), t, x0) * eps

    def x0_from_eps(self, x_t: Tensor, i: Index, eps: Tensor) -> Tensor:
        """Eq. 4 solved for x0."""
        return at(np.sqrt(1 / self.alphas_cumprod), i, x_t) * x_t - self._eps_coef(i, x_t) * eps

    def eps_from_x0(self, x_t: Tensor, i: Index, x0: Tensor) -> Tensor:
        """Eq. 4 solved for eps."""
        return (at(np.sqrt(1 / self.alphas_cumprod), i, x_t) * x_t - x0) / self._eps_coef(i, x_t)

    def v_from_eps(self, x0: Tensor, t: Index, eps: Tensor) -> Tensor:
        """The velocity v = sqrt(alpha-bar) eps - sqrt(1 - alpha-bar) x0 (arXiv:2202.00512 appendix D)."""
        return at(np.sqrt(self.alphas_cumprod), t, x0) * eps - at(np.sqrt(1 - self.alphas_cumprod), t, x0) * x0

    def eps_from_v(self, x_t: Tensor, i: Index, v: Tensor) -> Tensor:
        """Eq. 4 and v solved for eps; x0 formed of it is right to 5e-3 where a cosine schedule has no signal."""
        return at(np.sqrt(self.alphas_cumprod), i, x_t) * v + at(np.sqrt(1 - self.alphas_cumprod), i, x_t) * x_t

    def min_snr_weights(self, k: float) -> FloatArray:
        """min(SNR, k) / SNR, [K]: the weights of eps' squared error (arXiv:2303.09556); ValueError where k <= 0."""
        if not 0 < k < math.inf:
            raise ValueError(f"min_snr={k}: expected a finite value > 0; the paper uses 5")
        snr = self.alphas_cumprod / (1 - self.alphas_cumprod)
        return np.minimum(snr, k) / snr

    def _eps_coef(self, i: Index, x_t: Tensor) -> float | Tensor:
        return at(np.sqrt(1 / self.alphas_cumprod - 1), i, x_t)

    def multistep_predictor(self) -> tuple[FloatArray, ...]:
        """Weights of x_i, x0_i and x0_{i+1} in x_{i-1}: the second-order step of a data-prediction solver.

        x0_i is what the network predicts at step i. The first step of the chain has none before it and is of first
        order; so is the last, whose x_{-1} is x0_0.

        Source: DPM-Solver++(2M), arXiv:2211.01095 Alg. 2; UniP-2 with B(h) = e^h - 1, arXiv:2302.04867, is the same.
        """
        h = np.append(np.inf, -np.diff(half_log_snr(self.alphas_cumprod)))
        of_x = np.sqrt((1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod))
        of_x0 = -np.sqrt(self.alphas_cumprod_prev) * np.expm1(-h)
        share = np.zeros_like(h)
        share[1:-1] = h[1:-1] / (2 * h[2:])
        return of_x, of_x0 * (1 + share), -of_x0 * share

    def multistep_corrector(self) -> tuple[FloatArray, ...]:
        """Weights of x_i, x_{i+1}, x0_{i+1}, x0_{i+2} and x0_i in the corrected x_i, once the network has seen x_i.

        The chain's first step corrects nothing, the second is of first order. Source: UniC-2 with B(h) = e^h - 1, data
        prediction, arXiv:2302.04867 Alg. 5 and Eq. 9.
        """
        K = len(self.betas)
        weights = np.zeros((5, K))
        weights[0, -1] = 1
        if K == 1:
            return tuple(weights)
        at_i, before = self.alphas_cumprod[:-1], self.alphas_cumprod[1:]  # of steps i and i+1, i = 0..K-2
        h = -np.diff(half_log_snr(self.alphas_cumprod))
        phi = -np.sqrt(at_i) * np.expm1(-h)
        weights[1, :-1] = np.sqrt((1 - at_i) / (1 - before))
        # The two conditions of order 2 for r = -h_{i+1} / h_i and 1; the first corrected step keeps the last alone.
        r = -h[1:] / h[:-1]
        e, hh = np.expm1(-h[:-1]), -h[:-1]
        first = (e / hh - 1) / e
        second = 2 * ((e / hh - 1) / hh - 0.5) / e
        of_earlier = np.append((first - second) / (1 - r) / r, 0.0)
        of_new = np.append(first - (first - second) / (1 - r), 0.5)
        weights[2, :-1] = phi * (1 - of_earlier - of_new)
        weights[3, :-1] = phi * of_earlier
        weights[4, :-1] = phi * of_new
        return tuple(weights)

    def variational_bound(self, mean: Tensor, log_variance: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """In bits per dimension, [N]: KL(q || p), p = N(mean, exp(log_variance)); at t = 0 the decoder's likelihood."""
        q_log_variance = at(self.posterior_log_variance, t, x_t)
        kl = image_mean(normal_kl(self.posterior_mean(x0, x_t, t), q_log_variance, mean, log_variance))
        nll = -image_mean(decoder_log_likelihood(x0, mean, 0.5 * log_variance))
        return torch.where(t == 0, nll, kl) / math.log(2)

    def posterior_mean(self, x0: Tensor, x_t: Tensor, i: Index) -> Tensor:
        """Mean of q(x_{i-1} | x_i, x0) (DDPM Eq. 7)."""
        of_x0 = self.betas * np.sqrt(self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)
        of_xt = (1 - self.alphas_cumprod_prev) * np.sqrt(1 - self.betas) / (1 - self.alphas_cumprod)
        return at(of_x0, i, x_t) * x0 + at(of_xt, i, x_t) * x_t


def at(table: FloatArray, i: Index, like: Tensor) -> float | Tensor:
    """Look up coefficients: a float for one step, [N,1,1,1] of like's dtype for one step an image."""
    if not isinstance(i, Tensor):
        return float(table[i])
    return per_image(on_device(table.tobytes(), np.float64, like.dtype, like.device)[i], like)


@cache  # what was captured on a GPU reads a table where it lies: none may go
def on_device(table: bytes, kind: type[np.generic], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A table as a tensor, made once: a GPU is then not sent the same numbers in every step."""
    with torch.inference_mode(False):  # autograd refuses what is made in that mode
        return torch.tensor(np.frombuffer(table, dtype=kind), dtype=dtype, device=device)


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """[N] as [N,1,1,1]: so many axes as `like` has."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def check_index(i: Index, steps: int, x: Tensor) -> None:
    """Raise ValueError where `i` is no step of 0..steps-1, or not one for each image of x [N,C,H,W]."""
    if not isinstance(i, Tensor):
        if not 0 <= i < steps:
            raise ValueError(f"step {i} is outside the chain, expected 0..{steps - 1}")
        return
    if i.dtype != torch.int64 or i.shape != x.shape[:1]:
        raise ValueError(f"steps are {i.dtype} of shape {tuple(i.shape)}, expected int64 of shape {(x.shape[0],)}")
    # On a GPU this look would stop the queue, and the lookup itself fails there.
    if i.device.type == "cpu" and i.numel() and not (0 <= int(i.min()) and int(i.max()) < steps):
        raise ValueError(f"steps span {int(i.min())}..{int(i.max())}, expected 0..{steps - 1}")


def checked_betas(betas: npt.ArrayLike) -> FloatArray:
    """[T] float64; ValueError where they are not between 0 and 1."""
    array = np.array(betas, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"betas have shape {array.shape}, expected [T] with T >= 1; use make_betas")
    bad = np.flatnonzero(~((array > 0) & (array < 1)))
    if bad.size:
        raise ValueError(f"betas[{bad[0]}]={array[bad[0]]:g}: expected a value between 0 and 1; use make_betas")
    return array


def checked_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """A value that is one of the choices; ValueError where it is none."""
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; use {' or '.join(map(repr, choices))}")
    return value


def checked_timesteps(timesteps: Sequence[int] | IntArray | None, T: int) -> IntArray:
    """The kept steps of 0..T-1, [K] int64, all for None; ValueError where they do not increase or leave that range."""
    if timesteps is None:
        return np.arange(T, dtype=np.int64)
    array = np.array(timesteps)
    if array.ndim != 1 or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"timesteps are {array.dtype} of shape {array.shape}, expected integers, one or more")
    if array[0] < 0 or array[-1] >= T or (np.diff(array) <= 0).any():
        raise ValueError(f"timesteps run from {array[0]} to {array[-1]}, expected increasing within 0..{T - 1}")
    return array.astype(np.int64)


def given(name: str, noise: Tensor | None) -> Tensor:
    """A noise that is needed; ValueError where there is none."""
    if noise is None:
        raise ValueError(f"{name} is None but needed here; give standard normal noise of the images' shape")
    return noise


def checked_penalty(gp_weight: float, gamma: float) -> float:
    """The gradient penalty's weight; ValueError where it is below 0 or not finite, or inputs are perturbed as well."""
    if not 0 <= gp_weight < math.inf:
        raise ValueError(f"gp_weight={gp_weight}: expected a finite value >= 0")
    if gp_weight > 0 and gamma > 0:
        raise ValueError(
            f"gp_weight={gp_weight} with gamma up to {gamma:g}: the penalty is defined at the unperturbed x_t; set one "
            "of the two to 0"
        )
    return gp_weight


def said_by(output: Any) -> Tensor:
    """What a network returned, or its attribute `sample` (diffusers); ValueError where neither is a tensor."""
    said = output if isinstance(output, Tensor) else getattr(output, "sample", None)
    if not isinstance(said, Tensor):
        raise ValueError(
            f"the network returned a {type(output).__name__}; expected a tensor, or an object with `sample`"
        )
    return said


def checked_table(name: str, values: npt.ArrayLike, size: int, least: float = 0.0) -> FloatArray:
    """A number for each of `size` steps, or one for all, as [size] float64; ValueError below `least` or not finite."""
    array = np.array(values, dtype=np.float64)
    if array.shape not in ((), (size,)):
        raise ValueError(f"{name} has shape {array.shape}, expected one number or {size} of them")
    bad = np.flatnonzero(~(np.isfinite(array) & (array >= least)))
    if bad.size:
        raise ValueError(f"{name}={array.flat[bad[0]]:g}: expected a finite value {'> 0' if least else '>= 0'}")
    return np.broadcast_to(array, (size,)).copy()


def normal_kl(mean1: Tensor, log_variance1: float | Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N1 || N2) of each element, in nats."""
    difference = log_variance2 - log_variance1
    return 0.5 * (difference + torch.exp(-difference) + (mean1 - mean2).square() * torch.exp(-log_variance2) - 1)


def decoder_log_likelihood(x0: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability, in nats, that a normal falls into the pixel value's bin of width 2/255.

    Source: arXiv:2006.11239 Eq. 13; the cumulative normal is guided-diffusion's approximation
        (guided_diffusion/losses.py@22e0df8), for equal numbers.
    """
    centred, inverse = x0 - mean, torch.exp(-log_scale)
    below = _approximate_normal_cdf(inverse * (centred - 1 / 255))
    up_to = _approximate_normal_cdf(inverse * (centred + 1 / 255))
    # The first and last of the 256 bins are open to the outside.
    inner = torch.where(x0 > 0.999, 1 - below, up_to - below)
    return torch.where(x0 < -0.999, up_to, inner).clamp(min=1e-12).log()


def _approximate_normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def vjp(eps: Tensor, x_t: Tensor, probe: Tensor) -> Tensor:
    """The probe's product with the Jacobian of what the network says, [N,C,H,W], differentiable in its parameters.

    Its squared norm is an unbiased estimate of the Jacobian's (Frobenius) for probes of zero mean and unit covariance,
    where no image of the batch depends on another: E |v^T J|^2 = tr(J^T E[v v^T] J) = ||J||_F^2.
    """
    if probe.shape != x_t.shape:
        raise ValueError(f"probe has shape {tuple(probe.shape)}, expected that of x_t, {tuple(x_t.shape)}")
    return torch.autograd.grad(eps, x_t, grad_outputs=probe, create_graph=True)[0]


def image_mean(values: Tensor) -> Tensor:
    """The mean over everything but the batch, [N]."""
    return values.flatten(1).mean(1)
