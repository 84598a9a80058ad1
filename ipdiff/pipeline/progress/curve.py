"""The loss curve of a run while it trains: JSON lines, and what `work.sinks` adds. Never an artifact, decides no byte.

A run has one file for all its segments. It grows by a row at a time; a training that goes on from step k first drops
what stands there of later steps, and a last row that a kill has torn.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ipdiff.pipeline.progress import sinks
from ipdiff.pipeline.progress.sinks import Row, Sink

FILE = "train.jsonl"
EVERY = 50
"""A row stands for the updates up to a step that this divides, or up to the last one of a segment."""


class Curve:
    """Listens to a training (`ipdiff.work.progress`) and writes its curve.

    A row has: step, updates it stands for, their mean loss and mean gradient_norm (before it is clipped; null where one
    is not finite), learning_rate of the last, images_per_second, time (seconds since 1970).
    """

    def __init__(self, folder: Path, images: int, wanted: Sequence[str] = ()) -> None:
        """Nothing is opened before the work begins.

        Args:
            folder: of the run's logs.
            images: of an update.
            wanted: names of sinks.

        Raises:
            UserError: a sink's package is not installed.
        """
        self.folder, self._images = folder, images
        self._kinds = [sinks.kind(name) for name in wanted]
        self._sinks: list[Sink] = []
        self._open = False

    def begin(self, unit: str, total: int | None, done: int) -> None:
        """See `ipdiff.work.progress.Listener`."""
        self._total, self._seen = total, list[Mapping[str, float]]()
        self._since = time.time()
        self.close()
        try:
            kept = keep(self.folder / FILE, done)
            self._sinks = [kind(self.folder, kept, done) for kind in self._kinds]
            self._open = True
        except OSError as error:
            self._give_up(error)

    def tell(self, done: int, numbers: Mapping[str, float]) -> None:
        """See `ipdiff.work.progress.Listener`."""
        self._seen.append(numbers)
        if not self._open or not (done % EVERY == 0 or done == self._total):
            return
        row, self._seen, self._since = self._row(done), [], time.time()
        try:
            with (self.folder / FILE).open("a") as stream:
                stream.write(json.dumps(row, allow_nan=False) + "\n")
            for sink in self._sinks:
                sink.add(row)
        except OSError as error:
            self._give_up(error)

    def _row(self, step: int) -> Row:
        now, count = time.time(), len(self._seen)
        took = now - self._since
        return {
            "step": step,
            "updates": count,
            **{name: _mean([numbers[name] for numbers in self._seen]) for name in ("loss", "gradient_norm")},
            "learning_rate": _mean([self._seen[-1]["learning_rate"]]),
            "images_per_second": _mean([count * self._images / took]) if took > 0 else None,
            "time": round(now, 3),
        }

    def _give_up(self, error: OSError) -> None:
        self._open = False
        where = error.filename or self.folder
        print(
            f"ipdiff: {where}: {error.strerror or error}; the loss curve is not written on", file=sys.stderr, flush=True
        )

    def close(self) -> None:
        """Write what is still held back."""
        for sink in self._sinks:
            with suppress(OSError):
                sink.close()
        self._sinks = []


def keep(path: Path, step: int) -> list[Row]:
    """Cut a curve behind its last whole row of an update up to `step`; returns the rows that stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, end = list[Row](), 0
    with path.open("a+b") as stream:
        stream.seek(0)
        for line in stream:
            row = _parse(line)
            if row is None or row["step"] > step or (rows and row["step"] <= rows[-1]["step"]):
                break
            rows.append(row)
            end += len(line)
        stream.truncate(end)
    return rows


def read(path: Path) -> list[Row]:
    """The whole rows of a curve that may be growing; none where there is no file."""
    try:
        with path.open("rb") as stream:
            return [row for row in map(_parse, stream) if row is not None]
    except OSError:
        return []


def _parse(line: bytes) -> Row | None:
    try:
        row: Any = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _mean(values: Sequence[float]) -> float | None:
    mean = sum(values) / len(values)
    return float(f"{mean:.7g}") if math.isfinite(mean) else None
