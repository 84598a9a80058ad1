"""Stage resume: publish a run's full train state, so that somebody else can go on with it."""

from __future__ import annotations

import shutil
from pathlib import Path

from ipdiff.errors import UserError
from ipdiff.spec import RunSpec
from ipdiff.states import States


def run(spec: RunSpec, images: Path, out: Path, *, step: int, digest: str, states: States, save_every: int) -> None:
    """Write state.safetensors, the train state whose digest the checkpoint's recipe names.

    It is copied from the work store, or trained again where it is not there.

    Raises:
        UserError: training again does not arrive at the recorded digest.
    """
    path = states.find(step, digest)
    if path is None:
        path = _train_again(spec, images, step, digest, states, save_every)
    shutil.copyfile(path, out / "state.safetensors")


def _train_again(spec: RunSpec, images: Path, step: int, digest: str, states: States, save_every: int) -> Path:
    from ipdiff import train  # only here: torch is slow to import and seldom needed
    from ipdiff.data.images import load_images

    trainer = train.Trainer(spec, load_images(images))
    train.resume(trainer, step, None, states, save_every)
    states.save(step, trainer.state())
    path = states.find(step, digest)
    if path is None:
        raise UserError(
            f"training again to step {step} did not arrive at the recorded state {digest} "
            "(other machine type or versions?); pull the `resume` artifact instead"
        )
    return path
