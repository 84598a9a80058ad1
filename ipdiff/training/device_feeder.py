"""Updates that stay on the device: one is a program over fixed tensors, and the host only feeds and reads it.

The host prepares what a piece of `EVERY` updates needs (data indices, flips, uniforms for t, learning rates, EMA's
shares, gammas), sends it at once and has the program run for each; it looks at the losses when they are through, and
before a state is taken. A batch may be cut into passes, whose gradients add up within the program. An update whose
loss or gradient is not finite changes nothing, and neither do those after it, so that the run is then as it was before
it. Timesteps, noise, masks and data are those of `training.host_feeder`; sums
may differ in their last bits.

On a GPU the program is captured in a CUDA graph. A CPU runs it as it is, which is for tests.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ipdiff.data.prefetch import Prefetch
from ipdiff.device.memory import Passes
from ipdiff.device.program import Program
from ipdiff.nets import build
from ipdiff.spec import RunSpec
from ipdiff.training import optimizer
from ipdiff.training.distributed import ALONE, Processes, passes_of
from ipdiff.training.run import Diverged, Run

EVERY = 50
"""Updates after which the losses are read."""


def feeds(spec: RunSpec, processes: Processes = ALONE) -> bool:
    """Whether `DeviceFeeder` can feed a run, and so does.

    It is on a GPU and needs nothing that only the host can do: several processes, a sum of several micro-batches with
    the bytes of any number of processes, the gradient penalty.
    """
    training = spec.training
    free = training.reduction == "fast" or training.micro_batch in (None, training.batch_size)
    return spec.compute.device == "cuda" and free and processes.count == 1 and not build.diffusion(spec).needs_probe


class DeviceFeeder:
    """See `ipdiff.training.run.Feeder`; `check` is called before an update is launched."""

    def __init__(self, run: Run, passes: Passes | None = None) -> None:
        """Go on from the run's state; `passes`: of each batch, cut smaller where the device's memory does not suffice.

        Raises:
            UserError: it does not suffice for any cut.
        """
        self.run, self.step, self.every = run, run.step, EVERY
        self.passes = passes or passes_of(run)
        self._end = run.step  # of the present piece
        self._rows = _Rows(run, self.every)
        batch, pictures = run.spec.training.batch_size, run.pictures
        self._places = torch.arange(batch, device=run.device)
        shape = (0 if pictures.resident is not None else batch, *pictures.images.shape[1:])
        self._batch = torch.zeros(shape, dtype=torch.uint8, device=run.device)  # of images that are not there
        self._prefetch: Prefetch | None = None

        def scalar(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((), value, dtype=dtype, device=run.device)

        self._live = scalar(False, torch.bool)  # until the program is captured: it then changes nothing
        self._slot = torch.zeros(1, dtype=torch.int64, device=run.device)
        self._log2 = scalar(run.scale.log2 if run.scale else 0.0, torch.float64)
        self._seen = torch.zeros((self.every, 2 + batch), dtype=torch.float64, device=run.device)
        self._program = self._prepared()
        self._live.fill_(True)

    def _prepared(self) -> Program:
        while True:
            try:
                program = Program(self._run_update, self.run.device, "the training step")
                program.prepare()
                return program
            except torch.OutOfMemoryError as error:
                said = str(error)
            self.passes.shrink(said)

    def advance(self, check: Callable[[], None] = lambda: None) -> None:
        """See `Feeder`."""
        check()
        if self.step == self._end:
            self._rows.send(self.step)
            self._slot.zero_()
            self._end += self.every
        if self.run.pictures.resident is None:
            self._take_batch()
        self._program()
        self.step += 1
        self._rows.prepare(self._end, self.step - self._begin)  # while the device is busy
        if self.step == self._end:
            self._read()

    @property
    def _begin(self) -> int:
        return self._end - self.every

    def _take_batch(self) -> None:
        run = self.run
        if self._prefetch is None:
            self._prefetch = Prefetch(
                run.pictures.images, run.indices, self.step, run.spec.training.batch_size, run.device
            )
        self._prefetch.take_into(self._batch)

    # The program

    def _run_update(self) -> None:
        """The update of the present row: no branch, no value that the host would have to know."""
        run, row = self.run, self._rows.row(self._slot)
        t, weights = run.timesteps.sample(row.u)
        pictures = self._batch if run.pictures.resident is None else run.pictures.resident[row.indices]
        mirrored = row.mirrored if run.spec.training.flip else None
        factor = torch.exp2(self._log2).to(torch.float32)
        gamma = None if run.gamma(0) is None else row.gamma

        def gradients(part: range) -> tuple[Tensor, list[Tensor]]:
            here = slice(part.start, part.stop)
            flipped = None if mirrored is None else mirrored[here]
            return run.gradients(
                pictures[here], flipped, t[here], weights[here], self._places[here], row.step, factor, gamma
            )

        losses, grads = self.passes.fitting(lambda cut: optimizer.of_parts(cut, gradients, halves=False))
        norm = torch.nn.utils.get_total_norm(grads)
        mean = (losses * weights).sum() / len(t)
        finite = torch.isfinite(mean) & torch.isfinite(norm)
        before = self._live.clone()
        self._scale(finite)
        self._update(grads, norm, factor, self._live & finite, row)
        run.timesteps.update(t, losses, self._live & torch.isfinite(losses).all())
        self._note(before, torch.cat([torch.stack([mean, norm.double()]), losses]))

    def _scale(self, finite: Tensor) -> None:
        """What a finite or other update does to float16's loss scale, and whether the run goes on."""
        scale = self.run.scale
        if scale is None:
            self._live.logical_and_(finite)
            return
        after = torch.where(finite, self._log2 + scale.growth, self._log2 - 1)
        self._log2.copy_(torch.where(self._live, after, self._log2))
        self._live.logical_and_(self._log2 >= 0)

    def _update(self, grads: list[Tensor], norm: Tensor, factor: Tensor, good: Tensor, row: _Row) -> None:
        """Optimiser and EMA where `good`; nothing changes elsewhere."""
        run = self.run
        if run.scale is not None:
            torch._foreach_div_(grads, factor)  # type: ignore[attr-defined]
            norm = norm / factor
        run.descend(grads, norm, row.rate.to(torch.float32), skip=(~good).to(torch.float32))
        away = torch._foreach_sub(run.weights, run.ema)  # type: ignore[attr-defined]
        torch._foreach_mul_(away, torch.where(good, row.share, 0.0).to(torch.float32))  # type: ignore[attr-defined]
        torch._foreach_add_(run.ema, away)  # type: ignore[attr-defined]

    def _note(self, before: Tensor, seen: Tensor) -> None:
        """Keep what the host will look at; a row that was written stays."""
        here = torch.arange(self.every, device=self.run.device) == self._slot
        self._seen.copy_(torch.where((here & before)[:, None], seen, self._seen))
        self._slot.add_(before.to(torch.int64))

    # What the host makes of it

    def _read(self) -> None:
        """Wait for the updates that were launched and note them; begin anew before one that is not finite."""
        run = self.run
        seen = self._seen[run.step - self._begin : self.step - self._begin].cpu().numpy()
        try:
            for row in seen:
                run.note(row[2:], float(row[0]), float(row[1]))
        except Diverged:
            self._live.fill_(True)
            self._log2.fill_(run.scale.log2 if run.scale else 0.0)
            self.step = self._end = run.step
            self._rows.forget()
            self.close()
            raise

    def settle(self) -> Run:
        """See `Feeder`."""
        self._read()
        return self.run

    def close(self) -> None:
        """End the thread that gathers batches."""
        if self._prefetch is not None:
            self._prefetch.close()
            self._prefetch = None


