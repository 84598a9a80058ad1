"""Programs that draw curves, fed while a run trains where `work.sinks` names them; none is a dependency."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ipdiff.errors import UserError

Row = dict[str, Any]
"""A row of a loss curve: see `ipdiff.pipeline.progress.curve.Curve`."""
SHOWN = ("loss", "gradient_norm", "learning_rate", "images_per_second")


class Sink(Protocol):
    """Where rows go besides train.jsonl. Raises nothing but OSError."""

    def add(self, row: Row) -> None:
        """Take a row."""
        ...

    def close(self) -> None:
        """Write what is held back."""
        ...


Kind = Callable[[Path, Sequence[Row], int], Sink]
"""Opens a sink: (folder of the run's logs, rows that were there before, step to go on from) -> sink."""


def kind(name: str) -> Kind:
    """A sink by its name in params.yaml. Raises UserError where its package is not installed."""
    try:
        return {"tensorboard": _tensorboard, "dvclive": _dvclive}[name]()
    except ImportError as error:
        raise UserError(
            f"work.sinks names {name}, and {error.name or name} is not installed: pip install 'ipdiff[watch]' "
            f"(or {name} alone), or leave it out"
        ) from None


def _tensorboard() -> Kind:
    from torch.utils.tensorboard.writer import SummaryWriter

    class TensorBoard:
        """Event files in the folder. TensorBoard hides what older ones hold from the step on."""

        def __init__(self, folder: Path, kept: Sequence[Row], step: int) -> None:
            fresh = not any(folder.glob("events.out.tfevents.*"))
            self._writer = SummaryWriter(str(folder), purge_step=None if fresh else step + 1, flush_secs=30)
            for row in kept if fresh else ():
                self.add(row)

        def add(self, row: Row) -> None:
            for name in SHOWN:
                if row.get(name) is not None:
                    self._writer.add_scalar(name, row[name], row["step"], walltime=row.get("time"))

        def close(self) -> None:
            self._writer.close()

    return TensorBoard


def measured(folder: Path, step: int, sampler: str, metrics: Mapping[str, float]) -> None:
    """Show a checkpoint's metrics in TensorBoard: a curve over steps for each metric and sampler.

    Raises:
        UserError: TensorBoard is not installed.
    """
    kind("tensorboard")
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for name, value in metrics.items():
            writer.add_scalar(f"{name}/{sampler}", value, step)


def _dvclive() -> Kind:
    from dvclive import Live  # pyright: ignore[reportMissingImports]

    class DVCLive:
        """A folder `dvclive` of tsv files, written anew from the rows that stay whenever a training goes on."""

        def __init__(self, folder: Path, kept: Sequence[Row], step: int) -> None:
            place = folder / "dvclive"
            shutil.rmtree(place, ignore_errors=True)
            self._live = Live(dir=str(place), save_dvc_exp=False, dvcyaml=None, report=None)
            for row in kept:
                self.add(row)

        def add(self, row: Row) -> None:
            self._live.step = row["step"]
            for name in SHOWN:
                if row.get(name) is not None:
                    self._live.log_metric(name, row[name])
            self._live.make_summary()

        def close(self) -> None:
            self._live.end()

    return DVCLive
