"""Stage sample: draw a sample set from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from ipdiff import rng
from ipdiff.data.arrays import stream_npz
from ipdiff.data.images import to_network, to_uint8
from ipdiff.data.spec import Quantise
from ipdiff.device.compute import configure, dtype
from ipdiff.device.spec import Compute
from ipdiff.device.streams import draws_on
from ipdiff.diffusion import Index
from ipdiff.errors import UserError
from ipdiff.nets import build
from ipdiff.nets.execution import compiled
from ipdiff.nets.inference import prepare_for_sampling
from ipdiff.rng import Purpose
from ipdiff.sample_sets.captured import CapturedChain
from ipdiff.sample_sets.spec import Sampler, Sampling, kept, nfe
from ipdiff.samplers import CHAINS, Memory
from ipdiff.spec import RunSpec
from ipdiff.work import signals
from ipdiff.work.shards import Shards, cut


class ImageSampler:
    """Draws images by their number: image i is the same in every set, shard and process.

    Args:
        spec: the run that made the weights.
        weights: ema.safetensors.
        sampler: which chain.
        clip_denoised: clamp the predicted x0.
        quantise: how they become uint8, see `to_uint8`.
        compute: device, threads and precision.
        images: uint8 NHWC training images, for `exposure` only.
    """

    def __init__(
        self,
        spec: RunSpec,
        weights: Path,
        sampler: Sampler,
        *,
        clip_denoised: bool,
        quantise: Quantise = "truncate",
        compute: Compute,
        images: NDArray[np.uint8] | None = None,
    ) -> None:
        self.spec, self.sampler, self.images = spec, sampler, images
        self.quantise: Quantise = quantise
        self.device = configure(compute)
        if sampler.row.from_images and images is None:
            raise UserError(f"sampler {sampler.name} starts from real images; none were given")
        try:
            self.timesteps = steps = kept(sampler, spec.diffusion)
        except ValueError as error:
            raise UserError(str(error)) from None
        diffusion, self.nfe = build.diffusion(spec, steps), nfe(sampler, spec.diffusion)
        scale = sampler.eps_scale
        self.diffusion = diffusion if scale is None else diffusion.with_eps_scale(scale.over(len(steps)))
        self.chain = CHAINS[sampler.kind]
        self.options = {"clip_denoised": clip_denoised, **dict(sampler.options)}
        net = build.network(spec)
        net.load_state_dict(load_file(weights))
        self.format = build.memory_format(spec)
        net = prepare_for_sampling(net.to(self.device).eval(), dtype(compute), self.format)
        net.forward_projected = compiled(net.forward_projected, compute)
        self.model, self.draws = net.at_timesteps(steps.tolist()), draws_on(self.device)
        self.shape = (spec.channels, spec.image_size, spec.image_size)
        self._programs: dict[int, CapturedChain] = {}

    @torch.inference_mode()
    def draw(self, index: range, check: Callable[[], None] = lambda: None) -> NDArray[np.uint8]:
        """Images of these numbers: [n, H, W, C] uint8.

        `check` is called before every step of the chain; it leaves by raising.
        """
        if self.device.type == "cuda":
            return to_uint8(self.program(len(index)).run(self.begin(index), index, check), self.quantise)
        return to_uint8(self.walk(index, lambda at: check()), self.quantise)

    def walk(self, index: range, callback: Callable[[dict[str, Any]], None] | None = None) -> Tensor:
        """The same images as [n,C,H,W] float32, step by step from the host; `callback` as that of a `Chain`."""

        def noise(i: Index) -> Tensor:
            return self.noise(index, int(self.timesteps[int(i)]))

        x = self.begin(index)
        return self.chain(self.diffusion, self.model, x, noise, start=self.nfe, callback=callback, **self.options)

    def program(self, count: int) -> CapturedChain:
        """The chain of a batch of so many images, captured at its first use. Call it in inference mode."""
        if count not in self._programs:
            x = torch.zeros((count, *self.shape), device=self.device).to(memory_format=self.format)
            self._programs[count] = CapturedChain(self._step, x, self.chain.no_memory(x), self.timesteps, self.nfe)
        return self._programs[count]

    def _step(self, x: Tensor, i: Index, index: Tensor, t: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        def noise(_: Index) -> Tensor:
            return self.noise(index, t)

        return self.chain.step(self.diffusion, self.model, x, i, noise, memory, **self.options)

    def noise(self, index: range | Tensor, t: int | Tensor) -> Tensor:
        """The noise that images get in the step at which the network is shown timestep t."""
        return self._noise(Purpose.SAMPLE_STEP, index, t)

    def _noise(self, purpose: Purpose, index: range | Tensor, step: int | Tensor = 0) -> Tensor:
        noise = self.draws.normals(self.spec.seed, purpose, index, self.shape, step=step)
        return noise.to(memory_format=self.format)

    def begin(self, index: range) -> Tensor:
        """x_T for generation (Alg. 2); q(x_t | x0) of real images for exposure bias (Table 1)."""
        if self.images is None or not self.sampler.row.from_images:
            return self._noise(Purpose.SAMPLE_START, index)
        order = rng.permutation(self.spec.seed, Purpose.EXPOSURE_ORDER, len(self.images))
        x0 = to_network(self.images[order[np.asarray(index) % len(order)]]).to(self.device)
        t = torch.full((len(index),), self.nfe - 1, device=self.device)
        return self.diffusion.q_sample(x0, t, self._noise(Purpose.EXPOSURE_EPS, index))


def run(draw: ImageSampler, sampling: Sampling, out: Path, shards: Shards) -> dict[str, int]:
    """Draw the set and write samples.npz (`arr_0` uint8 NHWC, as the ADM evaluator reads it).

    Every network call is saved when it is done: a restart, or another process, draws only what is missing.

    Args:
        draw: draws images by their number.
        sampling: how many images, and how many a network call.
        out: staging directory; process 0 alone writes there.
        shards: where finished network calls are saved, and which process this is.

    Returns:
        What the recipe adds: number of images and network evaluations an image.

    Raises:
        Preempted: SIGTERM or SIGUSR1 came; finished network calls are saved.
    """
    n = sampling.count(draw.sampler)
    units = cut(n, sampling.batch_size)
    with signals.deferred() as stop:
        shards.complete(units, lambda unit: {"images": draw.draw(unit, stop.check)})
    if shards.first:
        channels, *size = draw.shape
        parts = (part["images"] for part in shards.parts(units))
        stream_npz(out / "samples.npz", "arr_0", (n, *size, channels), parts)
    return {"n": n, "nfe": draw.nfe}
