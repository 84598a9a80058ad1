"""Training that stays on the device: an update is a program over fixed tensors, and the host only feeds and reads it.

The host prepares what `EVERY` updates need (data indices, flips, uniforms for t, learning rates, EMA weights), sends it
in one piece and has the update run once for each; it looks at the losses when they are through, and before a state is
taken. An update whose loss or gradient is not finite changes nothing, and neither do those after it, so that the run is
then as it was before it. Timesteps, noise, masks and data are those of `Trainer`; sums may differ in their last bits.

On a GPU the program is captured in a CUDA graph. A CPU runs it as it is; there `Trainer` is the one to use, whose bytes
are those of the published artifacts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipdiff import rng
from ipdiff.data.batches import batch_indices, flips
from ipdiff.data.images import to_network
from ipdiff.data.prefetch import Prefetch
from ipdiff.device.program import Program
from ipdiff.rng import Purpose
from ipdiff.spec import RunSpec
from ipdiff.training import optimizer
from ipdiff.training.device_timesteps import timesteps_on
from ipdiff.training.distributed import Processes
from ipdiff.training.trainer import Diverged, Trainer

EVERY = 50
"""Updates after which the losses are read."""


def trainer_for(spec: RunSpec, images: NDArray[np.uint8], processes: Processes | None = None) -> Trainer:
    """The trainer for a run, `ResidentTrainer` where `stays` says so; arguments and errors are those of `Trainer`."""
    return ResidentTrainer(spec, images) if stays(spec, processes) else Trainer(spec, images, processes)


def stays(spec: RunSpec, processes: Processes | None = None) -> bool:
    """Whether a run is trained by `ResidentTrainer`.

    It is on a GPU, unless it needs what only `Trainer` can do: several processes, micro-batches, the gradient penalty.
    """
    whole = spec.training.micro_batch in (None, spec.training.batch_size)
    alone = processes is None or processes.count == 1
    return spec.compute.device == "cuda" and whole and alone and not spec.objective.gp_weight


class ResidentTrainer(Trainer):
    """A `Trainer` whose `step` and `losses` run ahead of and behind the device; `settle` brings them together.

    `losses` are those read so far. `state` and `ema_weights` settle first.
    """

    def __init__(self, spec: RunSpec, images: NDArray[np.uint8]) -> None:
        """As `Trainer`, for one process, the whole batch at once and no gradient penalty."""
        super().__init__(spec, images)
        batch = spec.training.batch_size
        self._rows = _Rows(spec, len(images), self.device)
        self._choice = timesteps_on(self.timesteps, self.device)
        self._places = torch.arange(batch, device=self.device)
        self._weights = [p.detach() for p in self.params]
        here = self.pictures.resident is not None
        shape = (0 if here else batch, *images.shape[1:])
        self._batch = torch.zeros(shape, dtype=torch.uint8, device=self.device)  # of images that are not there
        self._prefetch: Prefetch | None = None

        def scalar(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((), value, dtype=dtype, device=self.device)

        self._live = scalar(True, torch.bool)
        self._slot = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._log2 = scalar(self.scale.log2 if self.scale else 0.0, torch.float64)
        self._seen = torch.zeros((EVERY, _SEEN + batch), dtype=torch.float64, device=self.device)
        self._program = Program(self._run_update, self.device, "the training step")
        self._prepared = False
        self._sent, self._read = EVERY, EVERY  # rows of the present piece that were launched, and looked at

    def advance(self, check: Callable[[], None] = lambda: None) -> float:
        """Have the next update done. Returns the newest mean loss that was read, NaN where none was.

        Raises:
            Diverged: this or one of the `EVERY` updates before had a loss or a gradient that is not finite.
        """
        check()
        if self._sent == EVERY:
            self._rows.send(self.step)
            self._slot.zero_()
            self._sent = self._read = 0
        if not self._prepared:
            self._prepare()
        if self.pictures.resident is None:
            self._take_batch()
        self._program()
        self.step += 1
        self._sent += 1
        self._rows.prepare(self.step - self._sent + EVERY, self._sent)  # while the device is busy
        if self._sent == EVERY:
            self.settle()
        return float(self.losses[-1]) if len(self.losses) else float("nan")

    def _prepare(self) -> None:
        """Capture the update; while it is not live, it changes nothing."""
        self._live.fill_(False)
        self._program.prepare()
        self._live.fill_(True)
        self._prepared = True

    def _take_batch(self) -> None:
        spec = self.spec.training
        if self._prefetch is None:
            self._prefetch = Prefetch(
                self.images,
                lambda step: batch_indices(self.spec.seed, len(self.images), spec.batch_size, step),
                self.step,
                spec.batch_size,
                self.device,
            )
        self._prefetch.take_into(self._batch)

    def _run_update(self) -> None:
        """The update of the present row: no branch, no value that the host would have to know."""
        row = self._rows.row(self._slot)
        t, weights = self._choice.sample(row.u)
        pictures = self._batch if self.pictures.resident is None else self.pictures.resident[row.indices]
        x0 = self.inputs(to_network(pictures), row.mirrored if self.spec.training.flip else None)
        losses = self.loss(x0, t, self._places, row.step)
        factor = torch.exp2(self._log2).to(torch.float32)
        total = (losses * (weights.to(torch.float32) / len(t))).sum() * factor
        grads = self.gradients_of(total)
        norm = torch.nn.utils.get_total_norm(grads)
        exact = losses.detach().double()
        mean = (exact * weights).sum() / len(t)
        finite = torch.isfinite(mean) & torch.isfinite(norm)
        before = self._live.clone()
        self._scale(finite)
        self._update_by(grads, norm, factor, self._live & finite, row)
        self._choice.update(t, exact, self._live & torch.isfinite(exact).all())
        self._note(before, torch.cat([torch.stack([mean, norm.double(), finite.double()]), exact]))

    def _scale(self, finite: Tensor) -> None:
        """What a finite or other update does to float16's loss scale, and whether the run goes on."""
        if self.scale is None:
            self._live.logical_and_(finite)
            return
        after = torch.where(finite, self._log2 + self.scale.growth, self._log2 - 1)
        self._log2.copy_(torch.where(self._live, after, self._log2))
        self._live.logical_and_(self._log2 >= 0)

    def _update_by(self, grads: list[Tensor], norm: Tensor, factor: Tensor, good: Tensor, row: _Row) -> None:
        """Optimiser and EMA where `good`; nothing changes elsewhere."""
        spec = self.spec.training
        if self.scale is not None:
            torch._foreach_div_(grads, factor)  # type: ignore[attr-defined]
            norm = norm / factor
        for p, grad in zip(self.params, grads, strict=True):
            p.grad = grad
        if spec.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.params, spec.grad_clip, norm)
        self.optimizer.step(row.rate.to(torch.float32), skip=(~good).to(torch.float32))
        self.optimizer.zero_grad()
        away = torch._foreach_sub(self._weights, self.ema)  # type: ignore[attr-defined]
        torch._foreach_mul_(away, torch.where(good, row.share, 0.0).to(torch.float32))  # type: ignore[attr-defined]
        torch._foreach_add_(self.ema, away)  # type: ignore[attr-defined]

    def _note(self, before: Tensor, seen: Tensor) -> None:
        """Keep what the host will look at; a row that was written stays."""
        here = torch.arange(EVERY, device=self.device) == self._slot
        self._seen.copy_(torch.where((here & before)[:, None], seen, self._seen))
        self._slot.add_(before.to(torch.int64))

    def settle(self) -> None:
        """Wait for the updates that were launched and look at their losses.

        Raises:
            Diverged: one of them had a loss or a gradient that is not finite; the run is as it was before it.
        """
        if self._read == self._sent:
            return
        seen = self._seen[self._read : self._sent].cpu().numpy()
        bad = np.flatnonzero(seen[:, 2] == 0)
        if self.scale is None and bad.size:
            self._stop_before(seen, int(bad[0]))
        if self.scale is not None:
            for i, good in enumerate(seen[:, 2]):
                after = self.scale.log2 + (self.scale.growth if good else -1)
                if after < 0:
                    self._log2.fill_(self.scale.log2)
                    self._stop_before(seen, i)
                self.scale.log2 = after
        self.losses = np.append(self.losses, seen[:, 0].astype(np.float32))
        self._read = self._sent

    def _stop_before(self, seen: NDArray[np.float64], row: int) -> None:
        """Be as before the update of that row of what was read, and raise what it showed."""
        self.losses = np.append(self.losses, seen[:row, 0].astype(np.float32))
        self.step -= self._sent - self._read - row
        mean, norm = seen[row, :2]
        self._restart()
        if self.scale is not None:
            raise Diverged(self.scale_fell())
        raise Diverged(self.not_finite(np.isfinite(seen[row, _SEEN:]), float(mean), float(norm)))

    def _restart(self) -> None:
        """Begin a new piece at `step`."""
        self._live.fill_(True)
        self._sent = self._read = EVERY
        self._rows.forget()
        self.close()

    def close(self) -> None:
        """End the thread that gathers batches."""
        if self._prefetch is not None:
            self._prefetch.close()
            self._prefetch = None

    def state(self) -> dict[str, NDArray]:
        """As `Trainer.state`, of the updates launched so far.

        Raises:
            Diverged: as `settle`.
        """
        self.settle()
        self._choice.pull()
        return super().state()

    def load(self, tensors: dict[str, NDArray]) -> None:
        """As `Trainer.load`; the program is then captured anew."""
        super().load(tensors)
        self._choice.push()
        self._log2.fill_(self.scale.log2 if self.scale is not None else 0.0)
        self._restart()
        self._program = Program(self._run_update, self.device, "the training step")
        self._prepared = False

    def ema_weights(self) -> dict[str, NDArray[np.float32]]:
        """As `Trainer.ema_weights`."""
        self.settle()
        return super().ema_weights()


