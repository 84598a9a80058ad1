"""The diffusion process against closed forms, exact Jacobians and an independent variational bound."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from ipdiff.diffusion import GaussianDiffusion
from ipdiff.schedule import make_betas, respace

T = 50
BETAS = make_betas("cosine", T)
ALPHAS_CUMPROD = np.cumprod(1 - BETAS)
KEPT = respace(T, "7")


def normals(seed, shape=(4, 3, 4, 4), dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


X0, EPS, XI, X_T = normals(0).clamp(-1, 1), normals(1), normals(2), normals(3)
STEPS = torch.tensor([0, 1, 20, 49])


class TinyNet(nn.Module):
    """Smooth, dependent on t, twice differentiable; images do not see each other."""

    def __init__(self, channels=3, out_channels=3):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Conv2d(channels, 4, 3, padding=1)
        self.last = nn.Conv2d(4, out_channels, 3, padding=1)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
        self.double()
        self.calls: list[torch.Tensor] = []

    def forward(self, x, t):
        self.calls.append(t)
        return self.last(torch.tanh(self.first(x)) * (1 + t.to(x.dtype)[:, None, None, None] / T))


def oracle(x0, learn_sigma=False):
    """The perfect network for one known image: the eps that x_t holds."""

    def model(x, t):
        a = torch.from_numpy(ALPHAS_CUMPROD)[t].reshape(-1, 1, 1, 1)
        eps = (x - a.sqrt() * x0) / (1 - a).sqrt()
        return torch.cat([eps, torch.zeros_like(eps)], 1) if learn_sigma else eps

    return model


def constant(value):
    return lambda x, t: value


# Noising


def test_q_sample_is_eq_4_for_ints_and_tensors():
    d = GaussianDiffusion(BETAS)
    for n, t in enumerate(STEPS.tolist()):
        a = ALPHAS_CUMPROD[t]
        expected = math.sqrt(a) * X0[n] + math.sqrt(1 - a) * EPS[n]
        torch.testing.assert_close(d.q_sample(X0, STEPS, EPS)[n], expected, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(d.q_sample(X0, t, EPS)[n], expected, rtol=1e-14, atol=1e-14)


def test_float32_ints_and_tensors_agree_to_the_bit():
    d = GaussianDiffusion(BETAS, gamma=0.1, timesteps=KEPT)
    x, eps, xi = X0.float(), EPS.float(), XI.float()
    net = TinyNet(out_channels=6).float()
    for i in (0, 3, 6):
        each = torch.full((4,), i)
        assert torch.equal(d.perturbed(x, i, eps, xi), d.perturbed(x, each, eps, xi))
        assert torch.equal(d.ancestral_step(net, eps, i, xi), d.ancestral_step(net, eps, each, xi))
        for clip in (True, False):
            one = d.ddim_step(net, eps, i, xi, eta=0.5, clip_denoised=clip)
            assert torch.equal(one, d.ddim_step(net, eps, each, xi, eta=0.5, clip_denoised=clip))
            assert one.dtype == torch.float32


@pytest.mark.parametrize("gamma", [0.0, np.zeros(T)])
def test_without_gamma_the_perturbed_input_is_q_sample(gamma):
    d = GaussianDiffusion(BETAS, gamma=gamma)
    assert torch.equal(d.perturbed(X0, STEPS, EPS), d.q_sample(X0, STEPS, EPS))
    assert torch.equal(d.perturbed(X0, STEPS, EPS, XI), d.q_sample(X0, STEPS, EPS))


def test_perturbed_is_eq_6_with_the_stated_marginal():
    gamma, t = 0.5, 20
    d = GaussianDiffusion(BETAS, gamma=gamma)
    a = ALPHAS_CUMPROD[t]
    expected = math.sqrt(a) * X0 + math.sqrt(1 - a) * (EPS + gamma * XI)
    torch.testing.assert_close(d.perturbed(X0, t, EPS, XI), expected, rtol=1e-14, atol=1e-14)
    many = (1, 1, 500, 500)
    y = d.perturbed(torch.full(many, 0.7, dtype=torch.float64), t, normals(5, many), normals(6, many))
    assert y.mean().item() == pytest.approx(math.sqrt(a) * 0.7, abs=0.01)
    assert y.var().item() == pytest.approx((1 - a) * (1 + gamma**2), rel=0.01)


def test_gamma_may_be_a_schedule_over_t():
    schedule = np.linspace(0, 0.4, T)
    varying = GaussianDiffusion(BETAS, gamma=schedule).perturbed(X0, STEPS, EPS, XI)
    for n, t in enumerate(STEPS.tolist()):
        fixed = GaussianDiffusion(BETAS, gamma=schedule[t]).perturbed(X0, t, EPS, XI)
        torch.testing.assert_close(varying[n], fixed[n], rtol=1e-14, atol=1e-14)


# Training


def losses(net=None, xi: torch.Tensor | None = XI, t=STEPS, probe=None, **options):
    d = GaussianDiffusion(BETAS, **{"learn_sigma": False, **options})
    return d.training_losses(net or TinyNet(), X0, t, EPS, xi, probe=probe)


def test_the_network_sees_y_t_and_answers_for_eps():
    seen = []

    def model(x, t):
        seen.append((x, t))
        return torch.zeros_like(x)

    terms = losses(model, gamma=0.3)
    (x, t), *others = seen
    assert not others
    assert torch.equal(x, GaussianDiffusion(BETAS, gamma=0.3).perturbed(X0, STEPS, EPS, XI))
    assert torch.equal(t, STEPS)
    torch.testing.assert_close(terms["mse"], EPS.square().mean((1, 2, 3)))
    assert torch.equal(terms["loss"], terms["mse"])
    assert terms.keys() == {"mse", "loss"}


def test_sum_reduction_is_the_mean_times_the_number_of_values():
    torch.testing.assert_close(losses(loss_reduction="sum")["loss"], 48 * losses()["loss"])


def test_ddpm_y_target_is_the_unit_noise_of_y_t():
    schedule = np.linspace(0.5, 1.5, T)
    d = GaussianDiffusion(BETAS, gamma=schedule)
    gamma = torch.from_numpy(schedule)[STEPS].reshape(-1, 1, 1, 1)
    a = torch.from_numpy(ALPHAS_CUMPROD)[STEPS].reshape(-1, 1, 1, 1)
    # y_t = sqrt(a) x0 + sqrt(1 - a) sqrt(1 + gamma^2) eps', solved for eps'
    y = d.perturbed(X0, STEPS, EPS, XI)
    eps_prime = (y - a.sqrt() * X0) / ((1 - a) * (1 + gamma**2)).sqrt()
    assert losses(constant(eps_prime), gamma=schedule, target="eps_prime")["loss"].max() < 1e-20
    assert losses(constant(eps_prime), gamma=schedule)["loss"].min() > 1e-2
    many = normals(7, (1, 1, 400, 400)), normals(8, (1, 1, 400, 400))
    big = GaussianDiffusion(BETAS, learn_sigma=False, gamma=1.5, target="eps_prime")
    zero = big.training_losses(lambda x, t: torch.zeros_like(x), many[0] * 0, torch.tensor([9]), *many)
    assert zero["mse"].item() == pytest.approx(1, rel=0.02)  # unit variance


def by_t(values):
    return torch.from_numpy(values)[STEPS].reshape(-1, 1, 1, 1)


def velocity(x0, eps):
    return by_t(np.sqrt(ALPHAS_CUMPROD)) * eps - by_t(np.sqrt(1 - ALPHAS_CUMPROD)) * x0


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_v_is_the_velocity_of_the_unperturbed_noise(gamma):
    assert losses(constant(velocity(X0, EPS)), gamma=gamma, target="v")["loss"].max() < 1e-28
    zero = losses(constant(torch.zeros_like(X0)), gamma=gamma, target="v")["loss"]
    torch.testing.assert_close(zero, velocity(X0, EPS).square().mean((1, 2, 3)))


def test_eps_is_read_from_v():
    d = GaussianDiffusion(BETAS, learn_sigma=False, target="v", timesteps=KEPT)
    for i, t in enumerate(d.timesteps.tolist()):
        x_t = d.q_sample(X0, t, EPS)
        a = ALPHAS_CUMPROD[t]
        v = math.sqrt(a) * EPS - math.sqrt(1 - a) * X0
        torch.testing.assert_close(d.p_mean_variance(constant(v), x_t, i)["pred_x0"], X0)


WEIGHTS = {
    "eps": lambda snr, k: np.minimum(snr, k) / snr,
    "eps_prime": lambda snr, k: np.minimum(snr, k) / snr,
    "v": lambda snr, k: np.minimum(snr, k) / (snr + 1),
}


@pytest.mark.parametrize("target", WEIGHTS)
def test_min_snr_weights_the_squared_error(target):
    snr = ALPHAS_CUMPROD / (1 - ALPHAS_CUMPROD)
    assert snr[STEPS].min() < 5 < snr[STEPS].max()
    plain, weighted = (losses(TinyNet(), gamma=0.1, target=target, min_snr=k) for k in (None, 5.0))
    w = torch.from_numpy(WEIGHTS[target](snr, 5.0))[STEPS]
    torch.testing.assert_close(weighted["loss"], w * plain["loss"], rtol=1e-12, atol=0)
    torch.testing.assert_close(weighted["mse"], plain["mse"], rtol=0, atol=0)


def test_min_snr_leaves_the_bound_alone_and_weighs_the_penalty():
    w = by_t(WEIGHTS["eps"](ALPHAS_CUMPROD / (1 - ALPHAS_CUMPROD), 2.0))
    terms = losses(TinyNet(out_channels=6), learn_sigma=True, min_snr=2.0, gp_weight=0.5, probe=normals(12))
    torch.testing.assert_close(terms["loss"], w.flatten() * (terms["mse"] + 0.5 * terms["gp"]) + terms["vb"])


def test_the_gradient_of_v_and_min_snr_is_a_hand_written_loss_s():
    gamma, net = 0.2, TinyNet()
    a = by_t(ALPHAS_CUMPROD)
    y = a.sqrt() * X0 + (1 - a).sqrt() * (EPS + gamma * XI)
    snr = a / (1 - a)
    by_hand = (snr.clamp(max=5) / (snr + 1) * (velocity(X0, EPS) - net(y, STEPS)) ** 2).mean()
    ours = losses(net, gamma=gamma, target="v", min_snr=5.0)["loss"].mean()
    params = list(net.parameters())
    for one, other in zip(*(torch.autograd.grad(loss, params) for loss in (ours, by_hand)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_v_and_min_snr_are_diffusers_own():
    """Its training scripts weigh by compute_snr's value, and their target is get_velocity's."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: formulas were not compared")
    from diffusers.training_utils import compute_snr

    theirs = diffusers.DDPMScheduler(num_train_timesteps=T, trained_betas=BETAS)
    v = theirs.get_velocity(X0, EPS, STEPS)
    assert losses(constant(v), target="v")["loss"].max() < 1e-12
    snr = compute_snr(theirs, STEPS).double()
    for target, over in (("eps", snr), ("v", snr + 1)):
        terms = losses(target=target, min_snr=5.0)
        torch.testing.assert_close(terms["loss"], snr.clamp(max=5) / over * terms["mse"], rtol=1e-4, atol=0)


