"""A run while it trains: weights, EMA, optimiser, loss history, and the update that takes it a step further."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipdiff import rng
from ipdiff.data.batches import batch_indices, flips
from ipdiff.data.images import Reader, to_network
from ipdiff.device.compute import configure
from ipdiff.device.streams import draws_on
from ipdiff.errors import UserError
from ipdiff.nets import build, dropout_masks, initialise, keep_threshold, twice_differentiable
from ipdiff.nets.execution import compiled, low_precision
from ipdiff.rng import Purpose
from ipdiff.spec import RunSpec
from ipdiff.training import optimizer
from ipdiff.training.distributed import Processes
from ipdiff.training.timesteps import make_timestep_sampler


class Diverged(UserError):
    """A loss or a gradient that is not finite; the trainer is left as it was before the update."""


class Trainer:
    """A run at some step: weights, EMA, optimiser, loss history. Everything random is a function of the step."""

    def __init__(self, spec: RunSpec, images: NDArray[np.uint8], processes: Processes | None = None) -> None:
        """Start at step 0.

        Args:
            spec: the run's parameters.
            images: [N, H, W, C] uint8.
            processes: who shares the micro-batches of an update; this process alone if None.

        Raises:
            UserError: images of another shape than the run's, or processes that cannot share its micro-batches.
        """
        if spec.compute.compile and spec.objective.gp_weight:
            raise UserError("compute.compile is true, but the gradient penalty differentiates twice; set it to false")
        self.spec, self.images = spec, images
        self.processes = processes or Processes()
        self.micro_batches = optimizer.micro_batches(spec.training, self.processes.count)
        self.device = configure(spec.compute)
        self.net = build.network(spec)
        initialise(self.net, lambda tensor, count: rng.uniforms(spec.seed, Purpose.INIT, [tensor], count)[0])
        self.format = build.memory_format(spec)
        self.net.to(self.device).to(memory_format=self.format).train()  # pyright: ignore[reportCallIssue]
        self.model = low_precision(compiled(self.net, spec.compute), spec.compute)
        self.draws, self.pictures = draws_on(self.device), Reader(images, self.device)
        self.diffusion = build.diffusion(spec)
        self.names = [name for name, _ in self.net.named_parameters()]
        self.params = list(self.net.parameters())
        self.ema = [p.detach().clone() for p in self.params]
        self.optimizer = optimizer.make_optimizer(self.net, spec.objective)
        self.scale = optimizer.LossScale() if spec.compute.precision == "float16" else None
        self.timesteps = make_timestep_sampler(spec.training.timesteps, spec.diffusion.T)
        self.step = 0
        self.losses = np.zeros(0, dtype=np.float32)
        shape = (spec.channels, spec.image_size, spec.image_size)
        if images.shape[1:] != (*shape[1:], shape[0]):
            raise UserError(f"images are {images.shape[1:]} (HWC); the run expects {(*shape[1:], shape[0])}")
        self.shape = shape

    def advance(self, check: Callable[[], None] = lambda: None) -> float:
        """One optimiser update (Alg. 3 where gamma > 0, Alg. 1 otherwise). Returns the mean loss.

        `check` is called between micro-batches; it leaves by raising, and the trainer is as it was before the update.

        Raises:
            Diverged: the loss or the gradient is not finite.
        """
        spec, step = self.spec.training, self.step
        places = range(spec.batch_size)
        t, weights = self.timesteps.sample(rng.uniforms(self.spec.seed, Purpose.TIMESTEP, places, 1, step=step)[:, 0])
        losses, grads = self._gradients(t, weights, check)
        mean = mean_of(losses * weights)
        norm = torch.nn.utils.get_total_norm(grads)
        finite = math.isfinite(mean) and bool(torch.isfinite(norm))
        if finite:
            self._update(grads, norm)
        elif self.scale is not None:
            self._skip(self.scale)
        else:
            raise Diverged(self.not_finite(np.isfinite(losses), mean, float(norm)))
        if np.isfinite(losses).all():
            self.timesteps.update(t, losses)
        self.losses = np.append(self.losses, np.float32(mean))
        self.step += 1
        return mean

    def _gradients(
        self, t: NDArray[np.int64], weights: NDArray[np.float64], check: Callable[[], None]
    ) -> tuple[NDArray[np.float64], list[Tensor]]:
        """Losses of the whole batch in index order, and the gradients of its mean loss, times the loss scale."""
        spec, processes = self.spec.training, self.processes
        size = spec.micro_batch or spec.batch_size
        mine: list[NDArray[np.float64]] = []

        def gradients(micro: int) -> list[Tensor]:
            check()
            part = slice(micro * size, (micro + 1) * size)
            grads, losses = self._micro_batch(part, t[part], weights[part])
            mine.append(losses)
            return grads

        grads = optimizer.tree_sum(self.micro_batches, gradients, processes.rank * self.micro_batches)
        processes.sum_(grads, exact=spec.reduction == "exact")
        return processes.gather(torch.from_numpy(np.concatenate(mine))).numpy().reshape(-1), grads

    def not_finite(self, finite: NDArray[np.bool_], mean: float, norm: float) -> str:
        """What went wrong in the update of this step.

        Args:
            finite: [B], which of the batch's losses are finite.
            mean: the mean loss.
            norm: of the gradient.
        """
        spec = self.spec.training
        indices = batch_indices(self.spec.seed, len(self.images), spec.batch_size, self.step)
        bad = indices if finite.all() else indices[~finite]
        what = f"gradient norm is {norm} (loss {mean:.4g})" if math.isfinite(mean) else f"loss is {mean}"
        return (
            f"{what} at step {self.step} (data indices {bad[:8].tolist()}{' ...' if len(bad) > 8 else ''}); "
            "lower the learning rate, or go on from the last checkpoint with other settings"
        )

    def _skip(self, scale: optimizer.LossScale) -> None:
        """Leave an update out because float16 overflowed: weights, moments and EMA stay, the scale falls."""
        scale.overflow()
        if scale.log2 < 0:
            raise Diverged(self.scale_fell())

    def scale_fell(self) -> str:
        """What went wrong where float16's loss scale has fallen too far."""
        return f"the loss scale of float16 fell below 1 at step {self.step}: every gradient overflows"

    def _micro_batch(
        self, part: slice, t: NDArray[np.int64], weights: NDArray[np.floating]
    ) -> tuple[list[Tensor], NDArray[np.float64]]:
        """Gradients of the batch-mean loss over one micro-batch, and its loss for each image."""
        seed, step, batch = self.spec.seed, self.step, self.spec.training.batch_size
        indices = batch_indices(seed, len(self.images), batch, step)[part]
        mirrored = None
        if self.spec.training.flip:
            mirrored = self._tensor(torch.from_numpy(flips(seed, batch, step)[part]))
        x0 = self.inputs(to_network(self.pictures(indices)), mirrored)
        scale = self._tensor(torch.from_numpy(np.asarray(weights, dtype=np.float32))) / batch
        loss = self.loss(x0, self._tensor(torch.from_numpy(t)), range(part.start, part.stop), step)
        grads = self.gradients_of((loss * scale).sum().mul(1.0 if self.scale is None else self.scale.factor))
        return grads, loss.detach().double().cpu().numpy()

    def gradients_of(self, total: Tensor) -> list[Tensor]:
        """The gradient of a number for each parameter, laid out in memory like it."""
        self.optimizer.zero_grad()
        total.backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        for p in self.params:
            p.grad = None
        return grads

    def inputs(self, x0: Tensor, mirrored: Tensor | None) -> Tensor:
        """Images as the network takes them.

        Args:
            x0: [n,C,H,W] float32 in [-1, 1].
            mirrored: [n] bool on the run's device, which are mirrored; None: none.
        """
        x0 = self._tensor(x0).to(memory_format=self.format)
        return x0 if mirrored is None else torch.where(mirrored[:, None, None, None], x0.flip(3), x0)

    def loss(self, x0: Tensor, t: Tensor, places: range | Tensor, step: int | Tensor) -> Tensor:
        """The loss of each image, [n], with the noise and the dropout of an update.

        Args:
            x0: [n,C,H,W] float32, on the run's device.
            t: [n] int64, likewise.
            places: of the images in the batch, [n].
            step: the update; an int, or one int64 on the device.
        """
        spec = self.spec

        def noise(purpose: Purpose) -> Tensor:
            return self.draws.normals(spec.seed, purpose, places, self.shape, step=step)

        eps = noise(Purpose.EPS)
        xi = noise(Purpose.XI) if np.any(np.asarray(spec.objective.gamma)) else None
        probe = noise(Purpose.PROBE) if spec.objective.gp_weight else None
        with self._dropout(places, step), nullcontext() if probe is None else twice_differentiable():
            return self.diffusion.training_losses(self.model, x0, t, eps, xi, probe=probe)["loss"]

    def _dropout(self, places: range | Tensor, step: int | Tensor) -> Any:
        if not self.spec.network.dropout:
            return nullcontext()
        seed, threshold = self.spec.seed, keep_threshold(self.spec.network.dropout)

        def source(layer: int, shape: torch.Size) -> Tensor:
            channels, *size = shape[1:]  # drawn pixel by pixel, as channels_last activations lie in memory
            mask = self.draws.keep_mask(seed, places, (*size, channels), threshold, step=step, lane=layer)
            return mask.permute(0, 3, 1, 2)

        return dropout_masks(self.net, source)

    def _update(self, grads: list[Tensor], norm: Tensor) -> None:
        """Take a step along gradients whose global norm is `norm`; both are still times the loss scale."""
        spec = self.spec.training
        if self.scale is not None:
            torch._foreach_mul_(grads, 1 / self.scale.factor)  # type: ignore[attr-defined]
            norm = norm / self.scale.factor
            self.scale.good()
        for p, grad in zip(self.params, grads, strict=True):
            p.grad = grad
        if spec.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.params, spec.grad_clip, norm)
        self.optimizer.step(optimizer.learning_rate(spec, self.step))
        optimizer.ema_update(self.ema, [p.detach() for p in self.params], optimizer.ema_decay(spec, self.step))

    def _tensor(self, value: Tensor) -> Tensor:
        return value.to(self.device)

    def settle(self) -> None:
        """Make sure of every update done so far; here each was made sure of when it was done.

        Raises:
            Diverged: as `advance`.
        """

    def close(self) -> None:
        """Let go of what works beside this process; the state stays readable."""

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything the run needs to go on, as arrays; on the CPU they are the live weights, not copies."""
        moments = self.optimizer.moments
        tensors: dict[str, NDArray[Any]] = {"loss": self.losses, "step": np.array(self.step, dtype=np.int64)}
        for i, name in enumerate(self.names):
            tensors[f"model.{name}"] = _array(self.params[i])
            tensors[f"ema.{name}"] = _array(self.ema[i])
            for key, value in moments.get(i, {}).items():
                tensors[f"optimizer.{key}.{name}"] = _array(value)
        if self.scale is not None:
            tensors["loss_scale.log2"] = np.array(self.scale.log2)
        tensors.update({f"timesteps.{key}": value for key, value in self.timesteps.state().items()})
        return tensors

    @torch.no_grad()
    def load(self, tensors: dict[str, NDArray[Any]]) -> None:
        """The inverse of `state`."""
        self.step, self.losses = int(tensors["step"]), tensors["loss"]
        if self.scale is not None:
            self.scale.log2 = float(tensors["loss_scale.log2"])
        moments: dict[int, dict[str, Tensor]] = {}
        for i, name in enumerate(self.names):
            self.params[i].copy_(torch.from_numpy(tensors[f"model.{name}"]))
            self.ema[i].copy_(torch.from_numpy(tensors[f"ema.{name}"]))
            keys = {key.split(".")[1] for key in tensors if key.startswith("optimizer.")}
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


def mean_of(values: NDArray[np.floating]) -> float:
    """Mean with one rounding: np.mean's order, and so its last bits, depend on the CPU's SIMD width."""
    if not np.isfinite(values).all():
        return float(np.sum(values))
    return math.fsum(values.tolist()) / len(values)
