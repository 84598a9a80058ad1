"""Gaussian diffusion with input perturbation: noising, training losses, reverse steps.

Pure functions of their arguments: no files, devices, options or random numbers; every noise comes from the
caller. Coefficients are float64 numpy tables, converted to the images' dtype where they meet them.

Two indices: `t` counts the train steps 0..T-1 (the paper counts 1..T); `i` counts the steps of the respaced
chain 0..num_steps-1, and step i shows the network the original t = timesteps[i].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ipdiff.coefficients import (
    Coefficients,
    Index,
    at,
    check_index,
    checked_betas,
    checked_choice,
    checked_penalty,
    checked_table,
    checked_timesteps,
    given,
    image_mean,
    on_device,
    per_image,
    said_by,
    vjp,
)
from ipdiff.parameters import resolve
from ipdiff.schedule import FloatArray, IntArray

Model = Callable[[Tensor, Tensor], Any]
"""model(x [N,C,H,W], t [N] int64) -> [N,C,H,W], or [N,2C,H,W] with learned sigma; or an object whose `sample` it is."""
Clip = bool | None
"""Clamp the predicted x0 to [-1, 1]; None: as the process says."""


class Target(NamedTuple):
    """What a network is trained to say, and how the noise is read from what it says.

    Attributes:
        of: (coefficients of the full chain, x0, t, eps, gamma of each image, noise of y_t) -> what the network should
            say at y_t.
        eps: (coefficients of the chain, x_t, step, what it says) -> eps, a linear function of x_t and what it says.
    """

    of: Callable[[Coefficients, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    eps: Callable[[Coefficients, Tensor, Index, Tensor], Tensor]


def _unit_noise(full: Coefficients, x0: Tensor, t: Tensor, eps: Tensor, gamma: Tensor, noise: Tensor) -> Tensor:
    # DDPM-y: eps' = (eps + gamma_t xi) / sqrt(1 + gamma_t^2)
    return noise / per_image(torch.sqrt(1 + gamma**2).to(eps.dtype), eps)


def _as_said(chain: Coefficients, x_t: Tensor, i: Index, said: Tensor) -> Tensor:
    return said


TARGETS = {
    "eps": Target(lambda full, x0, t, eps, gamma, noise: eps, _as_said),
    "eps_prime": Target(_unit_noise, _as_said),
    "v": Target(lambda full, x0, t, eps, gamma, noise: full.v_from_eps(x0, t, eps), Coefficients.eps_from_v),
}
"""What networks are trained to say, by the name in `ipdiff.spec.OBJECTIVES`."""


class _Output(NamedTuple):
    """What the network says: the noise, and the position of the log variance in its range (learned sigma)."""

    eps: Tensor
    v: Tensor | None


class GaussianDiffusion:
    """A forward process, the objective it is trained with, and its reverse steps.

    Args:
        betas: [T] float64, in (0, 1): noise variances of the train steps.
        timesteps: [K] integers, strictly increasing, in 0..T-1: the steps that sampling keeps; None keeps
            all. Training and `q_sample` always use the full chain.
        learn_sigma: the network gives 2C channels, eps and v; else C channels.
        gamma: perturbation strength of Eq. 6, >= 0: a constant (the paper) or [T], one value for each t. Where it
            changes over training, its largest value.
        target: a key of `TARGETS`: "eps" (Alg. 3), "eps_prime", the unit-variance noise of y_t (DDPM-y), or "v".
        fixed_variance: where sigma is not learned: "small" (beta tilde) or "large" (beta).
        loss_reduction: of the squared error and the gradient penalty over C, H, W: "mean" (ADM) or "sum" (the
            DDIM code base).
        gp_weight: lambda_GP, >= 0, weight of the gradient penalty (ADM-GP), which is reduced like the squared
            error: for a linear network it acts as extra input noise of this variance. It is defined without
            perturbation and so excludes gamma > 0.
        min_snr: k > 0: the squared error (and the penalty) of each t is weighted so that that of the x0 which follows
            counts min(SNR, k) times, SNR = alpha-bar / (1 - alpha-bar); for eps that is min(SNR, k) / SNR. None: all
            weights are 1.
        clip_denoised: reverse steps clamp the predicted x0 to [-1, 1], where they are not told otherwise.

    Attributes:
        T: number of train steps.
        num_steps: number of steps K of the sampling chain.
        timesteps: [K] int64, the original t of each step.
        gamma: [T] float64.
        full, chain: coefficients of the full chain and of the sampling chain.

    Raises:
        ValueError: an argument outside the range given above.

    Source: arXiv:2301.11706 Eq. 4 and 6, Alg. 1 to 3; arXiv:2202.00512 appendix D (v); arXiv:2303.09556 section 3.4
        (min-SNR); guided-diffusion guided_diffusion/gaussian_diffusion.py and respace.py@22e0df8.
    """

    def __init__(
        self,
        betas: npt.ArrayLike,
        *,
        timesteps: Sequence[int] | IntArray | None = None,
        learn_sigma: bool = True,
        gamma: npt.ArrayLike = 0.0,
        target: str = "eps",
        fixed_variance: Literal["small", "large"] = "small",
        loss_reduction: Literal["mean", "sum"] = "mean",
        gp_weight: float = 0.0,
        min_snr: float | None = None,
        clip_denoised: bool = True,
    ) -> None:
        betas = checked_betas(betas)
        self.T = len(betas)
        self.learn_sigma, self.clip_denoised = learn_sigma, clip_denoised
        self.gamma = checked_table("gamma", gamma, self.T)
        self.target = checked_choice("target", target, tuple(TARGETS))
        self.fixed_variance = checked_choice("fixed_variance", fixed_variance, ("small", "large"))
        self.loss_reduction = checked_choice("loss_reduction", loss_reduction, ("mean", "sum"))
        self.gp_weight = checked_penalty(gp_weight, self.gamma.max())
        self.full = Coefficients.build(betas, np.cumprod(1 - betas, dtype=np.float64))
        self._keep(timesteps)
        self.min_snr = min_snr
        self._loss_weights = None if min_snr is None else self._min_snr_weights(min_snr)

    @classmethod
    def from_scheduler(cls, scheduler: Any, gamma: npt.ArrayLike = 0.0, **options: Any) -> GaussianDiffusion:
        """As a scheduler of diffusers says, see `ipdiff.interop.schedulers.arguments`; `options`: of the class."""
        return cls(**{**resolve("ipdiff.interop.schedulers:arguments")(scheduler), "gamma": gamma, **options})

    @property
    def needs_xi(self) -> bool:
        """Whether the training loss perturbs its input with a noise of its own (Eq. 6), at some t."""
        return bool(self.gamma.any())

    @property
    def needs_probe(self) -> bool:
        """Whether the training loss holds the gradient penalty: a direction to look in, and second derivatives."""
        return self.gp_weight > 0

    def respaced(self, timesteps: Sequence[int] | IntArray | None) -> GaussianDiffusion:
        """The same process, whose sampling chain keeps these steps, without epsilon scaling; see the class."""
        shorter = copy(self)
        shorter._keep(timesteps)
        return shorter

    def with_eps_scale(self, eps_scale: npt.ArrayLike) -> GaussianDiffusion:
        """The same process, whose reverse steps divide the predicted eps by a number (epsilon scaling).

        Args:
            eps_scale: > 0, one number or [num_steps], one for each step of the sampling chain. Training losses do not
                know it.

        Raises:
            ValueError: another shape, or a number that is not positive.

        Source: arXiv:2308.15321 section 4; lambda(t) = k t + b there counts the steps of the respaced chain.
        """
        scaled = copy(self)
        scaled._eps_scale = checked_table("eps_scale", eps_scale, self.num_steps, least=np.nextafter(0, 1))
        return scaled

    def q_sample(self, x0: Tensor, t: Index, eps: Tensor) -> Tensor:
        """Diffuse images to train step t.

        Args:
            x0: [N,C,H,W] float, in [-1, 1].
            t: int or [N] int64, in 0..T-1.
            eps: [N,C,H,W] float, standard normal.

        Returns:
            x_t: [N,C,H,W], dtype of x0.

        Raises:
            ValueError: t out of range (for a tensor: checked on the CPU only) or of the wrong kind.

        Source: arXiv:2301.11706 Eq. 4.
        """
        check_index(t, self.T, x0)
        return self.full.diffuse(x0, t, eps)

    def perturbed(self, x0: Tensor, t: Index, eps: Tensor, xi: Tensor | None = None) -> Tensor:
        """Diffuse images to train step t with perturbed noise: the network's input while training.

        Arguments as `q_sample`, and xi: [N,C,H,W] float, standard normal, independent of eps; may be None unless
        `needs_xi`.

        Returns:
            y_t: [N,C,H,W], dtype of x0; exactly `q_sample(x0, t, eps)` where gamma = 0.

        Raises:
            ValueError: as `q_sample`, or xi is None although gamma > 0.

        Source: arXiv:2301.11706 Eq. 6.
        """
        check_index(t, self.T, x0)
        return self.full.diffuse(x0, t, self._perturbed_noise(self._gamma_at(t, eps), eps, xi))

    def training_losses(
        self,
        model: Model,
        x0: Tensor,
        t: Tensor,
        eps: Tensor,
        xi: Tensor | None = None,
        *,
        probe: Tensor | None = None,
        gamma: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the loss of each image from one call of the network.

        Args:
            model: called once with y_t [N,C,H,W] and t [N].
            x0: [N,C,H,W] float, in [-1, 1].
            t: [N] int64, in 0..T-1.
            eps: [N,C,H,W] float, standard normal: the target (Alg. 3).
            xi: [N,C,H,W] float, standard normal; may be None unless `needs_xi`.
            probe: [N,C,H,W] float, standard normal or random signs: the direction in which the gradient
                penalty looks. Where it is needed (`needs_probe`), the network must be differentiable twice;
                elsewhere the penalty is reported and not added. Autograd must be enabled.
            gamma: [] or [N] float64 on x0's device, >= 0: the strength at this update, where it changes over training
                (only where `needs_xi`); None: the process'.

        Returns:
            dict of [N], dtype of x0: "mse" (squared error, mean or sum over C, H, W); with learned sigma "vb"
            (bits per dimension, times T/1000, trains the variance only); with a probe "gp" (an unbiased estimate of
            ||d said / d x||_F^2, of what the network says, over C * H * W where the squared error is a mean);
            "loss" = w * mse + vb + w * gp_weight * gp, w = 1 without `min_snr`.

        Raises:
            ValueError: as `perturbed`, a probe that is missing or of another shape than x0, a gamma for a process that
                perturbs nothing, or a network output of the wrong shape.

        Source: arXiv:2301.11706 Alg. 3, Table 7 (DDPM-y), L_GP (its estimator is not published); guided-diffusion
            guided_diffusion/gaussian_diffusion.py@22e0df8 (RESCALED_MSE). As there, the variational bound
            is taken at y_t with the unperturbed schedule.
        """
        if self.needs_probe and probe is None:
            raise ValueError(f"gp_weight={self.gp_weight} needs probe: give standard normal noise of x0's shape")
        if gamma is not None and not self.needs_xi:
            raise ValueError("gamma of an update, for a process with gamma=0; give the process its largest value")
        check_index(t, self.T, x0)
        gamma = self._gamma_at(t, eps) if gamma is None else gamma
        noise = self._perturbed_noise(gamma, eps, xi)
        y_t = self.full.diffuse(x0, t, noise)
        if probe is not None:
            y_t = y_t.detach().requires_grad_()
        said, v = self._split(model(y_t, t), y_t)
        target = TARGETS[self.target]
        terms = {"mse": self._reduce((target.of(self.full, x0, t, eps, gamma, noise) - said).square())}
        output = _Output(target.eps(self.full, y_t, t, said), v)
        loss = self._weighted(terms["mse"], t)
        if output.v is not None:
            # arXiv:2102.09672 section 3.1: the bound trains the variance only; T/1000 is the code's scale
            p = self._reverse(self.full, _Output(output.eps.detach(), v), y_t.detach(), t, clip_denoised=False)
            bound = self.full.variational_bound(p["mean"], p["log_variance"], x0, y_t.detach(), t)
            terms["vb"] = bound * (self.T / 1000)
            loss = loss + terms["vb"]
        if probe is not None:
            gp = self._reduce(vjp(said, y_t, probe).square())
            terms["gp"] = gp if self.needs_probe else gp.detach()
            # L_GP = ||eps - eps_theta||^2 + lambda_GP ||d eps_theta / d x||_F^2
            loss = loss + self.gp_weight * self._weighted(gp, t) if self.needs_probe else loss
        return {**terms, "loss": loss}

    def p_mean_variance(self, model: Model, x_t: Tensor, i: Index, clip_denoised: Clip = None) -> dict[str, Tensor]:
        """Compute the reverse distribution p(x_{i-1} | x_i).

        Args:
            model: called once with x_t and the original timestep of i.
            x_t: [N,C,H,W] float, any range.
            i: int or [N] int64, in 0..num_steps-1: step of the respaced chain.
            clip_denoised: clamp the predicted x0 to [-1, 1]; as the process says if None.

        Returns:
            dict of [N,C,H,W], dtype of x_t: "mean", "log_variance" (natural logarithm) and "pred_x0".

        Raises:
            ValueError: i out of range (for a tensor: checked on the CPU only), or a network output of the
                wrong shape.

        Source: arXiv:2006.11239 Eq. 7 and 11; arXiv:2102.09672 Eq. 15 (learned sigma).
        """
        return self._reverse(self.chain, self._predict(model, x_t, i), x_t, i, clip_denoised)

    def prediction(self, model: Model, x_t: Tensor, i: Index, clip_denoised: Clip = None) -> tuple[Tensor, Tensor]:
        """The predicted x0 and eps, each [N,C,H,W]; arguments and errors as `p_mean_variance`.

        Where x0 is clipped, eps is derived anew from it, as guided-diffusion does.
        """
        eps = self._predict(model, x_t, i).eps
        x0 = self.chain.x0_from_eps(x_t, i, eps)
        if self._clips(clip_denoised):
            x0 = x0.clamp(-1, 1)
            eps = self.chain.eps_from_x0(x_t, i, x0)
        return x0, eps

    def ancestral_step(
        self, model: Model, x_t: Tensor, i: Index, noise: Tensor | None, clip_denoised: Clip = None
    ) -> Tensor:
        """Draw x_{i-1} from p(x_{i-1} | x_i); the last step (i = 0) returns the mean, without noise.

        Arguments as `p_mean_variance`, and noise: [N,C,H,W] float, standard normal; may be None for the int i = 0.

        Returns:
            x_{i-1}: [N,C,H,W], dtype of x_t.

        Raises:
            ValueError: as `p_mean_variance`, or noise is None where it is needed.

        Source: arXiv:2301.11706 Alg. 2.
        """
        p = self.p_mean_variance(model, x_t, i, clip_denoised)
        if not isinstance(i, Tensor) and i == 0:
            return p["mean"]
        # Alg. 2: x_{t-1} = mean + sigma_t z, with z = 0 in the last step
        scaled = torch.exp(0.5 * p["log_variance"]) * given("noise", noise)
        return p["mean"] + (torch.where(per_image(i > 0, x_t), scaled, 0.0) if isinstance(i, Tensor) else scaled)

    def ddim_step(
        self,
        model: Model,
        x_t: Tensor,
        i: Index,
        noise: Tensor | None,
        eta: float = 0.0,
        clip_denoised: Clip = None,
    ) -> Tensor:
        """Take one DDIM step to x_{i-1}; the last step (i = 0) returns the predicted x0.

        Arguments as `p_mean_variance`; noise as `ancestral_step`, may be None where eta = 0; eta: in [0, 1], 0 is
        deterministic, 1 has the ancestral sampler's small variance. Where x0 is clamped, eps is derived anew from it
        (guided-diffusion); without clamping it is the DDIM code base's step.

        Returns:
            x_{i-1}: [N,C,H,W], dtype of x_t.

        Raises:
            ValueError: as `p_mean_variance`, eta out of range, or noise is None where it is needed.

        Source: arXiv:2010.02502 Eq. 12 and 16; ermongroup/ddim functions/denoising.py@e8df66c;
            guided-diffusion guided_diffusion/gaussian_diffusion.py@22e0df8 (ddim_sample).
        """
        if not 0 <= eta <= 1:
            raise ValueError(f"eta={eta}: expected a value in [0, 1]; use 0 for the deterministic sampler")
        x0, eps = self.prediction(model, x_t, i, clip_denoised)
        # DDIM Eq. 16: sigma(eta)^2 = eta^2 beta tilde
        variance = eta**2 * self.chain.posterior_variance
        previous = self.chain.alphas_cumprod_prev
        # DDIM Eq. 12; max() takes away a rounding error below zero
        towards_x_t = np.sqrt(np.maximum(1 - previous - variance, 0))
        mean = at(np.sqrt(previous), i, x_t) * x0 + at(towards_x_t, i, x_t) * eps
        if eta == 0 or (not isinstance(i, Tensor) and i == 0):
            return mean
        return mean + at(np.sqrt(variance), i, x_t) * given("noise", noise)

    def _keep(self, timesteps: Sequence[int] | IntArray | None) -> None:
        self.timesteps = checked_timesteps(timesteps, self.T)
        self.num_steps = len(self.timesteps)
        self.chain = self.full.respaced(self.timesteps)
        self._eps_scale = np.ones(self.num_steps)

    def _clips(self, asked: Clip) -> bool:
        return self.clip_denoised if asked is None else asked

    def _min_snr_weights(self, k: float) -> FloatArray:
        one = torch.ones((self.T, 1, 1, 1), dtype=torch.float64)
        eps = TARGETS[self.target].eps(self.full, 0 * one, torch.arange(self.T), one)  # by what is said: it is linear
        return self.full.min_snr_weights(k) * eps.flatten().square().numpy()

    def _weighted(self, squared: Tensor, t: Tensor) -> Tensor:
        return squared if self._loss_weights is None else at(self._loss_weights, t, squared) * squared

    def _gamma_at(self, t: Index, like: Tensor) -> Tensor:
        """gamma_t of each image, [N] float64, or of all, []."""
        return on_device(self.gamma.tobytes(), np.float64, torch.float64, like.device)[t]

    def _perturbed_noise(self, gamma: Tensor, eps: Tensor, xi: Tensor | None) -> Tensor:
        if not self.needs_xi:
            return eps
        # Eq. 6: eps + gamma_t xi
        return eps + per_image(gamma.to(eps.dtype), eps) * given("xi", xi)

    def _reduce(self, squared: Tensor) -> Tensor:
        return squared.flatten(1).sum(1) if self.loss_reduction == "sum" else image_mean(squared)

    def _split(self, output: Any, x_t: Tensor) -> tuple[Tensor, Tensor | None]:
        output, channels = said_by(output), x_t.shape[1]
        expected = (x_t.shape[0], channels * (2 if self.learn_sigma else 1), *x_t.shape[2:])
        if output.shape != expected:
            raise ValueError(
                f"network output has shape {tuple(output.shape)}, expected {expected} with "
                f"learn_sigma={self.learn_sigma}; change the network's out_channels or learn_sigma"
            )
        output = output.to(x_t.dtype)
        return output[:, :channels], output[:, channels:] if self.learn_sigma else None

    def _predict(self, model: Model, x_t: Tensor, i: Index) -> _Output:
        check_index(i, self.num_steps, x_t)
        if isinstance(i, Tensor):
            table = on_device(self.timesteps.tobytes(), np.int64, torch.int64, x_t.device)
            t = table[i[:1]].expand_as(i) if i.stride(0) == 0 else table[i]  # one step for all: as below
        else:
            one = torch.full((1,), int(self.timesteps[i]), dtype=torch.int64, device=x_t.device)
            t = one.expand(x_t.shape[0])  # a network that sees this computes what depends on t once
        said, v = self._split(model(x_t, t), x_t)
        eps = TARGETS[self.target].eps(self.chain, x_t, i, said)
        if (self._eps_scale != 1).any():
            eps = eps / at(self._eps_scale, i, x_t)
        return _Output(eps, v)

    def _reverse(
        self, chain: Coefficients, output: _Output, x_t: Tensor, i: Index, clip_denoised: Clip
    ) -> dict[str, Tensor]:
        x0 = chain.x0_from_eps(x_t, i, output.eps)
        x0 = x0.clamp(-1, 1) if self._clips(clip_denoised) else x0
        mean = chain.posterior_mean(x0, x_t, i)
        return {"mean": mean, "log_variance": self._log_variance(chain, output.v, x_t, i), "pred_x0": x0}

    def _log_variance(self, chain: Coefficients, v: Tensor | None, x_t: Tensor, i: Index) -> Tensor:
        small, large = chain.posterior_log_variance, chain.fixed_large_log_variance
        if v is None:
            return at(small if self.fixed_variance == "small" else large, i, x_t) * torch.ones_like(x_t)
        # arXiv:2102.09672 Eq. 15: v = 1 is beta, v = -1 is beta tilde; v is not bounded
        share = (v + 1) / 2
        return share * at(np.log(chain.betas), i, x_t) + (1 - share) * at(small, i, x_t)