@pytest.mark.parametrize("target", ["eps", "eps_prime", "v"])
def test_the_gamma_of_an_update_is_that_of_a_process_with_it(target):
    d = GaussianDiffusion(BETAS, learn_sigma=False, gamma=0.5, target=target)
    for gamma in (0.0, 0.2):
        now = d.training_losses(TinyNet(), X0, STEPS, EPS, XI, gamma=torch.tensor(gamma, dtype=torch.float64))
        torch.testing.assert_close(now["loss"], losses(gamma=gamma, target=target)["loss"], rtol=0, atol=0)
    with pytest.raises(ValueError, match="a process with gamma=0"):
        fixed().training_losses(TinyNet(), X0, STEPS, EPS, gamma=torch.tensor(0.1))


def test_ddpm_y_is_eps_training_on_a_noisier_schedule():
    gamma, t = 0.5, 20
    noise = (EPS + gamma * XI) / math.sqrt(1 + gamma**2)
    y = GaussianDiffusion(BETAS, gamma=gamma).perturbed(X0, t, EPS, XI)
    a = ALPHAS_CUMPROD[t]
    torch.testing.assert_close(y, math.sqrt(a) * X0 + math.sqrt((1 - a) * (1 + gamma**2)) * noise)


def direct_vb(eps, v, x_t, t, n):
    """Bits per dimension of one image, from scalars and scipy, by another route than the code's."""
    a, a_prev, beta = ALPHAS_CUMPROD[t], ALPHAS_CUMPROD[t - 1] if t else 1.0, BETAS[t]
    small = beta * (1 - a_prev) / (1 - a)
    floor = small if t else BETAS[1] * (1 - ALPHAS_CUMPROD[0]) / (1 - ALPHAS_CUMPROD[1])
    # q(x_{t-1} | x_t, x0) as the product of q(x_t | x_{t-1}) and q(x_{t-1} | x0)
    x0, x_t, eps, v = (z[n].numpy() for z in (X0, x_t, eps, v))
    q_mean = x0
    if t:
        precision = (1 - beta) / beta + 1 / (1 - a_prev)
        q_mean = (math.sqrt(1 - beta) * x_t / beta + math.sqrt(a_prev) * x0 / (1 - a_prev)) / precision
        assert 1 / precision == pytest.approx(small)
    # mean of p from eps directly, DDPM Eq. 11
    p_mean = (x_t - beta / math.sqrt(1 - a) * eps) / math.sqrt(1 - beta)
    p_var = beta ** ((v + 1) / 2) * floor ** ((1 - v) / 2)
    if t:
        nats = 0.5 * (np.log(p_var / small) + (small + (q_mean - p_mean) ** 2) / p_var - 1)
    else:
        upper = np.where(x0 > 0.999, np.inf, (x0 + 1 / 255 - p_mean) / np.sqrt(p_var))
        lower = np.where(x0 < -0.999, -np.inf, (x0 - 1 / 255 - p_mean) / np.sqrt(p_var))
        nats = -np.log(norm.cdf(upper) - norm.cdf(lower))
    return nats.mean() / math.log(2)


