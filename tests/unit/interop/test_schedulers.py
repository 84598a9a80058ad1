"""Schedulers of diffusers as processes of ours: what corresponds, how nearly, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from unit.tiny import RUNS

from ipdiff import GaussianDiffusion, sample
from ipdiff.interop import schedulers
from ipdiff.nets import build
from ipdiff.schedule import respace

SHAPE = (2, 1, 8, 8)


@pytest.fixture(scope="module")
def library() -> Any:
    """The real diffusers."""
    return pytest.importorskip("diffusers", reason="diffusers is not installed: chains were not compared")


@pytest.fixture
def model(library: Any) -> Any:
    """A UNet2DModel with weights large enough to matter."""
    torch.manual_seed(0)
    options = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return library.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **options, **blocks)


def theirs(scheduler: Any, model: Any, steps: int, seed: int, **options: Any) -> Tensor:
    """The chain as their pipelines walk it, its noise from one generator."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SHAPE, generator=generator)
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t).sample, t, x, generator=generator, **options).prev_sample
    return x


def ours(process: GaussianDiffusion, model: Any, seed: int, chain: str, **options: Any) -> Tensor:
    """The same chain by our samplers, with the same noise."""
    from ipdiff.samplers import CHAINS

    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SHAPE, generator=generator)
    with torch.no_grad():
        return CHAINS[chain](process, model, x, lambda i: torch.randn(SHAPE, generator=generator), **options)


@pytest.mark.parametrize(
    ("schedule", "variance", "prediction", "clip"),
    [
        ("linear", "fixed_small", "epsilon", True),
        ("scaled_linear", "fixed_small_log", "epsilon", False),
        ("squaredcos_cap_v2", "fixed_large", "v_prediction", True),
        ("sigmoid", "fixed_large", "epsilon", False),
        ("linear", "fixed_small", "v_prediction", False),
    ],
)
def test_a_ddpm_chain_is_theirs(
    schedule: str, variance: str, prediction: str, clip: bool, library: Any, model: Any
) -> None:
    options = {"timestep_spacing": "linspace", "clip_sample": clip, "prediction_type": prediction}
    scheduler = library.DDPMScheduler(beta_schedule=schedule, variance_type=variance, **options)
    process = GaussianDiffusion.from_scheduler(scheduler, timesteps=respace(1000, "10"))
    expected, found = theirs(scheduler, model, 10, 5), ours(process, model, 5, "ancestral")
    # at t = 999 their float32 alpha-bar of the cosine schedule, 2e-9, is right to three digits
    tolerance = 1e-3 if schedule == "squaredcos_cap_v2" else 1e-4
    assert float((found - expected).abs().max()) < tolerance * max(float(expected.abs().max()), 1)
    assert process.clip_denoised == clip


@pytest.mark.parametrize(
    ("schedule", "clip", "eta"),
    [
        ("linear", True, 0.0),
        ("squaredcos_cap_v2", True, 0.7),
        ("linear", False, 0.7),
        ("squaredcos_cap_v2", False, 0.0),
    ],
)
def test_a_ddim_chain_is_theirs(schedule: str, clip: bool, eta: float, library: Any, model: Any) -> None:
    scheduler = library.DDIMScheduler(beta_schedule=schedule, clip_sample=clip)  # its spacing is "leading"
    process = GaussianDiffusion.from_scheduler(scheduler, timesteps=respace(1000, "uniform10"))
    expected = theirs(scheduler, model, 10, 5, eta=eta, use_clipped_model_output=clip)
    found = ours(process, model, 5, "ddim", eta=eta)
    difference = float((found - expected).abs().max())
    assert difference < 1e-4 * max(float(expected.abs().max()), 1)


def test_learned_variances_are_theirs(library: Any) -> None:
    spec = RUNS["adm"]
    scheduler = library.DDPMScheduler.from_config(schedulers.config(spec, True))
    process = GaussianDiffusion.from_scheduler(scheduler)
    own = build.diffusion(spec, None)
    assert (process.learn_sigma, process.T, process.target) == (True, own.T, "eps")
    np.testing.assert_array_equal(process.full.betas, own.full.betas)


def test_a_configuration_in_a_file_is_enough() -> None:
    config = schedulers.config(RUNS["ddim"], True)
    process = GaussianDiffusion.from_scheduler(config, gamma=0.1)
    np.testing.assert_allclose(process.full.betas, build.diffusion(RUNS["ddim"], None).full.betas, rtol=1e-15)
    assert (process.gamma.max(), process.fixed_variance, process.learn_sigma) == (0.1, "small", False)
    assert GaussianDiffusion.from_scheduler(config, 0.1, target="eps_prime").target == "eps_prime"


def test_betas_that_were_given_are_taken(library: Any) -> None:
    betas = np.linspace(0.01, 0.3, 12)
    scheduler = library.DDPMScheduler(num_train_timesteps=12, trained_betas=betas.tolist())
    np.testing.assert_array_equal(GaussianDiffusion.from_scheduler(scheduler).full.betas, betas)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (
            "DDPM",
            {"prediction_type": "sample"},
            "prediction_type is sample; a process here has epsilon or v_prediction",
        ),
        ("DDPM", {"variance_type": "learned"}, "variance_type is learned; a process here has fixed_small, "),
        ("DDPM", {"variance_type": "fixed_large_log"}, "variance_type is fixed_large_log; a process here has"),
        ("DDPM", {"thresholding": True}, "thresholding is True; a process here has False"),
        ("DDPM", {"clip_sample_range": 2.0}, "clip_sample_range is 2.0; a process here has 1.0"),
        ("DDPM", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True"),
        ("DDPM", {"beta_schedule": "laplace"}, "beta_schedule is laplace; known: linear, .*, or give trained_betas"),
        ("DDIM", {"set_alpha_to_one": False}, "set_alpha_to_one is False"),
        ("PNDM", {}, r"a PNDMScheduler; give a DDPMScheduler or DDIMScheduler: DDPMScheduler.from_config\("),
    ],
)
def test_what_no_process_can_be_is_refused(kind: str, options: Any, said: str, library: Any) -> None:
    scheduler = getattr(library, f"{kind}Scheduler")(**options)
    with pytest.raises(ValueError, match=said) as caught:
        GaussianDiffusion.from_scheduler(scheduler, gamma=0.1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("thing", [None, 3, {}, "DDPMScheduler", {"beta_start": 0.1}])
def test_what_is_no_scheduler_is_named(thing: Any) -> None:
    with pytest.raises(ValueError, match=f"scheduler is a {type(thing).__name__}; expected a DDPMScheduler or DDIM"):
        GaussianDiffusion.from_scheduler(thing)


def test_another_loop_trains_and_draws_with_their_parts(library: Any, model: Any) -> None:
    """The ten lines of docs/library.md on a network and a scheduler of diffusers: the loss falls."""
    diffusion = GaussianDiffusion.from_scheduler(library.DDPMScheduler(num_train_timesteps=50), gamma=0.1)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.zeros(16, 1, 8, 8) + 0.5
    losses = []
    for _ in range(40):
        t = torch.randint(diffusion.T, (len(x0),), generator=generator)
        eps, xi = (torch.randn(x0.shape, generator=generator) for _ in range(2))
        loss = diffusion.training_losses(model, x0, t, eps, xi)["loss"].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert sample(model, diffusion, (2, 1, 8, 8), "ancestral-10").isfinite().all()
