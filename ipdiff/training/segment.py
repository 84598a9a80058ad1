"""Stage train: one segment of a run, from the nearest saved state to the step asked for."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from ipdiff.data.images import load_images
from ipdiff.errors import Preempted, UserError
from ipdiff.spec import RunSpec
from ipdiff.training.device_feeder import DeviceFeeder, feeds
from ipdiff.training.distributed import ALONE, Processes, joined, passes_of
from ipdiff.training.host_feeder import HostFeeder, mean_of
from ipdiff.training.run import Diverged, Feeder, Run
from ipdiff.work import progress, signals
from ipdiff.work.spec import Work
from ipdiff.work.train_states import States, opened, state_digest, tensors_of

PAUSE = 50
"""Times as long as saving a state took, the run trains before it saves the next: saving costs under 2 % of the time."""
LOSS_ROWS = 200
"""Rows of a segment's loss curve: losses are averaged over equal runs of updates."""


@dataclass(frozen=True)
class Setup:
    """A run, and what it is trained with.

    Attributes:
        spec: the run.
        images: images.npy, uint8 NHWC.
        states: the run's saved train states; process 0 alone reads and writes them.
        work: how batches are cut, and how often a state is saved.
        start: safetensors of an equal network, the weights to begin with; None: they are drawn by the run's seed.
        rank: this process among those that train together.
        count: their number.
        names: of the data set and the model, for who gets the checkpoint alone.
    """

    spec: RunSpec
    images: Path
    states: States
    work: Work
    start: Path | None = None
    rank: int = 0
    count: int = 1
    names: Mapping[str, str] = field(default_factory=dict)


def run(setup: Setup, out: Path, step: int, previous: tuple[int, str] | None = None) -> dict[str, Any]:
    """Train to `step` and write the checkpoint: ema.safetensors, loss.csv.

    Args:
        setup: the run, and what it is trained with.
        out: staging directory; process 0 alone writes there.
        step: optimiser updates done at the end of the segment.
        previous: (step, state digest) recorded by the segment before; must be met on the way.

    Returns:
        What the recipe adds, the digest of the full train state among it; and, as `execution`, what the receipt does.

    Raises:
        UserError: training does not arrive at the recorded digest, or diverges, or the processes do not fit.
        Preempted: SIGTERM or SIGUSR1 came, and the state is saved; or another process has died.
    """
    feeder = train_to(setup, step, previous)
    trained = feeder.settle()
    made: dict[str, Any] = {"run": setup.spec.to_json()}
    fast = setup.spec.training.reduction == "fast"
    made["execution"] = {"processes": setup.count, "micro_batch": feeder.passes.largest} if fast else {}
    if setup.rank == 0:
        made["state"] = setup.states.save(step, trained.state())
        save_file(trained.ema_weights(), out / "ema.safetensors", setup.spec.metadata(**setup.names, step=step))
        write_losses(out / "loss.csv", trained.losses, previous[0] if previous else 0)
    return made


def feeder_for(run: Run, processes: Processes = ALONE, micro_batch: int | None = None) -> Feeder:
    """What takes a run on from the state it has; `micro_batch` is `Work`'s.

    Raises:
        UserError: these processes cannot share its updates, or memory does not hold them.
    """
    passes = passes_of(run, processes, micro_batch)
    if micro_batch is None or run.device.type == "cpu":
        passes.foresee()
    return DeviceFeeder(run, passes) if feeds(run.spec, processes) else HostFeeder(run, processes, passes)


def train_to(setup: Setup, step: int, previous: tuple[int, str] | None = None) -> Feeder:
    """Bring a run to `step`, from the newest state at hand, through the digest recorded at `previous`; it is settled.

    A warning is seen between two updates, and by a process that trains alone between two passes: processes that
    train together would have to agree there, too. Arguments and errors are those of `run`.
    """
    spec, states, work = setup.spec, setup.states, setup.work
    first, alone = setup.rank == 0, setup.count == 1
    with signals.deferred() as stop, joined(setup.rank, setup.count, spec.compute.device) as processes:
        found = states.newest(step) if first else None
        data = processes.share(None if found is None else opened(found[1]))
        start = None if data is not None or setup.start is None else load_file(setup.start)
        trained = Run(spec, load_images(setup.images), start)
        if data is not None:
            trained.load(tensors_of(data))
            del data
        progress.begin("updates", step, trained.step)
        saved, took = time.monotonic(), 0.0
        with closing(feeder_for(trained, processes, work.micro_batch)) as feeder, _explained(trained, previous, states):
            while feeder.step < step:
                if first and previous and feeder.step == previous[0]:
                    _require(state_digest(feeder.settle().state()), previous)
                try:
                    feeder.advance(stop.check if alone else lambda: None)
                except Preempted:
                    if not alone:
                        raise  # another process has died
                stopping = processes.any(stop.came)
                since = time.monotonic() - saved
                due = (feeder.step % work.save_every == 0 or since >= work.save_seconds) and since >= PAUSE * took
                if first and (stopping or (due and feeder.step < step)):
                    reached, begun = feeder.settle().state(), time.monotonic()
                    states.save(feeder.step, reached)
                    saved = time.monotonic()
                    took = saved - begun
                if stopping:
                    raise Preempted(
                        f"stopped by a signal at step {feeder.step} of {step}; saved, run me again to go on"
                    )
            feeder.settle()
            return feeder


@contextmanager
def _explained(run: Run, previous: tuple[int, str] | None, states: States) -> Iterator[None]:
    """Say, where training diverges, what there is to go on from."""
    try:
        yield
    except Diverged as error:
        saved = states.newest(run.step)
        state = f"the last state saved is of step {saved[0]} ({states.directory})" if saved else "no state is saved"
        checkpoint = f"the last checkpoint is of step {previous[0]}" if previous else "there is no checkpoint yet"
        raise Diverged(f"{error}; {state}, {checkpoint}") from None


def _require(got: str, previous: tuple[int, str]) -> None:
    if got != previous[1]:
        raise UserError(
            f"training again to step {previous[0]} arrived at state {got}, the recorded one is "
            f"{previous[1]} (other machine type, versions or, with the fast reduction, another cut of the batches: see "
            "the checkpoint's receipt); get that state with the `resume` "
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
            rows.writerow([start + done, f"{mean_of(chunk):.7g}"])