def test_vb_is_the_variational_bound_in_bits():
    d = GaussianDiffusion(BETAS, gamma=0.2)
    v = 0.5 * normals(9)
    near = EPS + 0.1 * XI  # close to the truth, so that the decoder's probabilities are not clamped
    terms = d.training_losses(constant(torch.cat([near, v], 1)), X0, STEPS, EPS, XI)
    y = d.perturbed(X0, STEPS, EPS, XI)
    for n, t in enumerate(STEPS.tolist()):
        expected = direct_vb(near, v, y, t, n) * T / 1000
        # the decoder uses an approximation of the normal cdf, good to about 1e-4
        assert terms["vb"][n].item() == pytest.approx(expected, rel=2e-2 if t == 0 else 1e-10)
    torch.testing.assert_close(terms["loss"], terms["mse"] + terms["vb"])
    assert terms.keys() == {"mse", "vb", "loss"}


def test_vb_trains_the_variance_and_mse_the_noise():
    output = torch.cat([EPS + 0.1, XI * 0.1], 1).requires_grad_()
    terms = losses(constant(output), learn_sigma=True, gamma=0.1)
    (of_vb,) = torch.autograd.grad(terms["vb"].sum(), output, retain_graph=True)
    (of_mse,) = torch.autograd.grad(terms["mse"].sum(), output)
    assert not of_vb[:, :3].any()
    assert of_vb[:, 3:].any()
    assert of_mse[:, :3].any()
    assert not of_mse[:, 3:].any()


