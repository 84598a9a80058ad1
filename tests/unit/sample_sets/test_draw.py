"""`ipdiff.sample`: any network, any process, the streams of the stage `sample`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from unit.tiny import RUNS

import ipdiff
from ipdiff import GaussianDiffusion, sample
from ipdiff.device.spec import Compute
from ipdiff.nets import build
from ipdiff.sample_sets.sample import ImageSampler
from ipdiff.sample_sets.spec import Sampler
from ipdiff.schedule import make_betas

PROCESS = GaussianDiffusion(make_betas("cosine", 20), learn_sigma=False)
SHAPE = (3, 1, 4, 4)


def toy(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(0.7 * x) + 0.1 * torch.sin(t.to(x.dtype)).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("name", ["ancestral-7", "ddim0.5-quad6", "unipc-logsnr5", "ancestral-5-es0.01t+1.1"])
@pytest.mark.parametrize("run", ["adm-ip", "ddim-ip", "v"])
def test_it_draws_what_the_stage_draws(run: str, name: str, tmp_path: Any) -> None:
    spec = RUNS[run]
    torch.manual_seed(0)
    net = build.network(spec)
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.1)
    save_file(net.state_dict(), tmp_path / "ema.safetensors")
    stage = ImageSampler(
        spec, tmp_path / "ema.safetensors", Sampler.parse(name), clip_denoised=run != "ddim-ip", compute=Compute()
    )
    with torch.inference_mode():
        expected = stage.walk(range(2, 5))
    found = sample(net, build.diffusion(spec, None), SHAPE, name, spec.seed, first=2, clip_denoised=run != "ddim-ip")
    assert expected.std() > 0.1
    assert float((found - expected).abs().max()) < 1e-5 * max(float(expected.abs().max()), 1)


def test_an_image_depends_on_its_number_and_on_no_batch() -> None:
    together = sample(toy, PROCESS, (5, 1, 4, 4), "ancestral-6", 3)
    torch.testing.assert_close(sample(toy, PROCESS, (5, 1, 4, 4), "ancestral-6", 3, batch_size=2), together)
    torch.testing.assert_close(sample(toy, PROCESS, (2, 1, 4, 4), "ancestral-6", 3, first=3), together[3:])
    assert (sample(toy, PROCESS, (5, 1, 4, 4), "ancestral-6", 4) - together).abs().amin(dim=(1, 2, 3)).max() > 0


def test_a_network_may_return_an_object_whose_sample_it_is() -> None:
    def wrapped(x: Tensor, t: Tensor) -> Any:
        return SimpleNamespace(sample=toy(x, t))

    torch.testing.assert_close(sample(wrapped, PROCESS, SHAPE), sample(toy, PROCESS, SHAPE), rtol=0, atol=0)
    x, t = torch.randn(3, 1, 4, 4), torch.tensor([0, 3, 19])
    losses = [PROCESS.training_losses(net, x, t, x)["loss"] for net in (wrapped, toy)]
    torch.testing.assert_close(*losses, rtol=0, atol=0)
    with pytest.raises(ValueError, match="the network returned a tuple; expected a tensor, or an object with `sample`"):
        sample(lambda x, t: (x,), PROCESS, SHAPE)


def test_the_process_says_whether_x0_is_clamped() -> None:
    def far(x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x) - 3

    open_ended = GaussianDiffusion(make_betas("cosine", 20), learn_sigma=False, clip_denoised=False)
    assert sample(far, PROCESS, SHAPE).abs().max() <= 1
    assert sample(far, open_ended, SHAPE).abs().max() > 1
    torch.testing.assert_close(sample(far, open_ended, SHAPE, clip_denoised=True), sample(far, PROCESS, SHAPE))


def test_modules_are_in_evaluation_mode_and_left_as_they_were() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Dropout(0.5), nn.BatchNorm2d(1))
    net[2].eval()  # as its owner froze it
    seen = []

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append([part.training for part in self.modules()])
            return self.net(x)

    model = Wrapped()
    before = [part.training for part in model.modules()]
    found = sample(model, PROCESS, SHAPE, "ddim0-3")
    assert seen == [[False] * len(before)] * 3
    assert [part.training for part in model.modules()] == before
    assert True in before
    assert not found.requires_grad
    with pytest.raises(ValueError, match="network output has shape"):
        sample(model, GaussianDiffusion(make_betas("cosine", 20)), SHAPE)
    assert [part.training for part in model.modules()] == before


def test_the_callback_sees_every_step_and_may_stop() -> None:
    seen: list[tuple[int, range]] = []
    sample(toy, PROCESS, SHAPE, "ddim0-4", batch_size=2, callback=lambda at: seen.append((at["i"], at["images"])))
    assert seen == [(i, images) for images in (range(2), range(2, 3)) for i in (3, 2, 1, 0)]

    def stop(at: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(toy, PROCESS, SHAPE, callback=stop)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"shape": (1, 4, 4)}, r"shape is \[1, 4, 4\]; expected N, C, H, W, each 1 or more"),
        ({"shape": (0, 1, 4, 4)}, r"shape is \[0, 1, 4, 4\]; expected N"),
        ({"shape": (1.5, 1, 4, 4)}, r"shape is \[1.5, 1, 4, 4\]; expected N"),
        ({"sampler": "euler-5"}, "sampler 'euler-5' is unknown; use ancestral-N"),
        ({"sampler": "ancestral-21"}, "asks for T' = 21, more than T = 20; use 1..20"),
        ({"sampler": "exposure-5"}, "sampler exposure-5 starts from real images"),
        ({"seed": -1}, "seed is -1; use 0 <= seed"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"first": -1}, "first is -1"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sample(toy, PROCESS, **{"shape": SHAPE, **arguments})


def test_a_shorter_chain_of_a_process_is_the_process_made_with_it() -> None:
    kept = [0, 5, 11, 19]
    whole = GaussianDiffusion(make_betas("linear", 40), gamma=0.1).with_eps_scale(1.1)
    found, expected = whole.respaced(kept), GaussianDiffusion(make_betas("linear", 40), gamma=0.1, timesteps=kept)
    for name in ("betas", "alphas_cumprod", "posterior_variance"):
        np.testing.assert_array_equal(getattr(found.chain, name), getattr(expected.chain, name))
    assert found.timesteps.tolist() == kept
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    double = lambda x, t: torch.cat([x, x], 1)  # noqa: E731
    torch.testing.assert_close(found.ancestral_step(double, x, 2, x), expected.ancestral_step(double, x, 2, x))
    assert whole.num_steps == 40


def test_public_names_come_when_they_are_asked_for() -> None:
    assert {name: getattr(ipdiff, name).__name__ for name in ipdiff.__all__} == {name: name for name in ipdiff.__all__}
    with pytest.raises(AttributeError, match="no attribute 'fid'"):
        _ = ipdiff.fid
