"""Stage resume: publish a run's full train state, so that somebody else can go on with it."""

from __future__ import annotations

from pathlib import Path

from ipdiff.errors import UserError
from ipdiff.training import Setup


def run(setup: Setup, out: Path, step: int, digest: str) -> None:
    """Write state.safetensors, the train state whose digest the checkpoint's recipe names.

    It is copied from the work store, or trained again where it is not there.

    Args:
        setup: the run, and what it is trained with.
        out: staging directory.
        step: the state's step.
        digest: its md5.

    Raises:
        UserError: training again does not arrive at the recorded digest.
        Preempted: SIGTERM or SIGUSR1 came while training; the state is saved.
    """
    target = out / "state.safetensors"
    if setup.states.copy(step, digest, target):
        return
    from ipdiff.training import segment  # only here: torch is slow to import and seldom needed

    setup.states.save(step, segment.train_to(setup, step).state())
    if not setup.states.copy(step, digest, target):
        raise UserError(
            f"training again to step {step} did not arrive at the recorded state {digest} "
            "(other machine type or versions?); pull the `resume` artifact instead"
        )