def test_training_ignores_the_sampling_grid():
    whole, part = (GaussianDiffusion(BETAS, timesteps=kept, gamma=0.1) for kept in (None, KEPT))
    net = TinyNet(out_channels=6)
    for key, value in whole.training_losses(net, X0, STEPS, EPS, XI).items():
        assert torch.equal(part.training_losses(net, X0, STEPS, EPS, XI)[key], value)


# Gradient penalty


def exact_penalty(net, x, t, n):
    def image(z):
        return net(z[None], t[n : n + 1])[0, :3]

    jacobian = torch.autograd.functional.jacobian(image, x[n])
    return torch.as_tensor(jacobian).square().sum()


def penalty(net, probe, **options):
    """The penalty at x_t, summed over C, H, W."""
    options = {"loss_reduction": "sum", "learn_sigma": net.last.out_channels == 6, **options}
    return losses(net, xi=None, probe=probe, **options)["gp"]


@pytest.mark.parametrize("out_channels", [3, 6])
def test_penalty_over_an_orthonormal_basis_is_the_frobenius_norm(out_channels):
    net = TinyNet(out_channels=out_channels)
    basis = torch.linalg.qr(normals(10, (48, 48)))[0].reshape(48, 3, 4, 4)
    total = sum(penalty(net, direction.expand_as(X0)) for direction in basis)
    x_t = GaussianDiffusion(BETAS).q_sample(X0, STEPS, EPS)
    for n in range(2):
        torch.testing.assert_close(total[n], exact_penalty(net, x_t, STEPS, n), rtol=1e-10, atol=0)


