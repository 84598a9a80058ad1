"""How work is done and saved, where that decides no artifact."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from ipdiff.parameters import FORBID, Range, Record


@dataclass(frozen=True)
class Work(Record):
    """How work is done, and saved meanwhile. No key of it is a parameter of an artifact."""

    __pydantic_config__: ClassVar = FORBID
    save_every: Annotated[
        int,
        "optimiser updates after which a train state is saved in work/, unless that took over 2 % of the time",
        Range(1),
    ] = 5000
    save_seconds: Annotated[float, "seconds after which one is saved, if that is sooner", Range(0)] = 300.0
    states_kept: Annotated[
        int,
        "newest train states of a run that are kept in work/, and newest versions of it (parameters, code)",
        Range(1),
    ] = 2
    micro_batch: Annotated[
        int | None,
        "the most images a forward and backward pass where training.reduction is fast; empty: as many as a GPU's "
        "memory holds, and on a CPU all of a process",
        Range(1),
    ] = None
    sinks: Annotated[
        list[Literal["tensorboard", "dvclive"]],
        "programs that draw loss curves, fed with them beside logs/runs/.../train.jsonl (packages of the extra watch)",
    ] = field(default_factory=list)
