"""How nearly chains and steps of other code bases are ours: the largest difference of a value of an image.

Against diffusers, whole chains of 20 steps of one network on one sequence of noise; against guided-diffusion, the
numbers in tests/parity/golden that its code gave for single steps.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.rows import ROOT
from ipdiff.diffusion import GaussianDiffusion, Model
from ipdiff.nets import ADMUNet
from ipdiff.samplers import CHAINS
from ipdiff.schedule import make_betas, respace

STEPS = 20
NETWORK: dict[str, Any] = {"model_channels": 32, "out_channels": 6, "num_res_blocks": 2, "channel_mult": (1, 2, 2)}
GOLDEN = ROOT / "tests/parity/golden/diffusion_small.npz"


@dataclass(frozen=True)
class Agreement:
    """What was compared, the largest absolute difference, and the largest value that was compared."""

    what: str
    difference: float
    largest: float


def describe(rows: list[Agreement]) -> str:
    """The rows as text, with a heading."""
    lines = [f"{'theirs and ours':86} {'difference':>10} {'largest':>8}"]
    return "\n".join([*lines, *(f"{row.what:86} {row.difference:10.1e} {row.largest:8.3g}" for row in rows)])


def as_json(rows: list[Agreement]) -> list[dict[str, float | str]]:
    """The rows as plain data."""
    return [asdict(row) for row in rows]


def table() -> list[Agreement]:
    """All rows; those of diffusers where it is installed."""
    with torch.no_grad():
        return [*_guided_diffusion(), *_diffusers()]


def _network(out_channels: int) -> ADMUNet:
    """The network of the golden numbers, or one like it with other channels."""
    options: dict[str, Any] = NETWORK | {"out_channels": out_channels}
    net = ADMUNet(32, attention_resolutions=(16, 8), num_head_channels=16, **options)
    state = net.state_dict()
    net.load_state_dict({name: torch.from_numpy(_weight(name, value.shape)) for name, value in state.items()})
    return net.eval().requires_grad_(False)


def _weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    a = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        return (a / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    return 1 + np.float32(0.1) * a if name.endswith("weight") else np.float32(0.1) * a


def _inputs(seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((2, 3, 32, 32)).astype(np.float32))


def _row(what: str, ours: Tensor, theirs: Tensor) -> Agreement:
    return Agreement(what, float((ours.double() - theirs.double()).abs().max()), float(theirs.abs().max()))


# guided-diffusion


def _guided_diffusion() -> Iterator[Agreement]:
    with np.load(GOLDEN) as file:
        golden = {name: torch.from_numpy(array) for name, array in file.items()}
    net, x_t, noise, step = _network(6), _inputs(13), _inputs(14), 500
    process = GaussianDiffusion(make_betas("cosine", 1000))
    name = "guided-diffusion, cosine, learned sigma"
    found = process.p_mean_variance(net, x_t, step)
    yield _row(f"{name}: mean of p(x_t-1 | x_t)", found["mean"], golden["p_mean__500"])
    yield _row(f"{name}: log variance", found["log_variance"], golden["p_logvar__500"])
    yield _row(f"{name}: p_sample", process.ancestral_step(net, x_t, step, noise), golden["p_sample__500"])
    for eta in (0.0, 0.5):
        ours = process.ddim_step(net, x_t, step, noise, eta=eta)
        yield _row(f"{name}: ddim_sample, eta {eta:g}", ours, golden[f"ddim_sample__500_{eta}"])
    perturbed = GaussianDiffusion(make_betas("cosine", 1000), gamma=0.15)
    t = torch.full((2,), step)
    losses = perturbed.training_losses(net, _inputs(11).clamp(-1, 1), t, _inputs(12), _inputs(15))
    for key in ("mse", "vb", "loss"):
        yield _row(f"{name}: training loss {key}, gamma 0.15", losses[key], golden[f"loss_0.15_500_{key}"])


# diffusers


def _diffusers() -> Iterator[Agreement]:
    try:
        library: Any = import_module("diffusers")
    except ImportError:
        return
    nets = {3: _network(3), 6: _network(6)}
    ddpm = (
        ("linear", "fixed_small", "epsilon", True),
        ("linear", "fixed_large", "epsilon", True),
        ("scaled_linear", "fixed_small", "epsilon", False),
        ("squaredcos_cap_v2", "fixed_small", "epsilon", True),
        ("squaredcos_cap_v2", "learned_range", "epsilon", True),
        ("squaredcos_cap_v2", "fixed_large", "v_prediction", True),
    )
    for schedule, variance, prediction, clip in ddpm:
        options = {"beta_schedule": schedule, "variance_type": variance, "prediction_type": prediction}
        scheduler = library.DDPMScheduler(**options, clip_sample=clip, timestep_spacing="linspace")
        what = f"DDPMScheduler, {schedule}, {variance}, {prediction}, clip {clip}: ancestral-{STEPS}"
        yield _chain(what, scheduler, nets[6 if variance == "learned_range" else 3], "ancestral", str(STEPS))
    for schedule, spacing, clip, eta in (
        ("linear", "leading", False, 0.0),
        ("linear", "leading", False, 1.0),
        ("linear", "leading", True, 0.0),
        ("squaredcos_cap_v2", "leading", True, 0.0),
        ("linear", "linspace", False, 0.0),
    ):
        scheduler = library.DDIMScheduler(beta_schedule=schedule, clip_sample=clip, timestep_spacing=spacing)
        grid = f"uniform{STEPS}" if spacing == "leading" else str(STEPS)
        what = f"DDIMScheduler, {schedule}, {spacing}, clip {clip}, eta {eta:g}: ddim{eta:g}-{grid}"
        yield _chain(what, scheduler, nets[3], "ddim", grid, eta=eta)
        if clip:
            what = what.replace(f"clip {clip}", "clip, use_clipped_model_output")
            yield _chain(what, scheduler, nets[3], "ddim", grid, {"use_clipped_model_output": True}, eta=eta)


def _chain(
    what: str,
    scheduler: Any,
    net: Model,
    chain: str,
    grid: str,
    their_own: dict[str, Any] | None = None,
    **options: Any,
) -> Agreement:
    """Both walk from one x_T with one sequence of noise."""
    process = GaussianDiffusion.from_scheduler(scheduler, timesteps=respace(1000, grid))
    shape, generator = (2, 3, 32, 32), torch.Generator().manual_seed(0)
    theirs = torch.randn(shape, generator=generator)
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps:
        said = net(theirs, t.expand(2))
        theirs = scheduler.step(said, t, theirs, generator=generator, **options, **(their_own or {})).prev_sample
    generator.manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours = CHAINS[chain](process, net, start, lambda i: torch.randn(shape, generator=generator), **options)
    return _row(what, ours, theirs)