class _Row:
    """What one update is told, on the device: views of a row of whole numbers and one of real ones."""

    def __init__(self, whole: Tensor, real: Tensor) -> None:
        """`whole`: step, B indices, B flips; `real`: learning rate, EMA's share of the weights, gamma, B uniforms."""
        self.step = whole[:1]
        self.indices, mirrored = whole[1:].chunk(2)
        self.mirrored = mirrored.to(torch.bool)
        self.rate, self.share, self.gamma, self.u = real[0], real[1], real[2], real[3:]


class _Rows:
    """What the updates of a piece are told, sent to the device at once from page-locked memory."""

    def __init__(self, run: Run, count: int) -> None:
        self._run, self._count = run, count
        batch, pinned = run.spec.training.batch_size, run.device.type == "cuda"

        def pair() -> tuple[Tensor, Tensor]:
            return (
                torch.zeros((count, 1 + 2 * batch), dtype=torch.int64, pin_memory=pinned),
                torch.zeros((count, 3 + batch), dtype=torch.float64, pin_memory=pinned),
            )

        self._next, self._spare = pair(), pair()  # one may still be on its way
        self._there = tuple(part.to(run.device) for part in pair())
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
        run, spec = self._run, self._run.spec.training
        whole[0], whole[1 : 1 + spec.batch_size] = step, run.indices(step)
        if (mirrored := run.mirrored(step)) is not None:
            whole[1 + spec.batch_size :] = mirrored
        real[0], real[1] = optimizer.learning_rate(spec, step), 1 - optimizer.ema_decay(spec, step)
        real[2], real[3:] = run.gamma(step) or 0.0, run.uniforms(step)

    def forget(self) -> None:
        """What was prepared is not wanted any more."""
        self._start = None

    def send(self, start: int) -> None:
        """Bring what the updates from `start` on need to the device."""
        self.prepare(start, self._count)
        for there, here in zip(self._there, self._next, strict=True):
            there.copy_(here, non_blocking=True)

    def row(self, slot: Tensor) -> _Row:
        """The row that the device stands at; `slot`: [1] int64."""
        whole, real = (part.index_select(0, slot)[0] for part in self._there)
        return _Row(whole, real)
