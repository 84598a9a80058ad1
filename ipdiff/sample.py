"""Stage sample: draw a sample set from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from ipdiff import build, rng
from ipdiff.compute import configure
from ipdiff.data.arrays import save_npz
from ipdiff.data.images import load_images, to_network, to_uint8
from ipdiff.errors import UserError
from ipdiff.rng import Purpose
from ipdiff.schedule import respace
from ipdiff.spec import Compute, RunSpec, Sampler, Sampling


class ImageSampler:
    """Draws images by their number: image i is the same in every set, shard and process.

    Args:
        spec: the run that made the weights.
        weights: ema.safetensors.
        sampler: which chain.
        clip_denoised: clamp the predicted x0.
        compute: device and threads.
        images: uint8 NHWC training images, for `exposure` only.
    """

    def __init__(
        self,
        spec: RunSpec,
        weights: Path,
        sampler: Sampler,
        *,
        clip_denoised: bool,
        compute: Compute,
        images: NDArray[np.uint8] | None = None,
    ) -> None:
        self.spec, self.sampler, self.clip, self.images = spec, sampler, clip_denoised, images
        self.device = configure(compute)
        T = spec.diffusion.T
        if sampler.kind == "exposure" and images is None:
            raise UserError("exposure sampling starts from real images; none were given")
        if not 1 <= sampler.steps <= T:
            raise UserError(f"sampler asks for {sampler.steps} steps; the model was trained with T = {T}; use 1..{T}")
        kept = np.arange(T) if sampler.kind == "exposure" else respace(T, sampler.spacing)
        self.timesteps = kept
        self.diffusion = build.diffusion(spec, kept)
        self.start = sampler.steps if sampler.kind == "exposure" else len(kept)
        net = build.network(spec)
        net.load_state_dict(load_file(weights))
        self.model = net.to(self.device).eval().at_timesteps(kept.tolist())
        self.shape = (spec.channels, spec.image_size, spec.image_size)

    @property
    def nfe(self) -> int:
        """Network evaluations an image."""
        return self.start

    @torch.inference_mode()
    def draw(self, index: range) -> NDArray[np.uint8]:
        """Images of these numbers: [n, H, W, C] uint8."""
        x = self._begin(index)
        for i in reversed(range(self.start)):
            x = self._step(x, i, index)
        return to_uint8(x)

    def _noise(self, purpose: Purpose, index: range, step: int = 0) -> Tensor:
        noise = rng.normals(self.spec.seed, purpose, index, self.shape, step=step)
        return torch.from_numpy(noise).to(self.device)

    def _begin(self, index: range) -> Tensor:
        """x_T for generation (Alg. 2); q(x_t | x0) of real images for exposure bias (Table 1)."""
        if self.images is None or self.sampler.kind != "exposure":
            return self._noise(Purpose.SAMPLE_START, index)
        order = rng.permutation(self.spec.seed, Purpose.EXPOSURE_ORDER, len(self.images))
        x0 = to_network(self.images[order[np.asarray(index) % len(order)]]).to(self.device)
        t = torch.full((len(index),), self.start - 1, device=self.device)
        return self.diffusion.q_sample(x0, t, self._noise(Purpose.EXPOSURE_EPS, index))

    def _step(self, x: Tensor, i: int, index: range) -> Tensor:
        noisy = i > 0 and self.sampler.eta > 0
        noise = self._noise(Purpose.SAMPLE_STEP, index, int(self.timesteps[i])) if noisy else torch.zeros_like(x)
        if self.sampler.kind == "ddim":
            return self.diffusion.ddim_step(self.model, x, i, noise, eta=self.sampler.eta, clip_denoised=self.clip)
        return self.diffusion.ancestral_step(self.model, x, i, noise, clip_denoised=self.clip)


def batches(count: int, size: int) -> Iterator[range]:
    """The fixed cut of a set into network calls."""
    for first in range(0, count, size):
        yield range(first, min(first + size, count))


def run(
    spec: RunSpec,
    weights: Path,
    sampler: Sampler,
    sampling: Sampling,
    out: Path,
    *,
    clip_denoised: bool,
    compute: Compute,
    images: Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, int]:
    """Draw the set and write samples.npz (`arr_0` uint8 NHWC, as the ADM evaluator reads it).

    Returns:
        What the recipe adds: number of images and network evaluations an image.
    """
    count = num_images(sampler, sampling)
    draw = ImageSampler(
        spec,
        weights,
        sampler,
        clip_denoised=clip_denoised,
        compute=compute,
        images=None if images is None else load_images(images),
    )
    parts = []
    for index in batches(count, sampling.batch_size):
        parts.append(draw.draw(index))
        progress(index.stop)
    save_npz(out / "samples.npz", arr_0=np.concatenate(parts))
    return {"n": count, "nfe": draw.nfe}


def draw_one(
    spec: RunSpec,
    weights: Path,
    sampler: Sampler,
    sampling: Sampling,
    index: int,
    *,
    clip_denoised: bool,
    compute: Compute,
    images: Path | None = None,
) -> NDArray[np.uint8]:
    """Image `index` of the set, [H, W, C] uint8: its whole network call is repeated, so its bytes are the set's."""
    draw = ImageSampler(
        spec,
        weights,
        sampler,
        clip_denoised=clip_denoised,
        compute=compute,
        images=None if images is None else load_images(images),
    )
    for batch in batches(num_images(sampler, sampling), sampling.batch_size):
        if index in batch:
            return draw.draw(batch)[index - batch.start]
    raise UserError(f"index is {index}; the set has {num_images(sampler, sampling)} images")


def num_images(sampler: Sampler, sampling: Sampling) -> int:
    """Images of a set: exposure sets may be smaller."""
    if sampler.kind == "exposure" and sampling.exposure_samples is not None:
        return sampling.exposure_samples
    return sampling.num_samples