def test_penalty_is_unbiased_for_random_probes():
    net = TinyNet()
    d, one = GaussianDiffusion(BETAS, learn_sigma=False, loss_reduction="sum"), slice(2, 3)
    x0, t, eps = (value[one].repeat(4000, *(1,) * (value.ndim - 1)) for value in (X0, STEPS, EPS))
    estimates = d.training_losses(net, x0, t, eps, probe=normals(11, x0.shape))["gp"]
    x_t = d.q_sample(X0, STEPS, EPS)
    assert estimates.mean().item() == pytest.approx(exact_penalty(net, x_t, STEPS, 2).item(), rel=0.02)


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_training_adds_the_penalty_from_the_same_forward_pass(learn_sigma):
    net, weight, probe = TinyNet(out_channels=6 if learn_sigma else 3), 0.3, normals(12)
    terms = losses(net, xi=None, probe=probe, gp_weight=weight, learn_sigma=learn_sigma)
    assert len(net.calls) == 1
    plain = losses(net, xi=None, learn_sigma=learn_sigma)
    torch.testing.assert_close(terms["loss"], plain["loss"] + weight * terms["gp"])
    torch.testing.assert_close(terms["mse"], plain["mse"])


def test_the_penalty_is_reduced_like_the_squared_error():
    net, probe = TinyNet(), normals(12)
    mean, summed = (
        losses(net, xi=None, probe=probe, gp_weight=0.3, loss_reduction=reduction) for reduction in ("mean", "sum")
    )
    for name in ("mse", "gp", "loss"):
        torch.testing.assert_close(summed[name], 48 * mean[name])


