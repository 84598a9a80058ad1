"""Whole chains: solvers against diffusers' and against exact solutions, epsilon scaling against its definition."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from unit.tiny import RUNS, change

from ipdiff.diffusion import GaussianDiffusion
from ipdiff.nets import build
from ipdiff.sample_sets.spec import GRIDS, SAMPLERS
from ipdiff.samplers import CHAINS, ancestral, ddim, dpmpp2m, unipc
from ipdiff.schedule import make_betas, respace

SOLVERS = {"dpmpp2m": dpmpp2m, "unipc": unipc}


def no_noise(i: Any) -> Tensor:
    raise AssertionError("a deterministic chain asks for no noise")


def toy(x: Tensor, t: Tensor) -> Tensor:
    """Smooth in x and t, and nonlinear."""
    return torch.tanh(0.7 * x) + 0.1 * torch.sin(0.01 * t.to(x.dtype)).reshape(-1, 1, 1, 1)


def process(schedule: str, spec: str, T: int = 1000, **options: Any) -> GaussianDiffusion:
    betas = make_betas(schedule, T)
    return GaussianDiffusion(betas, timesteps=respace(T, spec, np.cumprod(1 - betas)), learn_sigma=False, **options)


their_own_warning = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def theirs(name: str, d: GaussianDiffusion, model: Any, x: Tensor) -> Tensor:
    """The chain by diffusers' scheduler, on our timesteps and their noise levels."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: solvers were not compared")
    alphas_cumprod = d.chain.alphas_cumprod
    options: dict[str, Any] = {"num_train_timesteps": d.T, "solver_order": 2, "final_sigmas_type": "zero"}
    if name == "unipc":
        scheduler = diffusers.UniPCMultistepScheduler(**options, solver_type="bh2", predict_x0=True)
    else:
        scheduler = diffusers.DPMSolverMultistepScheduler(**options)
    scheduler.set_timesteps(d.num_steps)
    scheduler.timesteps = torch.from_numpy(d.timesteps[::-1].copy())
    scheduler.sigmas = torch.from_numpy(np.append(np.sqrt(1 / alphas_cumprod - 1)[::-1], 0.0))
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t.expand(len(x))), t, x).prev_sample
    return x


@their_own_warning
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("spec", ["20", "uniform20", "logsnr20", "karras20", "5", "2", "1"])
def test_a_solver_is_diffusers_on_a_toy_network(name, schedule, spec):
    d = process(schedule, spec)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = theirs(name, d, toy, x)
    found = SOLVERS[name](d, toy, x, no_noise, clip_denoised=False)
    scale = float(expected.abs().max())  # DPM-Solver's scheduler there computes in float32 whatever it is given
    assert float((found - expected).abs().max()) <= 1e-5 * max(scale, 1)


@their_own_warning
@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_is_diffusers_on_a_network(name):
    spec = change(RUNS["ddim"], T=1000)
    torch.manual_seed(0)
    model = build.network(spec).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    d = build.diffusion(spec, respace(1000, "logsnr10", spec.diffusion.alphas_cumprod()))
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = SOLVERS[name](d, model, x, no_noise, clip_denoised=False)
        expected = theirs(name, d, model, x)
    assert float((found - expected).abs().max()) <= 1e-5 * max(float(expected.abs().max()), 1)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_is_of_second_order(name):
    """Images that are N(0, s^2) have an exact network and an exact solution: x_0 = x_t s / sqrt(a s^2 + 1 - a)."""
    s, T = 0.5, 1000
    alphas_cumprod = np.cumprod(1 - make_betas("linear", T))

    def errors(steps: int, chain: Any) -> float:
        d = process("linear", f"logsnr{steps}")

        def exact(x: Tensor, t: Tensor) -> Tensor:
            a = float(alphas_cumprod[int(t[0])])
            return x * np.sqrt(1 - a) / (a * s**2 + 1 - a)

        x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        first, last = alphas_cumprod[d.timesteps[-1]], alphas_cumprod[0]
        reached: list[Tensor] = []
        chain(d, exact, x, no_noise, clip_denoised=False, callback=lambda at: reached.append(at["x"]))
        expected = np.sqrt((last * s**2 + 1 - last) / (first * s**2 + 1 - first))
        return abs(float(reached[-1]) - expected)

    orders = [np.log2(errors(steps, SOLVERS[name]) / errors(2 * steps, SOLVERS[name])) for steps in (20, 40)]
    assert min(orders) > 1.6
    assert errors(20, SOLVERS[name]) < errors(20, ddim) / 5


