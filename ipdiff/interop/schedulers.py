"""Schedulers of diffusers and our processes, each as the other; nothing of diffusers is imported.

A scheduler is looked at by its `config` alone. `arguments` reads one, `config` writes one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ipdiff.errors import UserError, brief
from ipdiff.schedule import FloatArray, make_betas
from ipdiff.spec import RunSpec

WRITTEN_FOR = "0.42.1"
"""The version of diffusers that the tests compare with."""

PREDICTIONS = {"eps": "epsilon", "eps_prime": "epsilon", "v": "v_prediction"}
"""The schedulers' word for what a network says, by the run's target."""

KINDS = ("DDPMScheduler", "DDIMScheduler")
"""Schedulers whose step is one of ours; others are solvers of the same processes."""

_SCHEDULES: dict[str, Callable[[float, float, int], FloatArray]] = {
    "linear": lambda start, end, T: np.linspace(start, end, T),
    "scaled_linear": lambda start, end, T: np.linspace(start**0.5, end**0.5, T) ** 2,
    "squaredcos_cap_v2": lambda start, end, T: make_betas("cosine", T),
    "sigmoid": lambda start, end, T: (end - start) / (1 + np.exp(-np.linspace(-6, 6, T))) + start,
}
"""The betas of a `beta_schedule`, float64."""

_VARIANCES: dict[str, dict[str, Any]] = {
    "fixed_small": {"learn_sigma": False, "fixed_variance": "small"},
    "fixed_small_log": {"learn_sigma": False, "fixed_variance": "small"},
    "fixed_large": {"learn_sigma": False, "fixed_variance": "large"},
    "learned_range": {"learn_sigma": True},
}
"""Our options for a `variance_type`; a scheduler without one (DDIM) has the small variance at eta = 1."""


def arguments(scheduler: Any) -> dict[str, Any]:
    """What `GaussianDiffusion` has to be told to be the process of a scheduler.

    Args:
        scheduler: a DDPMScheduler or DDIMScheduler, or its configuration as a mapping (scheduler_config.json).

    Returns:
        betas [T] float64 (of the formula, not of the scheduler's float32), target, learn_sigma, fixed_variance and
        clip_denoised. `timestep_spacing` and `steps_offset` are not looked at: the name of a sampler says which steps
        are kept.

    Raises:
        ValueError: it is none of these, or is set to something that a process here has no word for.

    Source: diffusers 0.42.1, schedulers/scheduling_ddpm.py and scheduling_ddim.py.
    """
    config = getattr(scheduler, "config", scheduler)
    if not isinstance(config, Mapping) or "num_train_timesteps" not in config:
        raise ValueError(f"scheduler is a {type(scheduler).__name__}; expected a {' or '.join(KINDS)} of diffusers")
    kind = config.get("_class_name", "") if config is scheduler else type(scheduler).__name__
    if kind not in KINDS:
        raise ValueError(
            f"scheduler is a {brief(kind or 'configuration without _class_name', 60)}; give a {' or '.join(KINDS)}: "
            "DDPMScheduler.from_config(scheduler.config) has the same process"
        )
    target = next(
        (target for target, word in PREDICTIONS.items() if word == config.get("prediction_type", "epsilon")), None
    )
    variance = _VARIANCES.get(config.get("variance_type", "fixed_small"))
    clip = bool(config.get("clip_sample", True))
    _refuse(kind, config, "prediction_type", target is None, " or ".join(dict.fromkeys(PREDICTIONS.values())))
    _refuse(kind, config, "variance_type", variance is None, ", ".join(_VARIANCES))
    _refuse(kind, config, "thresholding", bool(config.get("thresholding")), "False; x0 is clamped to [-1, 1] or not")
    _refuse(kind, config, "clip_sample_range", clip and config.get("clip_sample_range", 1.0) != 1.0, "1.0")
    _refuse(
        kind, config, "rescale_betas_zero_snr", bool(config.get("rescale_betas_zero_snr")), "False; a beta is below 1"
    )
    _refuse(kind, config, "set_alpha_to_one", not config.get("set_alpha_to_one", True), "True; a chain ends at x0")
    return {"betas": _betas(kind, config), "target": target, "clip_denoised": clip, **(variance or {})}


def _refuse(kind: str, config: Mapping[str, Any], key: str, wrong: bool, expected: str) -> None:
    if wrong:
        raise ValueError(f"{kind}: {key} is {brief(config.get(key), 40)}; a process here has {expected}")


def _betas(kind: str, config: Mapping[str, Any]) -> FloatArray:
    trained = config.get("trained_betas")
    if trained is not None:
        return np.asarray(trained, np.float64)
    schedule = config.get("beta_schedule", "linear")
    if schedule not in _SCHEDULES:
        known = ", ".join(_SCHEDULES)
        raise ValueError(f"{kind}: beta_schedule is {brief(schedule, 40)}; known: {known}, or give trained_betas")
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    return _SCHEDULES[schedule](start, end, int(config["num_train_timesteps"]))


def config(spec: RunSpec, clip_denoised: bool) -> dict[str, Any]:
    """A run's noise schedule and reverse process: DDPM with ADM's spacing of steps, or DDIM with the DDIM code's.

    A step is ours where it starts from the same timestep; the spacing of shorter chains may differ from ADM's by one
    timestep in places (never for T' = 60, 80, 100, 200, 300, 1000 of 1000). See `unsaid` for what has no word there.

    Raises:
        UserError: they have no word for what the network was trained to say.
    """
    if spec.objective.target not in PREDICTIONS:
        raise UserError(f"format diffusers has no word for target {spec.objective.target}; use safetensors")
    diffusion = spec.diffusion
    schedule = (
        {"beta_schedule": "squaredcos_cap_v2"}
        if diffusion.schedule == "cosine"
        else {"beta_schedule": "linear", "beta_start": 0.1 / diffusion.T, "beta_end": 20 / diffusion.T}
    )
    common = schedule | {
        "_diffusers_version": WRITTEN_FOR,
        "clip_sample": clip_denoised,
        "clip_sample_range": 1.0,
        "num_train_timesteps": diffusion.T,
        "prediction_type": PREDICTIONS[spec.objective.target],
    }
    if spec.family == "ddpm":
        more = {"set_alpha_to_one": True, "steps_offset": 0, "timestep_spacing": "leading"}
        return common | more | {"_class_name": "DDIMScheduler"}
    variance = "learned_range" if diffusion.learn_sigma else f"fixed_{diffusion.fixed_variance}"
    return common | {"_class_name": "DDPMScheduler", "variance_type": variance, "timestep_spacing": "linspace"}


def unsaid(spec: RunSpec, clip_denoised: bool) -> list[str]:
    """What of the run's sampling these files cannot say, a line each."""
    lines = []
    if spec.objective.target == "eps_prime":
        lines.append(
            "the network predicts eps', the noise of its perturbed input scaled to unit variance (target: eps_prime); "
            "diffusers knows no such prediction: `epsilon` is written, which gives the steps of this project's samplers"
        )
    if spec.family == "ddpm" and clip_denoised:
        lines.append(
            "x0 is clamped and eps derived anew from it; diffusers has no key for that: call step with "
            "use_clipped_model_output=True"
        )
    return lines