def test_the_penalty_of_a_linear_network_is_input_noise_of_that_variance():
    """E |eps - W (x + s)|^2 - E |eps - W x|^2 = variance * ||W||_F^2, in either reduction."""
    variance, probe = 0.2, normals(13, (400, 3, 4, 4))
    linear = torch.nn.Conv2d(3, 3, 3, padding=1, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(0.3 * normals(15, linear.weight.shape))
    x0, t, eps = (value[:1].repeat(400, *(1,) * (value.ndim - 1)) for value in (X0, STEPS, EPS))
    noise = variance**0.5 * normals(14, x0.shape)
    for reduction in ("mean", "sum"):
        d = GaussianDiffusion(BETAS, learn_sigma=False, loss_reduction=reduction, gp_weight=variance)
        terms = d.training_losses(lambda x, t: linear(x), x0, t, eps, probe=probe)
        plain = GaussianDiffusion(BETAS, learn_sigma=False, loss_reduction=reduction)
        noisy = [
            plain.training_losses(lambda x, t, s=sign * noise: linear(x + s), x0, t, eps)["mse"] for sign in (1, -1)
        ]
        added = (torch.stack(noisy).mean(0) - terms["mse"]).mean().item()
        assert (terms["loss"] - terms["mse"]).mean().item() == pytest.approx(added, rel=0.05)


def test_the_penalty_is_on_what_the_network_says():
    """So that it acts as input noise whatever the target is; the eps read from v would add the identity."""
    d = GaussianDiffusion(BETAS, learn_sigma=False, gp_weight=0.2, target="v")
    terms = d.training_losses(lambda x, t: 0.6 * x, X0, STEPS, EPS, probe=normals(13, X0.shape).sign())
    torch.testing.assert_close(terms["gp"], torch.full_like(terms["gp"], 0.36))


def test_penalty_gradient_reaches_the_weights():
    net, probe = TinyNet(), normals(12)
    weight = net.last.weight
    (gradient,) = torch.autograd.grad(penalty(net, probe, gp_weight=1.0).sum(), weight)
    step = 1e-6
    with torch.no_grad():
        weight[0, 0, 0, 0] += step
    up = penalty(net, probe).sum().item()
    with torch.no_grad():
        weight[0, 0, 0, 0] -= 2 * step
    down = penalty(net, probe).sum().item()
    assert gradient[0, 0, 0, 0].item() == pytest.approx((up - down) / (2 * step), rel=1e-5)


def test_a_probe_without_weight_only_reports():
    terms = losses(xi=None, probe=normals(12))
    assert not terms["gp"].requires_grad
    assert (terms["gp"] > 0).all()
    assert torch.equal(terms["loss"], terms["mse"])


@pytest.mark.parametrize(
    ("strengths", "needs"),
    [
        ({}, (False, False)),
        ({"gamma": 0.1}, (True, False)),
        ({"gamma": np.linspace(0.1, 0, T)}, (True, False)),
        ({"gamma": np.zeros(T)}, (False, False)),
        ({"gp_weight": 1e-4}, (False, True)),
    ],
)
def test_a_process_says_what_noise_its_loss_needs(strengths, needs):
    diffusion = GaussianDiffusion(BETAS, learn_sigma=False, **strengths)
    assert (diffusion.needs_xi, diffusion.needs_probe) == needs
    given = {"xi": XI if needs[0] else None, "probe": XI if needs[1] else None}
    diffusion.training_losses(TinyNet(), X0, STEPS, EPS, **given)
    for name in [name for name, noise in given.items() if noise is not None]:
        with pytest.raises(ValueError, match=name):
            diffusion.training_losses(TinyNet(), X0, STEPS, EPS, **{**given, name: None})


# Reverse steps


def test_all_timesteps_are_the_unrespaced_chain():
    net = TinyNet(out_channels=6)
    whole, spelled = (GaussianDiffusion(BETAS, timesteps=kept) for kept in (None, range(T)))
    assert whole.num_steps == spelled.num_steps == whole.T == T
    for key, value in whole.p_mean_variance(net, X_T, STEPS).items():
        assert torch.equal(value, spelled.p_mean_variance(net, X_T, STEPS)[key])


def test_respaced_chain_keeps_the_marginals_and_shows_original_steps():
    d = GaussianDiffusion(BETAS, timesteps=KEPT, learn_sigma=False)
    net = TinyNet()
    assert d.num_steps == 7
    assert d.timesteps.tolist() == KEPT.tolist()
    d.p_mean_variance(net, X_T, 3)
    d.p_mean_variance(net, X_T, torch.tensor([0, 2, 4, 6]))
    assert net.calls[0].tolist() == [KEPT[3]] * 4
    assert net.calls[1].tolist() == KEPT[[0, 2, 4, 6]].tolist()
    assert net.calls[0].dtype == torch.int64
    # q(x_{i-1}) of the kept steps: with the true eps, the step's mean and variance give Eq. 4 at KEPT[i-1]
    i = 4
    x_t = d.q_sample(X0, int(KEPT[i]), EPS)
    p = d.p_mean_variance(oracle(X0), x_t, i)
    a, a_prev = ALPHAS_CUMPROD[KEPT[i]], ALPHAS_CUMPROD[KEPT[i - 1]]
    torch.testing.assert_close(p["pred_x0"], X0)
    of_eps = math.sqrt(a / a_prev) * (1 - a_prev) / math.sqrt(1 - a)  # what is left of the old noise
    torch.testing.assert_close(p["mean"], math.sqrt(a_prev) * X0 + of_eps * EPS)
    variance = p["log_variance"].exp()
    torch.testing.assert_close(variance + of_eps**2, torch.full_like(variance, float(1 - a_prev)))


@pytest.mark.parametrize("fixed_variance", ["small", "large"])
def test_fixed_variances(fixed_variance):
    d = GaussianDiffusion(BETAS, learn_sigma=False, fixed_variance=fixed_variance)
    small = BETAS[1:] * (1 - ALPHAS_CUMPROD[:-1]) / (1 - ALPHAS_CUMPROD[1:])
    expected = np.append(small[0], small if fixed_variance == "small" else BETAS[1:])
    for i in (0, 1, 30):
        log_variance = d.p_mean_variance(TinyNet(), X_T, i)["log_variance"]
        torch.testing.assert_close(log_variance, torch.full_like(X_T, math.log(float(expected[i]))))


def test_shortest_chains_have_a_finite_log_variance():
    for kept in ([30], [10, 30]):
        d = GaussianDiffusion(BETAS, timesteps=kept, learn_sigma=False)
        a = ALPHAS_CUMPROD[kept]
        expected = 1 - a[0] if len(kept) == 1 else (1 - a[1] / a[0]) * (1 - a[0]) / (1 - a[1])
        for i in range(len(kept)):
            variance = d.p_mean_variance(TinyNet(), X_T, i)["log_variance"].exp()
            torch.testing.assert_close(variance, torch.full_like(X_T, float(expected)))


def test_learned_variance_moves_between_beta_tilde_and_beta():
    d = GaussianDiffusion(BETAS)
    i = 20
    small = BETAS[i] * (1 - ALPHAS_CUMPROD[i - 1]) / (1 - ALPHAS_CUMPROD[i])
    for v, expected in (
        (-1, small),
        (1, BETAS[i]),
        (0, math.sqrt(small * BETAS[i])),
        (3, BETAS[i] ** 2 / small),
    ):
        output = torch.cat([EPS, torch.full_like(EPS, v)], 1)
        variance = d.p_mean_variance(constant(output), X_T, i)["log_variance"].exp()
        torch.testing.assert_close(variance, torch.full_like(X_T, expected))


def test_clipping_is_optional():
    d = GaussianDiffusion(BETAS, learn_sigma=False)
    assert d.p_mean_variance(TinyNet(), 5 * X_T, 40)["pred_x0"].abs().max() == 1
    assert d.p_mean_variance(TinyNet(), 5 * X_T, 40, clip_denoised=False)["pred_x0"].abs().max() > 1


@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize("kept", [None, KEPT, respace(T, "quad5"), np.array([30])])
def test_a_perfect_network_recovers_the_image(kept, learn_sigma):
    d = GaussianDiffusion(BETAS, timesteps=kept, learn_sigma=learn_sigma)
    model = oracle(X0, learn_sigma)
    ancestral = ddim = X_T
    for i in reversed(range(d.num_steps)):
        noise = normals(100 + i) if i else None
        ancestral = d.ancestral_step(model, ancestral, i, noise)
        ddim = d.ddim_step(model, ddim, i, noise, eta=0.7, clip_denoised=False)
    torch.testing.assert_close(ancestral, X0, rtol=0, atol=1e-10)
    torch.testing.assert_close(ddim, X0, rtol=0, atol=1e-10)


def test_ancestral_step_is_mean_plus_scaled_noise_except_at_the_end():
    d = GaussianDiffusion(BETAS)
    net = TinyNet(out_channels=6)
    p = d.p_mean_variance(net, X_T, STEPS)
    step = d.ancestral_step(net, X_T, STEPS, XI)
    expected = p["mean"] + torch.exp(0.5 * p["log_variance"]) * XI
    assert torch.equal(step[1:], expected[1:])
    assert torch.equal(step[0], p["mean"][0])
    torch.testing.assert_close(step[0], p["pred_x0"][0])


def test_ddim_with_eta_one_has_the_small_variance_and_the_ancestral_mean():
    d = GaussianDiffusion(BETAS, timesteps=KEPT, learn_sigma=False)
    net = TinyNet()
    for i in (1, 3, 6):
        for clip in (True, False):
            zero, noisy = (d.ddim_step(net, X_T, i, z, eta=1.0, clip_denoised=clip) for z in (0 * XI, XI))
            p = d.p_mean_variance(net, X_T, i, clip_denoised=clip)
            torch.testing.assert_close(noisy - zero, torch.exp(0.5 * p["log_variance"]) * XI)
            torch.testing.assert_close(zero, p["mean"])


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("spec", ["quad5", "uniform10"])
def test_ddim_step_is_the_ddim_code_s_formula(eta, spec):
    kept = respace(T, spec)
    d = GaussianDiffusion(BETAS, timesteps=kept, learn_sigma=False)
    net = TinyNet()
    for i in reversed(range(d.num_steps)):
        a, b = ALPHAS_CUMPROD[kept[i]], ALPHAS_CUMPROD[kept[i - 1]] if i else 1.0
        e = net(X_T, torch.full((4,), int(kept[i])))
        x0 = (X_T - math.sqrt(1 - a) * e) / math.sqrt(a)
        sigma = eta * math.sqrt((1 - a / b) * (1 - b) / (1 - a))
        expected = math.sqrt(b) * x0 + math.sqrt(1 - b - sigma**2) * e + sigma * XI
        torch.testing.assert_close(d.ddim_step(net, X_T, i, XI, eta=eta, clip_denoised=False), expected)


def test_noise_is_not_needed_where_it_has_no_effect():
    d = GaussianDiffusion(BETAS, learn_sigma=False)
    net = TinyNet()
    d.ancestral_step(net, X_T, 0, None)
    d.ddim_step(net, X_T, 9, None)
    d.ddim_step(net, X_T, 0, None, eta=1.0)
    d.ddim_step(net, X_T, STEPS, None)


# Arguments


def fixed(**options):
    return GaussianDiffusion(BETAS, **{"learn_sigma": False, **options})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GaussianDiffusion([]), "expected \\[T\\]"),
        (lambda: GaussianDiffusion([0.1, 1.0]), r"betas\[1\]=1"),
        (lambda: GaussianDiffusion([0.1, np.nan]), r"betas\[1\]=nan"),
        (lambda: fixed(timesteps=[]), "expected integers"),
        (lambda: fixed(timesteps=[0.0, 1.0]), "integers"),
        (lambda: fixed(timesteps=[3, 3]), "expected increasing"),
        (lambda: fixed(timesteps=[0, T]), r"0\.\.49"),
        (lambda: fixed(gamma=-0.1), "gamma=-0.1"),
        (lambda: fixed(gamma=[0.1, 0.2]), "50 of them"),
        (lambda: fixed(gamma=np.full(T, np.inf)), "gamma=inf"),
        (lambda: fixed(target="x0"), "target 'x0'"),
        (lambda: fixed(fixed_variance="medium"), "'medium'"),
        (lambda: fixed(loss_reduction="max"), "'max'"),
        (lambda: fixed(gp_weight=-1.0), "gp_weight=-1.0"),
        (lambda: fixed(min_snr=0.0), "min_snr=0.0"),
        (lambda: fixed(gp_weight=1.0, gamma=0.1), "set one of the two to 0"),
        (lambda: losses(gp_weight=1.0), "needs probe"),
        (lambda: losses(probe=normals(0, (4, 3, 4, 5))), "probe has shape"),
        (lambda: losses(xi=None, gamma=0.1), "xi is None"),
        (lambda: losses(learn_sigma=True), r"expected \(4, 6, 4, 4\)"),
        (lambda: losses(TinyNet(out_channels=6)), r"expected \(4, 3, 4, 4\)"),
        (lambda: losses(t=STEPS.int()), "int32"),
        (lambda: losses(t=STEPS[:2]), r"shape \(2,\)"),
        (lambda: losses(t=STEPS + 1), "span 1..50"),
        (lambda: losses(t=STEPS - 1), "span -1..48"),
        (lambda: fixed(timesteps=KEPT).ancestral_step(TinyNet(), X_T, 7, XI), r"step 7 .* 0\.\.6"),
        (lambda: fixed().ancestral_step(TinyNet(), X_T, -1, XI), "step -1"),
        (lambda: fixed().ancestral_step(TinyNet(), X_T, 1, None), "noise is None"),
        (lambda: fixed().ddim_step(TinyNet(), X_T, 1, None, eta=0.5), "noise is None"),
        (lambda: fixed().ddim_step(TinyNet(), X_T, 1, XI, eta=1.5), "eta=1.5"),
    ],
)
def test_refuses_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
