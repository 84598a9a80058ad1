"""Stage train: one segment of a run, from the nearest saved state to the step asked for."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor

from ipdiff import build, optim, rng, signals
from ipdiff.compute import configure
from ipdiff.data.batches import batch_indices, flips
from ipdiff.data.images import load_images, reader, to_network
from ipdiff.draws import draws_on
from ipdiff.errors import Preempted, UserError
from ipdiff.lowering import compiled, low_precision
from ipdiff.nets import dropout_masks, initialise, keep_threshold, twice_differentiable
from ipdiff.processes import Processes, joined
from ipdiff.rng import Purpose
from ipdiff.spec import RunSpec, Work
from ipdiff.states import States, state_digest, tensors_of
from ipdiff.timesteps import make_timestep_sampler

LOSS_ROWS = 200
"""Rows of a segment's loss curve: losses are averaged over equal runs of updates."""


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
        self.micro_batches = optim.micro_batches(spec.training, self.processes.count)
        self.device = configure(spec.compute)
        self.net = build.network(spec)
        initialise(self.net, lambda tensor, count: rng.uniforms(spec.seed, Purpose.INIT, [tensor], count)[0])
        self.format = build.memory_format(spec)
        self.net.to(self.device).to(memory_format=self.format).train()  # pyright: ignore[reportCallIssue]
        self.model = low_precision(compiled(self.net, spec.compute), spec.compute)
        self.draws, self.pictures = draws_on(self.device), reader(images, self.device)
        self.diffusion = build.diffusion(spec)
        self.names = [name for name, _ in self.net.named_parameters()]
        self.params = list(self.net.parameters())
        self.ema = [p.detach().clone() for p in self.params]
        self.optimizer = optim.make_optimizer(self.net, spec.training, spec.objective)
        self.scale = optim.LossScale() if spec.compute.precision == "float16" else None
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
        mean = _mean(losses * weights)
        norm = torch.nn.utils.get_total_norm(grads)
        finite = math.isfinite(mean) and bool(torch.isfinite(norm))
        if finite:
            self._update(grads, norm)
        elif self.scale is not None:
            self._skip(self.scale)
        else:
            raise Diverged(self._not_finite(losses, mean, float(norm)))
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

        grads = optim.tree_sum(self.micro_batches, gradients, processes.rank * self.micro_batches)
        processes.sum_(grads, exact=spec.reduction == "exact")
        return processes.gather(torch.from_numpy(np.concatenate(mine))).numpy().reshape(-1), grads

    def _not_finite(self, losses: NDArray[np.float64], mean: float, norm: float) -> str:
        spec = self.spec.training
        indices = batch_indices(self.spec.seed, len(self.images), spec.batch_size, self.step)
        bad = indices if np.isfinite(losses).all() else indices[~np.isfinite(losses)]
        what = f"gradient norm is {norm} (loss {mean:.4g})" if math.isfinite(mean) else f"loss is {mean}"
        return (
            f"{what} at step {self.step} (data indices {bad[:8].tolist()}{' ...' if len(bad) > 8 else ''}); "
            "lower the learning rate, or go on from the last checkpoint with other settings"
        )

    def _skip(self, scale: optim.LossScale) -> None:
        """Leave an update out because float16 overflowed: weights, moments and EMA stay, the scale falls."""
        scale.overflow()
        if scale.log2 < 0:
            raise Diverged(f"the loss scale of float16 fell below 1 at step {self.step}: every gradient overflows")

    def _micro_batch(
        self, part: slice, t: NDArray[np.int64], weights: NDArray[np.floating]
    ) -> tuple[list[Tensor], NDArray[np.float64]]:
        """Gradients of the batch-mean loss over one micro-batch, and its loss for each image."""
        spec, seed, step = self.spec, self.spec.seed, self.step
        batch = spec.training.batch_size
        places = range(part.start, part.stop)
        indices = batch_indices(seed, len(self.images), batch, step)[part]
        x0 = self._tensor(to_network(self.pictures(indices))).to(memory_format=self.format)
        if spec.training.flip:
            mirrored = self._tensor(torch.from_numpy(flips(seed, batch, step)[part]))
            x0 = torch.where(mirrored[:, None, None, None], x0.flip(3), x0)

        def noise(purpose: Purpose) -> Tensor:
            return self.draws.normals(seed, purpose, places, self.shape, step=step)

        eps = noise(Purpose.EPS)
        xi = noise(Purpose.XI) if np.any(np.asarray(spec.objective.gamma)) else None
        probe = noise(Purpose.PROBE) if spec.objective.gp_weight else None
        scale = self._tensor(torch.from_numpy(np.asarray(weights, dtype=np.float32))) / batch
        self.optimizer.zero_grad(set_to_none=True)
        with self._dropout(places), nullcontext() if probe is None else twice_differentiable():
            loss = self.diffusion.training_losses(
                self.model, x0, self._tensor(torch.from_numpy(t)), eps, xi, probe=probe
            )["loss"]
            (loss * scale).sum().mul(1.0 if self.scale is None else self.scale.factor).backward()
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
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
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


