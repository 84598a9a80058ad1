"""The diffusion process against numbers measured from the published code.

golden/diffusion_small.npz was made by running guided-diffusion and the paper authors' fork of it (commit
1f76719, torch 2.13 CPU, float32) with the weights and inputs that are made again here.
"""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from ipdiff.diffusion import GaussianDiffusion
from ipdiff.nets.adm import ADMUNet
from ipdiff.schedule import make_betas, respace

ONE_STEP = 500


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "golden" / "diffusion_small.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def net():
    model = ADMUNet(32, 32, 6, 2, (16, 8), (1, 2, 2), num_head_channels=16)
    model.load_state_dict({name: reference_weight(name, p.shape) for name, p in model.state_dict().items()})
    return model.eval().requires_grad_(False)


def reference_weight(name, shape):
    a = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        a = a / np.sqrt(np.prod(shape[1:]))
    else:
        a = 1 + 0.1 * a if name.endswith("weight") else 0.1 * a
    return torch.from_numpy(a.astype(np.float32))


def inputs(seed):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((2, 3, 32, 32)).astype(np.float32))


def check(actual, expected):
    torch.testing.assert_close(actual, torch.from_numpy(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_betas_are_equal(golden, schedule):
    np.testing.assert_array_equal(make_betas(schedule, 1000), golden[f"betas_{schedule}"])


@pytest.mark.parametrize(
    ("spec", "key"), [("10", "space_10"), ("50", "space_50"), ("100", "space_100"), ("ddim50", "ddim_50")]
)
def test_kept_timesteps_are_equal(golden, spec, key):
    np.testing.assert_array_equal(respace(1000, spec), golden[key])


@pytest.mark.parametrize("i", [ONE_STEP, torch.tensor([ONE_STEP, ONE_STEP])], ids=["int", "tensor"])
def test_reverse_steps(golden, net, i):
    d = GaussianDiffusion(make_betas("cosine", 1000))
    x_t, noise = inputs(13), inputs(14)
    p = d.p_mean_variance(net, x_t, i)
    check(p["mean"], golden["p_mean__500"])
    check(p["log_variance"], golden["p_logvar__500"])
    check(d.ancestral_step(net, x_t, i, noise), golden["p_sample__500"])
    for eta in (0.0, 0.5):
        check(d.ddim_step(net, x_t, i, noise, eta=eta), golden[f"ddim_sample__500_{eta}"])


def test_training_losses(golden, net):
    d = GaussianDiffusion(make_betas("cosine", 1000), gamma=0.15)
    t = torch.full((2,), ONE_STEP)
    terms = d.training_losses(net, inputs(11).clamp(-1, 1), t, inputs(12), inputs(15))
    for key in ("mse", "vb", "loss"):
        expected = torch.from_numpy(golden[f"loss_0.15_500_{key}"])
        torch.testing.assert_close(terms[key], expected, rtol=1e-6, atol=0)
