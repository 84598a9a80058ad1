"""A run while it trains: its data, weights, EMA, optimiser and history, and what an update computes from them.

Two feeders drive it from step to step: `training.host_feeder` and `training.device_feeder`.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipdiff import rng
from ipdiff.data.batches import batch_indices, flips
from ipdiff.data.images import Reader, to_network
from ipdiff.device.compute import configure
from ipdiff.device.memory import Passes
from ipdiff.device.recompute import keeping
from ipdiff.device.streams import draws_on
from ipdiff.errors import UserError
from ipdiff.nets import build
from ipdiff.nets.dropout import dropout_masks, keep_threshold
from ipdiff.nets.execution import compiled, low_precision
from ipdiff.nets.initial import initialise
from ipdiff.nets.layers import twice_differentiable
from ipdiff.rng import Purpose
from ipdiff.spec import Ramp, RunSpec
from ipdiff.training import optimizer
from ipdiff.training.timesteps import TIMESTEPS
from ipdiff.work import progress
from ipdiff.work.train_states import Tensors


class Diverged(UserError):
    """A loss or a gradient that is not finite; the run is as it was before the update."""


class Feeder(Protocol):
    """What takes a run from update to update; its weights may be ahead of its `step` and its history until `settle`."""

    @property
    def step(self) -> int:
        """Updates begun so far."""
        ...

    passes: Passes
    """How this process cuts its share of an update."""

    @property
    def every(self) -> int:
        """Updates after which their losses are looked at."""
        ...

    def advance(self, check: Callable[[], None] = lambda: None) -> None:
        """Begin the next update (Alg. 3 where gamma > 0, Alg. 1 otherwise).

        `check` is called where the update can still be given up; it leaves by raising, and nothing has changed.

        Raises:
            Diverged: this update, or one of the `every` before, has a loss or a gradient that is not finite.
        """
        ...

    def settle(self) -> Run:
        """The run with every update begun so far made sure of: the way to its state and its weights.

        Raises:
            Diverged: as `advance`.
        """
        ...

    def close(self) -> None:
        """Let go of what works beside this process."""
        ...


class Run:
    """A run at some step. Everything random is a function of the step."""

    def __init__(
        self, spec: RunSpec, images: NDArray[np.uint8], start: Mapping[str, NDArray[np.float32]] | None = None
    ) -> None:
        """Start at step 0.

        Args:
            spec: the run's parameters.
            images: [N, H, W, C] uint8.
            start: the weights to begin with, by parameter name; None: they are drawn by the run's seed.

        Raises:
            UserError: images of another shape than the run's, or an objective that cannot be compiled.
        """
        self.spec, self.shape = spec, (spec.channels, spec.image_size, spec.image_size)
        expected = (*self.shape[1:], spec.channels)
        if images.shape[1:] != expected:
            raise UserError(f"images are {images.shape[1:]} (HWC); the run expects {expected}")
        self.diffusion = build.diffusion(spec)
        if spec.compute.compile and self.diffusion.needs_probe:
            raise UserError("compute.compile is true, but the gradient penalty differentiates twice; set it to false")
        self.device = configure(spec.compute)
        self.net = build.network(spec)
        if start is None:
            initialise(self.net, lambda tensor, count: rng.uniforms(spec.seed, Purpose.INIT, [tensor], count)[0])
        else:
            self.net.load_state_dict({name: torch.from_numpy(value) for name, value in start.items()})
        self.format = build.memory_format(spec)
        self.net.to(self.device).to(memory_format=self.format).train()  # pyright: ignore[reportCallIssue]
        self.model = low_precision(compiled(self.net, spec.compute), spec.compute)
        self.draws, self.pictures = draws_on(self.device), Reader(images, self.device)
        self.names = [name for name, _ in self.net.named_parameters()]
        self.params = list(self.net.parameters())
        self.weights = [p.detach() for p in self.params]
        self.ema = [weight.clone() for weight in self.weights]
        self.optimizer = optimizer.make_optimizer(self.net, spec.objective)
        self.scale = optimizer.LossScale() if spec.compute.precision == "float16" else None
        self.timesteps = TIMESTEPS[spec.training.timesteps](spec.diffusion.T, self.device)
        self.keeps = False  # what a gradient could make again: by the memory at hand, see `Passes`
        self.step = 0
        self._losses = array("f")

    @property
    def losses(self) -> NDArray[np.float32]:
        """The mean loss of each update: [step]."""
        return np.array(self._losses, dtype=np.float32)

    # What an update is given: all of it on the host

    def indices(self, step: int) -> NDArray[np.int64]:
        """Of the images of an update: [B]."""
        return batch_indices(self.spec.seed, len(self.pictures.images), self.spec.training.batch_size, step)

    def mirrored(self, step: int) -> NDArray[np.bool_] | None:
        """Which of them are mirrored: [B]; None: none."""
        spec = self.spec
        return flips(spec.seed, spec.training.batch_size, step) if spec.training.flip else None

    def uniforms(self, step: int) -> NDArray[np.float64]:
        """What their timesteps are drawn from: [B] in [0, 1)."""
        places = range(self.spec.training.batch_size)
        return rng.uniforms(self.spec.seed, Purpose.TIMESTEP, places, 1, step=step)[:, 0]

    def gamma(self, step: int) -> float | None:
        """The strength of their perturbation; None: that of the diffusion process, which does not change."""
        gamma = self.spec.objective.gamma
        return gamma.at(step) if isinstance(gamma, Ramp) and self.diffusion.needs_xi else None

    # What it computes: the same on the host's call and in a captured program

    def gradients(
        self,
        pictures: NDArray[np.uint8] | Tensor,
        mirrored: Tensor | None,
        t: Tensor,
        weights: Tensor,
        places: range | Tensor,
        step: int | Tensor,
        factor: float | Tensor,
        gamma: Tensor | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """What images of a batch add to the gradients of its mean loss.

        Args:
            pictures: [n,H,W,C] uint8.
            mirrored: [n] bool on the run's device, which are mirrored; None: none.
            t: as `loss` takes it, like `places` and `step`.
            weights: [n] float64 on the device, of the losses.
            places: see `t`.
            step: see `t`.
            factor: what the gradients come multiplied by.
            gamma: see `t`.

        Returns:
            The loss of each image, [n] float64, and a gradient for each parameter, laid out in memory like it.
        """
        x0 = to_network(pictures).to(self.device).to(memory_format=self.format)
        if mirrored is not None:
            x0 = torch.where(mirrored[:, None, None, None], x0.flip(3), x0)
        with keeping(self.keeps):
            losses = self.loss(x0, t, places, step, gamma)
        total = (losses * (weights.to(torch.float32) / self.spec.training.batch_size)).sum() * factor
        self.optimizer.zero_grad()
        total.backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        self.optimizer.zero_grad()
        return losses.detach().double(), grads

    def loss(self, x0: Tensor, t: Tensor, places: range | Tensor, step: int | Tensor, gamma: Tensor | None) -> Tensor:
        """The loss of each image, [n], with the noise and the dropout of an update.

        Args:
            x0: [n,C,H,W] float32 in [-1, 1], on the run's device.
            t: [n] int64, likewise.
            places: of the images in the batch, [n].
            step: the update; an int, or one int64 on the device.
            gamma: what `gamma` says of it, one float64 on the device, or None.
        """

        def noise(purpose: Purpose) -> Tensor:
            return self.draws.normals(self.spec.seed, purpose, places, self.shape, step=step)

        eps = noise(Purpose.EPS)
        xi = noise(Purpose.XI) if self.diffusion.needs_xi else None
        probe = noise(Purpose.PROBE) if self.diffusion.needs_probe else None
        with self._dropout(places, step), nullcontext() if probe is None else twice_differentiable():
            return self.diffusion.training_losses(self.model, x0, t, eps, xi, probe=probe, gamma=gamma)["loss"]

    def _dropout(self, places: range | Tensor, step: int | Tensor) -> Any:
        dropout: float = getattr(self.spec.network, "dropout", 0.0)
        if not dropout:
            return nullcontext()
        seed, threshold = self.spec.seed, keep_threshold(dropout)

        def source(layer: int, shape: torch.Size) -> Tensor:
            channels, *size = shape[1:]  # drawn pixel by pixel, as channels_last activations lie in memory
            mask = self.draws.keep_mask(seed, places, (*size, channels), threshold, step=step, lane=layer)
            return mask.permute(0, 3, 1, 2)

        return dropout_masks(self.net, source)

    def descend(self, grads: list[Tensor], norm: Tensor, rate: float | Tensor, *, skip: Tensor | None = None) -> None:
        """Take the optimiser's step along gradients, clipped where the run clips them.

        Args:
            grads: one for each parameter; used up.
            norm: their global norm.
            rate: the learning rate.
            skip: one float32 on the device: 1 leaves everything as it is.
        """
        for p, grad in zip(self.params, grads, strict=True):
            p.grad = grad
        if self.spec.training.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.params, self.spec.training.grad_clip, norm)
        self.optimizer.step(rate, skip=skip)
        self.optimizer.zero_grad()

    # What is remembered of it

    def note(self, losses: NDArray[np.float64], mean: float, norm: float) -> None:
        """Count the update of this step, which was done if `mean` and `norm` are finite, and left out otherwise.

        Args:
            losses: [B], of each image.
            mean: the mean loss.
            norm: of the gradient, times the loss scale of float16.

        Raises:
            Diverged: it could not be left out, or the loss scale has fallen too far; nothing is noted.
        """
        done = math.isfinite(mean) and math.isfinite(norm)
        norm /= 1.0 if self.scale is None else self.scale.factor
        if self.scale is not None:
            log2 = self.scale.after(done)
            if log2 < 0:
                raise Diverged(f"the loss scale of float16 fell below 1 at step {self.step}: every gradient overflows")
            self.scale.log2 = log2
        elif not done:
            raise Diverged(self._not_finite(np.isfinite(losses), mean, norm))
        self._losses.append(mean)
        rate = optimizer.learning_rate(self.spec.training, self.step)
        self.step += 1
        progress.tell(self.step, loss=mean, gradient_norm=norm, learning_rate=rate)

    def _not_finite(self, finite: NDArray[np.bool_], mean: float, norm: float) -> str:
        indices = self.indices(self.step)
        bad = indices if finite.all() else indices[~finite]
        what = f"gradient norm is {norm} (loss {mean:.4g})" if math.isfinite(mean) else f"loss is {mean}"
        return (
            f"{what} at step {self.step} (data indices {bad[:8].tolist()}{' ...' if len(bad) > 8 else ''}); "
            "lower the learning rate, or go on from the last checkpoint with other settings"
        )

    def state(self) -> Tensors:
        """Everything the run needs to go on; on the CPU the live weights, elsewhere copied when an array is read."""
        moments = self.optimizer.moments
        tensors: dict[str, Any] = {"loss": self.losses, "step": np.array(self.step, dtype=np.int64)}
        for i, name in enumerate(self.names):
            tensors[f"model.{name}"], tensors[f"ema.{name}"] = self.weights[i], self.ema[i]
            for key, value in moments.get(i, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        if self.scale is not None:
            tensors["loss_scale.log2"] = np.array(self.scale.log2)
        tensors.update({f"timesteps.{key}": value for key, value in self.timesteps.state().items()})
        return Tensors(tensors)

    def load(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state`; to be done before a feeder is made of the run."""
        self.step, self._losses = int(tensors["step"]), array("f", tensors["loss"].tolist())
        if self.scale is not None:
            self.scale.log2 = float(tensors["loss_scale.log2"])
        keys = {key.split(".")[1] for key in tensors if key.startswith("optimizer.")}
        moments: dict[int, dict[str, Tensor]] = {}
        for i, name in enumerate(self.names):
            self.weights[i].copy_(torch.from_numpy(tensors[f"model.{name}"]))
            self.ema[i].copy_(torch.from_numpy(tensors[f"ema.{name}"]))
            moments[i] = {key: _moment(tensors[f"optimizer.{key}.{name}"], self.params[i]) for key in keys}
        if self.step:
            self.optimizer.load(moments)
        self.timesteps.load(
            {key.removeprefix("timesteps."): value for key, value in tensors.items() if key.startswith("timesteps.")}
        )

    def ema_weights(self) -> dict[str, NDArray[np.float32]]:
        """The EMA weights by parameter name: what a checkpoint publishes."""
        return {name: _array(value) for name, value in zip(self.names, self.ema, strict=True)}


def _moment(value: NDArray[Any], parameter: Tensor) -> Tensor:
    """A tensor of the optimiser, laid out like its parameter: the fused update walks both in memory order."""
    tensor = torch.from_numpy(np.array(value))
    return torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor


def _array(value: Tensor) -> NDArray[Any]:
    return value.detach().cpu().contiguous().numpy()
