"""Stage resume: publish a run's full train state, so that somebody else can go on with it."""

from __future__ import annotations

from pathlib import Path

from ipdiff.errors import UserError
from ipdiff.spec import RunSpec
from ipdiff.work.spec import Work
from ipdiff.work.train_states import States


def run(
    spec: RunSpec,
    images: Path,
    out: Path,
    *,
    step: int,
    digest: str,
    states: States,
    work: Work,
) -> None:
    """Write state.safetensors, the train state whose digest the checkpoint's recipe names.

    It is copied from the work store, or trained again where it is not there.

    Args:
        spec: the run.
        images: images.npy, uint8 NHWC.
        out: staging directory.
        step: the state's step.
        digest: its md5.
        states: the run's saved train states.
        work: how often a state is saved, where it is trained again.

    Raises:
        UserError: training again does not arrive at the recorded digest.
        Preempted: SIGTERM or SIGUSR1 came while training; the state is saved.
    """
    target = out / "state.safetensors"
    if states.copy(step, digest, target):
        return
    from ipdiff.training import segment  # only here: torch is slow to import and seldom needed

    trained = segment.train_to(spec, images, step=step, previous=None, states=states, work=work)
    states.save(step, trained.state())
    if not states.copy(step, digest, target):
        raise UserError(
            f"training again to step {step} did not arrive at the recorded state {digest} "
            "(other machine type or versions?); pull the `resume` artifact instead"
        )
