"""`ipdiff.sample`: images of any network and any process, on the random streams of the stage `sample`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ipdiff.device.streams import Draws, draws_on
from ipdiff.diffusion import Clip, GaussianDiffusion, Index, Model
from ipdiff.nets.execution import evaluating
from ipdiff.rng import Purpose
from ipdiff.sample_sets.spec import Sampler, kept_of
from ipdiff.samplers import CHAINS

Callback = Callable[[dict[str, Any]], None]
"""Called before each step with {"i": int, "x": x_i, "images": range of their numbers}; it may leave by raising."""


@torch.no_grad()
def sample(
    model: Model,
    diffusion: GaussianDiffusion,
    shape: Sequence[int],
    sampler: str = "ancestral-20",
    seed: int = 0,
    *,
    first: int = 0,
    batch_size: int | None = None,
    clip_denoised: Clip = None,
    device: torch.device | str | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Draw images.

    Image i is the same whatever the batch, up to rounding: its noise depends on the seed, its number, and the timestep
    that the network is shown. It is the noise that the stage `sample` draws. A `torch.nn.Module` is in evaluation mode
    while it draws, and afterwards as it was.

    Args:
        model: (x [n,C,H,W] float32, t [n] int64) -> [n,C,H,W], or [n,2C,H,W] with learned sigma; or an object whose
            `sample` is that, as a UNet2DModel of diffusers returns.
        diffusion: the process that the network was trained with. Its own timesteps and epsilon scaling are not looked
            at; the sampler's name says both.
        shape: N, C, H, W; N images.
        sampler: its name, see docs/samplers.md: "ancestral-100", "ddim0-50", "unipc-logsnr10", "ancestral-20-es1.017".
        seed: 0..2**64-1.
        first: number of the first image.
        batch_size: images a network call; all N if None.
        clip_denoised: clamp the predicted x0 to [-1, 1]; as the process says if None.
        device: where to draw; where a module's first parameter is, else the CPU, if None.
        callback: see `Callback`.

    Returns:
        [N,C,H,W] float32, about [-1, 1]; `ipdiff.data.images.to_uint8` makes images of it.

    Raises:
        ValueError: an argument out of range, no such sampler, one with more steps than the process or one that starts
            from images, or a network output of another shape.
    """
    count, *one = _whole("shape", shape, 4)
    size = count if batch_size is None else batch_size
    if size < 1 or first < 0:
        raise ValueError(f"batch_size is {batch_size} and first is {first}; use 1 or more, and 0 or more")
    chosen = Sampler.parse(sampler)
    if chosen.row.from_images:
        raise ValueError(f"sampler {sampler} starts from real images; use one that starts from noise")
    process = diffusion.respaced(kept_of(chosen, diffusion.full.alphas_cumprod))
    if chosen.eps_scale is not None:
        process = process.with_eps_scale(chosen.eps_scale.over(process.num_steps))
    draws, options = draws_on(_device(model, device)), {"clip_denoised": clip_denoised, **dict(chosen.options)}

    def part(images: range) -> Tensor:
        start = draws.normals(seed, Purpose.SAMPLE_START, images, tuple(one))
        watch = None if callback is None else _numbered(callback, images)
        noise = _noise(draws, seed, images, tuple(one), process)
        return CHAINS[chosen.kind](process, model, start, noise, callback=watch, **options)

    with evaluating(model):
        return torch.cat([part(range(at, min(at + size, first + count))) for at in range(first, first + count, size)])


def _noise(
    draws: Draws, seed: int, images: range, shape: tuple[int, ...], process: GaussianDiffusion
) -> Callable[[Index], Tensor]:
    def noise(i: Index) -> Tensor:
        return draws.normals(seed, Purpose.SAMPLE_STEP, images, shape, step=int(process.timesteps[int(i)]))

    return noise


def _numbered(callback: Callback, images: range) -> Callback:
    return lambda at: callback({**at, "images": images})


def _whole(name: str, values: Sequence[int], size: int) -> list[int]:
    found = list(values)
    if len(found) != size or not all(isinstance(value, int) and value >= 1 for value in found):
        raise ValueError(f"{name} is {found}; expected N, C, H, W, each 1 or more")
    return found


def _device(model: Model, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device