@pytest.mark.parametrize("chain", SOLVERS.values())
def test_of_one_step_only_the_predicted_image_is_left(chain):
    d = process("cosine", "1", T=50)
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(chain(d, toy, x, no_noise), d.p_mean_variance(toy, x, 0)["pred_x0"])


def test_clipping_holds_in_solvers():
    d = process("cosine", "10")
    x = 3 * torch.randn(2, 1, 4, 4)
    for chain in SOLVERS.values():
        assert float(chain(d, lambda x, t: -x, x, no_noise).abs().max()) <= 1
        assert float(chain(d, lambda x, t: -x, x, no_noise, clip_denoised=False).abs().max()) > 1


@pytest.mark.parametrize("chain", SOLVERS.values())
def test_what_remembers_begins_where_its_chain_does(chain):
    d = process("cosine", "10")
    x = torch.randn(2, 1, 4, 4)
    for start in (5, 11, 0):
        with pytest.raises(ValueError, match=f"start is {start}; {chain.__name__} takes 10..10 of these steps"):
            chain(d, toy, x, no_noise, start=start)
    with pytest.raises(ValueError, match="start is -3; ddim takes 1..10"):
        ddim(d, toy, x, no_noise, start=-3)


def test_a_chain_shows_its_own_arguments():
    assert {"start", "eps_scale", "callback"} < set(inspect.signature(unipc).parameters)
    assert "UniPC-2" in (unipc.__doc__ or "")


# Epsilon scaling


@pytest.mark.parametrize("chain", [ancestral, ddim, *SOLVERS.values()])
def test_scaling_eps_is_a_network_that_says_less(chain):
    d = process("cosine", "6", T=50)
    noise = [torch.randn(2, 1, 4, 4, dtype=torch.float64) for _ in range(6)]
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    divisors = 0.02 * np.arange(6) + 0.9
    of_t = dict(zip(d.timesteps.tolist(), divisors, strict=True))
    found = chain(d, toy, x, lambda i: noise[i], eps_scale=divisors)
    expected = chain(d, lambda x, t: toy(x, t) / of_t[int(t[0])], x, lambda i: noise[i])
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, chain(d, toy, x, lambda i: noise[i]))
    constant = chain(d, lambda x, t: toy(x, t) / 1.1, x, lambda i: noise[i])
    torch.testing.assert_close(chain(d, toy, x, lambda i: noise[i], eps_scale=1.1), constant)


def test_scaling_by_one_changes_no_bit_and_training_does_not_know_of_it():
    d = process("cosine", "6", T=50)
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(ddim(d, toy, x, no_noise, eps_scale=1.0), ddim(d, toy, x, no_noise))
    t, eps = torch.tensor([3, 40]), torch.randn(2, 1, 4, 4)
    losses = [process.training_losses(toy, x, t, eps)["loss"] for process in (d, d.with_eps_scale(1.2))]
    assert torch.equal(*losses)


@pytest.mark.parametrize(
    ("scale", "message"),
    [(0.0, "eps_scale=0: expected a finite value > 0"), ([1.0, 2.0], "6 of them"), (np.nan, "finite")],
)
def test_a_scale_out_of_range_is_refused(scale, message):
    with pytest.raises(ValueError, match=message):
        process("cosine", "6", T=50).with_eps_scale(scale)


def test_every_kind_of_sampler_has_its_chain_and_the_reverse():
    assert set(CHAINS) == set(SAMPLERS)


def test_every_grid_of_a_name_is_one_of_the_schedule():
    alphas_cumprod = np.cumprod(1 - make_betas("linear", 1000))
    for grid in GRIDS:
        assert len(respace(1000, f"{grid}20", alphas_cumprod)) == 20
