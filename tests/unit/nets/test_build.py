"""From parameters to a network and a diffusion process: nothing that was asked for gets lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from unit.tiny import ADM, DDIM, RUNS, change

from ipdiff.nets import ADMUNet, DDPMUNet, build
from ipdiff.schedule import make_betas
from ipdiff.spec import Ramp


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("T", 30),
        ("learn_sigma", True),
        ("fixed_variance", "large"),
        ("target", "eps_prime"),
        ("target", "v"),
        ("min_snr", 5.0),
        ("gp_weight", 0.3),
        ("loss_reduction", "sum"),
    ],
)
def test_every_parameter_reaches_the_diffusion_process(field, value):
    default, changed = build.diffusion(ADM), build.diffusion(change(ADM, **{field: value}))
    assert getattr(default, field) != value
    assert getattr(changed, field) == value


def test_the_schedule_and_the_kept_steps_reach_it():
    linear = change(ADM, schedule="linear", T=50)
    diffusion = build.diffusion(linear, np.array([0, 10, 49]))
    assert diffusion.timesteps.tolist() == [0, 10, 49]
    x0, eps = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    noise = np.sqrt(1 - np.cumprod(1 - make_betas("linear", 50))[30])
    torch.testing.assert_close(diffusion.q_sample(x0, 30, eps), torch.full_like(x0, float(noise)))


def test_gamma_is_a_constant_or_runs_over_t():
    assert build.diffusion(change(ADM, gamma=0.15)).gamma.tolist() == [0.15] * 20
    over_t = build.diffusion(change(ADM, gamma=[0.3, 0.1, 0.0], T=5)).gamma
    np.testing.assert_allclose(over_t, [0.3, 0.2, 0.1, 0.05, 0.0], atol=1e-15)
    assert build.diffusion(change(ADM, gamma=Ramp(0.3, 0.0, until=4))).gamma.tolist() == [0.3] * 20


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize(("spec", "kind"), [(ADM, ADMUNet), (DDIM, DDPMUNet)])
def test_the_network_fits_the_images(spec, kind, learn_sigma, channels):
    net = build.network(change(spec, learn_sigma=learn_sigma, channels=channels))
    assert isinstance(net, kind)
    out = net(torch.zeros(2, channels, 4, 4), torch.tensor([0, 19]))
    assert out.shape == (2, channels * (1 + learn_sigma), 4, 4)


@pytest.mark.parametrize("field", ["model_channels", "num_res_blocks", "attention_resolutions", "channel_mult"])
def test_the_architecture_is_the_one_asked_for(field):
    value = {"model_channels": 8, "num_res_blocks": 2, "attention_resolutions": [], "channel_mult": [1, 1]}[field]
    shapes = [
        {name: tuple(p.shape) for name, p in build.network(spec).named_parameters()}
        for spec in (ADM, change(ADM, **{field: value}))
    ]
    assert shapes[0] != shapes[1]


def test_dropout_is_the_one_asked_for():
    probabilities = {m.p for m in build.network(change(RUNS["adm"], dropout=0.25)).modules() if hasattr(m, "masks")}
    assert probabilities == {0.25}