def _mean(values: NDArray[np.floating]) -> float:
    """Mean with one rounding: np.mean's order, and so its last bits, depend on the CPU's SIMD width."""
    if not np.isfinite(values).all():
        return float(np.sum(values))
    return math.fsum(values.tolist()) / len(values)


def run(
    spec: RunSpec,
    images: Path,
    out: Path,
    *,
    step: int,
    previous: tuple[int, str] | None,
    states: States,
    work: Work,
    rank: int = 0,
    count: int = 1,
    progress: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """Train to `step` and write the checkpoint: ema.safetensors, loss.csv.

    Args:
        spec: the run.
        images: images.npy, uint8 NHWC.
        out: staging directory; process 0 alone writes there.
        step: optimiser updates done at the end of the segment.
        previous: (step, state digest) recorded by the segment before; must be met on the way.
        states: the run's saved train states; process 0 alone reads and writes them.
        work: how often a state is saved.
        rank: this process among those that train together.
        count: their number.
        progress: called with the step reached.

    Returns:
        What the recipe adds: the digest of the full train state, and the number of processes where it counts.

    Raises:
        UserError: training does not arrive at the recorded digest, or diverges, or `count` does not fit.
        Preempted: SIGTERM or SIGUSR1 came, and the state is saved; or another process has died.
    """
    with signals.deferred() as stop, joined(rank, count, spec.compute.device) as processes:
        trainer = Trainer(spec, load_images(images), processes)
        resume(trainer, step, previous, states, work, stop, progress)
    made: dict[str, Any] = {"run": spec.to_json()}
    if spec.training.reduction == "fast":
        made["processes"] = count
    if rank == 0:
        made["state"] = states.save(step, trainer.state())
        save_file(trainer.ema_weights(), out / "ema.safetensors")
        write_losses(out / "loss.csv", trainer.losses, previous[0] if previous else 0)
    return made


def again(spec: RunSpec, images: Path, *, step: int, states: States, work: Work) -> None:
    """Train to `step` only for its state; arguments and errors as in `run`."""
    with signals.deferred() as stop:
        trainer = Trainer(spec, load_images(images))
        resume(trainer, step, None, states, work, stop)
    states.save(step, trainer.state())


def resume(
    trainer: Trainer,
    step: int,
    previous: tuple[int, str] | None,
    states: States,
    work: Work,
    stop: signals.Stop,
    progress: Callable[[int], None] = lambda step: None,
) -> None:
    """Bring `trainer` to `step`, from the newest state at hand, through the digest recorded at `previous`.

    A warning is seen between two updates, and by a process that trains alone between two micro-batches: processes that
    train together would have to agree there, too.
    """
    processes = trainer.processes
    first = processes.rank == 0
    found = states.newest(step) if first else None
    data = processes.share(None if found is None else found[1])
    if data is not None:
        trainer.load(tensors_of(data))
    alone, saved = processes.count == 1, time.monotonic()
    while trainer.step < step:
        if first and previous and trainer.step == previous[0]:
            _require(state_digest(trainer.state()), previous)
        try:
            _advance(trainer, previous, states, stop.check if alone else lambda: None)
        except Preempted:
            if not alone:
                raise  # another process has died
        progress(trainer.step)
        stopping = processes.any(stop.came)
        due = trainer.step % work.save_every == 0 or time.monotonic() - saved >= work.save_seconds
        if first and (stopping or (due and trainer.step < step)):
            states.save(trainer.step, trainer.state())
            saved = time.monotonic()
        if stopping:
            raise Preempted(f"stopped by a signal at step {trainer.step} of {step}; saved, run me again to go on")


def _advance(trainer: Trainer, previous: tuple[int, str] | None, states: States, check: Callable[[], None]) -> None:
    try:
        trainer.advance(check)
    except Diverged as error:
        saved = states.newest(trainer.step)
        state = f"the last state saved is of step {saved[0]} ({states.directory})" if saved else "no state is saved"
        checkpoint = f"the last checkpoint is of step {previous[0]}" if previous else "there is no checkpoint yet"
        raise Diverged(f"{error}; {state}, {checkpoint}") from None


def _require(got: str, previous: tuple[int, str]) -> None:
    if got != previous[1]:
        raise UserError(
            f"training again to step {previous[0]} arrived at state {got}, the recorded one is "
            f"{previous[1]} (other machine type or versions?); get that state with the `resume` "
            "artifact, or delete the run's later checkpoints and train them again"
        )


def write_losses(path: Path, losses: NDArray[np.float32], start: int) -> None:
    """The loss curve from update `start` on, averaged to at most LOSS_ROWS rows: step, loss."""
    part = losses[start:].astype(np.float64)
    with path.open("w", newline="") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(["step", "loss"])
        done = 0
        for chunk in np.array_split(part, min(LOSS_ROWS, len(part))):
            done += len(chunk)
            rows.writerow([start + done, f"{_mean(chunk):.7g}"])
