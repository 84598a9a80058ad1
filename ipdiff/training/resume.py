"""Stage resume: publish a run's full train state, so that somebody else can go on with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ipdiff.errors import UserError
from ipdiff.work.train_states import States

if TYPE_CHECKING:
    from ipdiff.training.segment import Setup


def run(states: States, out: Path, step: int, digest: str, setup: Callable[[], Setup]) -> None:
    """Write state.safetensors, the train state whose digest the checkpoint's recipe names.

    It is copied from the work store, or trained again where it is not there.

    Args:
        states: the run's saved train states.
        out: staging directory.
        step: the state's step.
        digest: its md5.
        setup: tells what the run is trained with, where it is trained again.

    Raises:
        UserError: training again does not arrive at the recorded digest.
        Preempted: SIGTERM or SIGUSR1 came while training; the state is saved.
    """
    target = out / "state.safetensors"
    if states.copy(step, digest, target):
        return
    from ipdiff.training import segment  # only here: torch is slow to import and seldom needed

    states.save(step, segment.train_to(setup(), step).settle().state())
    if not states.copy(step, digest, target):
        raise UserError(
            f"training again to step {step} did not arrive at the recorded state {digest} "
            "(other machine type or versions?); pull the `resume` artifact instead"
        )
