"""Stage train: one segment of a run, from the nearest saved state to the step asked for."""

from __future__ import annotations

import csv
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor

from ipdiff import build, optim, rng
from ipdiff.compute import configure
from ipdiff.data.batches import batch_indices, flips
from ipdiff.data.images import load_images, to_network
from ipdiff.errors import Preempted, UserError
from ipdiff.nets import dropout_masks, initialise, keep_threshold, twice_differentiable
from ipdiff.rng import Purpose
from ipdiff.spec import RunSpec
from ipdiff.states import States, state_digest
from ipdiff.timesteps import make_timestep_sampler

LOSS_ROWS = 200
"""Rows of a segment's loss curve: losses are averaged over equal runs of updates."""


class Trainer:
    """A run at some step: weights, EMA, optimiser, loss history. Everything random is a function of the step."""

    def __init__(self, spec: RunSpec, images: NDArray[np.uint8]) -> None:
        """Start at step 0.

        Args:
            spec: the run's parameters.
            images: [N, H, W, C] uint8.
        """
        self.spec, self.images = spec, images
        self.device = configure(spec.compute)
        self.net = build.network(spec)
        initialise(self.net, lambda tensor, count: rng.uniforms(spec.seed, Purpose.INIT, [tensor], count)[0])
        self.net.to(self.device).train()
        self.diffusion = build.diffusion(spec)
        self.names = [name for name, _ in self.net.named_parameters()]
        self.params = list(self.net.parameters())
        self.ema = [p.detach().clone() for p in self.params]
        self.optimizer = optim.make_optimizer(self.net, spec.training, spec.objective)
        self.timesteps = make_timestep_sampler(spec.training.timesteps, spec.diffusion.T)
        self.step = 0
        self.losses = np.zeros(0, dtype=np.float32)
        shape = (spec.channels, spec.image_size, spec.image_size)
        if images.shape[1:] != (*shape[1:], shape[0]):
            raise UserError(f"images are {images.shape[1:]} (HWC); the run expects {(*shape[1:], shape[0])}")
        self.shape = shape

    def advance(self) -> float:
        """One optimiser update (Alg. 3 where gamma > 0, Alg. 1 otherwise). Returns the mean loss."""
        spec, step = self.spec.training, self.step
        batch = range(spec.batch_size)
        t, weights = self.timesteps.sample(rng.uniforms(self.spec.seed, Purpose.TIMESTEP, batch, 1, step=step)[:, 0])
        losses = np.empty(spec.batch_size)
        size = spec.micro_batch or spec.batch_size

        def gradients(micro: int) -> list[Tensor]:
            part = slice(micro * size, (micro + 1) * size)
            grads, losses[part] = self._micro_batch(part, t[part], np.asarray(weights)[part])
            return grads

        grads = optim.tree_sum(spec.batch_size // size, gradients)
        mean = float(np.mean(losses * weights))
        if not np.isfinite(mean):
            raise UserError(
                f"loss is {mean} at step {step} (data indices "
                f"{batch_indices(self.spec.seed, len(self.images), spec.batch_size, step)[:8].tolist()}"
                " ...); lower the learning rate, or go on from the last checkpoint with other settings"
            )
        self._update(grads)
        self.timesteps.update(t, losses)
        self.losses = np.append(self.losses, np.float32(mean))
        self.step += 1
        return mean

    def _micro_batch(
        self, part: slice, t: NDArray[np.int64], weights: NDArray[np.floating]
    ) -> tuple[list[Tensor], NDArray[np.float64]]:
        """Gradients of the batch-mean loss over one micro-batch, and its loss for each image."""
        spec, seed, step = self.spec, self.spec.seed, self.step
        batch = spec.training.batch_size
        places = range(part.start, part.stop)
        indices = batch_indices(seed, len(self.images), batch, step)[part]
        x0 = self._tensor(to_network(self.images[indices]))
        if spec.training.flip:
            mirrored = self._tensor(torch.from_numpy(flips(seed, batch, step)[part]))
            x0 = torch.where(mirrored[:, None, None, None], x0.flip(3), x0)

        def noise(purpose: Purpose) -> Tensor:
            return self._tensor(torch.from_numpy(rng.normals(seed, purpose, places, self.shape, step=step)))

        eps = noise(Purpose.EPS)
        xi = noise(Purpose.XI) if np.any(np.asarray(spec.objective.gamma)) else None
        probe = noise(Purpose.PROBE) if spec.objective.gp_weight else None
        scale = self._tensor(torch.from_numpy(np.asarray(weights, dtype=np.float32))) / batch
        self.optimizer.zero_grad(set_to_none=True)
        with self._dropout(places), nullcontext() if probe is None else twice_differentiable():
            loss = self.diffusion.training_losses(
                self.net, x0, self._tensor(torch.from_numpy(t)), eps, xi, probe=probe
            )["loss"]
            (loss * scale).sum().backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        for p in self.params:
            p.grad = None
        return grads, loss.detach().double().cpu().numpy()

    def _dropout(self, places: range) -> Any:
        if not self.spec.network.dropout:
            return nullcontext()
        seed, step = self.spec.seed, self.step
        threshold = keep_threshold(self.spec.network.dropout)

        def source(layer: int, shape: torch.Size) -> Tensor:
            mask = rng.keep_mask(seed, places, tuple(shape[1:]), threshold, step=step, lane=layer)
            return self._tensor(torch.from_numpy(mask))

        return dropout_masks(self.net, source)

    def _update(self, grads: list[Tensor]) -> None:
        spec = self.spec.training
        for p, grad in zip(self.params, grads, strict=True):
            p.grad = grad
        if spec.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.params, spec.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = optim.learning_rate(spec, self.step)
        self.optimizer.step()
        optim.ema_update(self.ema, [p.detach() for p in self.params], optim.ema_decay(spec, self.step))

    def _tensor(self, value: Tensor) -> Tensor:
        return value.to(self.device)

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything the run needs to go on, as arrays; on the CPU they are the live weights, not copies."""
        moments = self.optimizer.state_dict()["state"]
        tensors: dict[str, NDArray[Any]] = {"loss": self.losses, "step": np.array(self.step, dtype=np.int64)}
        for i, name in enumerate(self.names):
            tensors[f"model.{name}"] = _array(self.params[i])
            tensors[f"ema.{name}"] = _array(self.ema[i])
            for key, value in moments.get(i, {}).items():
                tensors[f"optimizer.{key}.{name}"] = _array(value)
        tensors.update({f"timesteps.{key}": value for key, value in self.timesteps.state().items()})
        return tensors

    @torch.no_grad()
    def load(self, tensors: dict[str, NDArray[Any]]) -> None:
        """The inverse of `state`."""
        self.step, self.losses = int(tensors["step"]), tensors["loss"]
        moments: dict[int, dict[str, Tensor]] = {}
        for i, name in enumerate(self.names):
            self.params[i].copy_(torch.from_numpy(tensors[f"model.{name}"]))
            self.ema[i].copy_(torch.from_numpy(tensors[f"ema.{name}"]))
            keys = {key.split(".")[1] for key in tensors if key.startswith("optimizer.")}
            moments[i] = {key: torch.from_numpy(np.array(tensors[f"optimizer.{key}.{name}"])) for key in keys}
        if self.step:
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.timesteps.load(
            {key.removeprefix("timesteps."): value for key, value in tensors.items() if key.startswith("timesteps.")}
        )

    def ema_weights(self) -> dict[str, NDArray[np.float32]]:
        """The EMA weights by parameter name: what a checkpoint publishes."""
        return {name: _array(value) for name, value in zip(self.names, self.ema, strict=True)}


def _array(value: Tensor) -> NDArray[Any]:
    return value.detach().cpu().contiguous().numpy()


def run(
    spec: RunSpec,
    images: Path,
    out: Path,
    *,
    step: int,
    previous: tuple[int, str] | None,
    states: States,
    save_every: int,
    progress: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """Train to `step` and write the checkpoint: ema.safetensors, loss.csv.

    Args:
        spec: the run.
        images: images.npy, uint8 NHWC.
        out: staging directory.
        step: optimiser updates done at the end of the segment.
        previous: (step, state digest) recorded by the segment before; must be met on the way.
        states: the run's saved train states.
        save_every: updates between two saves.
        progress: called with the step reached.

    Returns:
        What the recipe adds: the digest of the full train state.

    Raises:
        UserError: training does not arrive at the recorded digest, or the loss is not finite.
        Preempted: SIGTERM or SIGUSR1 came; the state is saved.
    """
    trainer = Trainer(spec, load_images(images))
    resume(trainer, step, previous, states, save_every, progress)
    digest = states.save(step, trainer.state())
    save_file(trainer.ema_weights(), out / "ema.safetensors")
    write_losses(out / "loss.csv", trainer.losses, previous[0] if previous else 0)
    return {"run": spec.to_json(), "state": digest}


def resume(
    trainer: Trainer,
    step: int,
    previous: tuple[int, str] | None,
    states: States,
    save_every: int,
    progress: Callable[[int], None] = lambda step: None,
) -> None:
    """Bring `trainer` to `step`, from the newest state at hand, through the digest recorded at `previous`."""
    start = states.newest(step)
    if start is not None:
        trainer.load(start[1])
    with _stop_signals() as stop:
        while trainer.step < step:
            if previous and trainer.step == previous[0]:
                _require(state_digest(trainer.state()), previous)
            trainer.advance()
            progress(trainer.step)
            if stop or (trainer.step % save_every == 0 and trainer.step < step):
                states.save(trainer.step, trainer.state())
            if stop:
                raise Preempted(f"stopped by a signal at step {trainer.step} of {step}; saved, run me again to go on")


def _require(got: str, previous: tuple[int, str]) -> None:
    if got != previous[1]:
        raise UserError(
            f"training again to step {previous[0]} arrived at state {got}, the recorded one is "
            f"{previous[1]} (other machine type or versions?); get that state with the `resume` "
            "artifact, or delete the run's later checkpoints and train them again"
        )


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that SIGTERM or SIGUSR1 (a scheduler's warning) is put into instead of ending the process."""
    came: list[int] = []
    before = {name: signal.signal(name, lambda got, _: came.append(got)) for name in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield came
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def write_losses(path: Path, losses: NDArray[np.float32], start: int) -> None:
    """The loss curve from update `start` on, averaged to at most LOSS_ROWS rows: step, loss."""
    part = losses[start:].astype(np.float64)
    with path.open("w", newline="") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(["step", "loss"])
        done = 0
        for chunk in np.array_split(part, min(LOSS_ROWS, len(part))):
            done += len(chunk)
            rows.writerow([start + done, f"{chunk.mean():.7g}"])