_SEEN = 3
"""What is noted of an update before its losses: their mean, the gradient's norm, whether both are finite."""


class _Row:
    """What one update is told, on the device: views of a row of whole numbers and one of real ones."""

    def __init__(self, whole: Tensor, real: Tensor) -> None:
        """`whole`: step, B indices, B flips; `real`: learning rate, EMA's share of the weights, B uniforms."""
        self.step = whole[:1]
        self.indices, mirrored = whole[1:].chunk(2)
        self.mirrored = mirrored.to(torch.bool)
        self.rate, self.share, self.u = real[0], real[1], real[2:]


class _Rows:
    """What the next `EVERY` updates are told, sent to the device in one piece from page-locked memory."""

    def __init__(self, spec: RunSpec, images: int, device: torch.device) -> None:
        self._spec, self._images = spec, images
        batch = spec.training.batch_size
        pinned = device.type == "cuda"

        def pair() -> tuple[Tensor, Tensor]:
            return (
                torch.zeros((EVERY, 1 + 2 * batch), dtype=torch.int64, pin_memory=pinned),
                torch.zeros((EVERY, 2 + batch), dtype=torch.float64, pin_memory=pinned),
            )

        self._next, self._spare = pair(), pair()  # one may still be on its way
        self._there = tuple(part.to(device) for part in pair())
        self._start: int | None = None
        self._written = 0

    def prepare(self, start: int, count: int) -> None:
        """Write down what the first `count` updates from `start` on need, as far as that is not done."""
        if self._start != start:
            self._next, self._spare = self._spare, self._next
            self._start, self._written = start, 0
        while self._written < count:
            self._write(self._written, start + self._written)
            self._written += 1

    def _write(self, row: int, step: int) -> None:
        whole, real = (part[row].numpy() for part in self._next)
        spec, seed = self._spec.training, self._spec.seed
        batch = spec.batch_size
        whole[0], whole[1 : 1 + batch] = step, batch_indices(seed, self._images, batch, step)
        if spec.flip:
            whole[1 + batch :] = flips(seed, batch, step)
        real[0], real[1] = optimizer.learning_rate(spec, step), 1 - optimizer.ema_decay(spec, step)
        real[2:] = rng.uniforms(seed, Purpose.TIMESTEP, range(batch), 1, step=step)[:, 0]

    def forget(self) -> None:
        """What was prepared is not wanted any more."""
        self._start = None

    def send(self, start: int) -> None:
        """Bring what the updates from `start` on need to the device."""
        self.prepare(start, EVERY)
        for there, here in zip(self._there, self._next, strict=True):
            there.copy_(here, non_blocking=True)

    def row(self, slot: Tensor) -> _Row:
        """The row that the device stands at; `slot`: [1] int64."""
        whole, real = (part.index_select(0, slot)[0] for part in self._there)
        return _Row(whole, real)
