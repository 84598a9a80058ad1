"""One run: from the nearest saved state to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ipdiff.spec import RunSpec
from ipdiff.work.spec import Work
from ipdiff.work.train_states import States


@dataclass(frozen=True)
class Setup:
    """A run, and what it is trained with.

    Attributes:
        spec: the run.
        images: images.npy, uint8 NHWC.
        states: the run's saved train states; process 0 alone reads and writes them.
        work: how often a state is saved.
        start: safetensors of an equal network, the weights to begin with; None: they are drawn by the run's seed.
        rank: this process among those that train together.
        count: their number.
        progress: called with the step reached.
    """

    spec: RunSpec
    images: Path
    states: States
    work: Work
    start: Path | None = None
    rank: int = 0
    count: int = 1
    progress: Callable[[int], None] = lambda step: None
