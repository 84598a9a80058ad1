"""A job's own word of how far it is: a bar on a terminal, else a line now and then on stderr, and its status file.

A thread speaks, so a long network call is no silence. It reads what the work has told (`ipdiff.work.progress`) and
touches nothing else.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TextIO

from ipdiff.errors import Preempted, UserError, brief
from ipdiff.pipeline.progress import status
from ipdiff.pipeline.progress.pace import Pace, duration
from ipdiff.pipeline.progress.status import Status
from ipdiff.work import progress

QUIET = "IPDIFF_QUIET"
"""Environment variable: 1 for neither bar nor lines; the status file is kept."""
BAR_S = 5.0
"""Seconds after which a terminal shows a bar."""
FIRST_S, THEN_S = 10.0, 30.0
"""Seconds to the first line where there is no terminal, and from line to line."""
TICK_S = 1.0
_WIDTH = 20


class Reporter:
    """Listens to the work of a job and shows it. Times are seconds of `time.monotonic`."""

    def __init__(
        self,
        name: str,
        stream: TextIO | None = None,
        *,
        processes: int = 1,
        quiet: bool = False,
        now: float | None = None,
    ) -> None:
        """Begin.

        Args:
            name: what is worked at, for the lines.
            stream: where they go; stderr if None.
            processes: processes that share the work.
            quiet: neither bar nor lines.
            now: the time; None: that of now.
        """
        self.name = name if processes == 1 else f"{name} ({processes} processes)"
        self._stream = sys.stderr if stream is None else stream
        self._terminal, self._quiet = self._stream.isatty(), quiet
        self._began = time.monotonic() if now is None else now
        self._line_at, self._write_at = self._began + FIRST_S, self._began
        self._lock = threading.RLock()  # a signal's handler may leave from within
        self._pace: Pace | None = None
        self._spoken = self._drawn = False
        self._status: Status | None = None

    def keep_status(self, told: Status, now: float | None = None) -> None:
        """Keep a status file from now on, until `status.remove`."""
        self._status = told
        self.tick(time.monotonic() if now is None else now)

    @property
    def status(self) -> Status | None:
        """What the status file says, or would say now; None where none is kept."""
        if self._status is None:
            return None
        pace, now = self._pace, time.time()
        if pace is None:
            return replace(self._status, time=now)
        counted = {"unit": pace.unit, "done": pace.done, "total": pace.total, "rate": pace.rate, "left": pace.left}
        return replace(self._status, time=now, numbers=dict(pace.numbers), **counted)

    # What the work says

    def begin(self, unit: str, total: int | None, done: int, now: float | None = None) -> None:
        """See `ipdiff.work.progress.Listener`."""
        now = time.monotonic() if now is None else now
        with self._lock:
            self._finish(now)
            self._pace = Pace(unit, total, done, now)

    def tell(self, done: int, numbers: Mapping[str, float], now: float | None = None) -> None:
        """See `ipdiff.work.progress.Listener`."""
        now = time.monotonic() if now is None else now
        with self._lock:
            if self._pace is not None:
                self._pace.tell(done, numbers, now)
                if done == self._pace.total:
                    self._finish(now)

    def _finish(self, now: float) -> None:
        """Say the totals of what was counted, if anything was said of it."""
        if self._pace is None:
            return
        if self._spoken:
            self._say(f"{self.name}: {self._pace.totals(now)}")
        if self._status is not None:  # what was counted stays true while the rest of the job goes on
            self._status = self.status
        self._pace, self._spoken = None, False

    # What is shown of it

    def tick(self, now: float) -> None:
        """Show what is due."""
        with self._lock:
            if self._quiet:
                pass
            elif self._terminal:
                if now - self._began >= BAR_S and (self._pace or self._status):
                    self._draw(now)
            elif now >= self._line_at and (self._pace or self._status):
                self._line_at = now + THEN_S
                self._say(f"{self.name}: {self._text(now)}")
            if self._status is not None and now >= self._write_at:
                self._write_at = now + status.EVERY_S
                with suppress(OSError):  # nobody will see it; the work goes on
                    status.write(self.status or self._status)

    def _text(self, now: float) -> str:
        if self._pace is None:
            return f"at work for {duration(now - self._began)}"
        self._spoken = True
        return str(self._pace)

    def _draw(self, now: float) -> None:
        text, pace = self._text(now), self._pace
        if pace is not None and pace.total:
            filled = min(_WIDTH, _WIDTH * pace.done // pace.total)
            text = f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {text}"
        columns = shutil.get_terminal_size().columns
        self._put(f"\r\x1b[K{f'{self.name}: {text}'[: max(1, columns - 1)]}")
        self._drawn = True

    def _say(self, text: str) -> None:
        self.erase()
        self._put(f"ipdiff: {time.strftime('%H:%M:%S')} {text}\n")

    def erase(self) -> None:
        """Take the bar off the terminal."""
        if self._drawn:
            self._put("\r\x1b[K")
        self._drawn = False

    def _put(self, text: str) -> None:
        with suppress(OSError, ValueError):  # nobody reads it any more; the work goes on
            self._stream.write(text)
            self._stream.flush()


@contextmanager
def reporting(name: str, *, processes: int = 1) -> Iterator[Reporter]:
    """Report what is worked at, for the block."""
    quiet = os.environ.get(QUIET, "0") not in ("", "0")
    reporter, over = Reporter(name, processes=processes, quiet=quiet), threading.Event()

    def watch() -> None:
        while not over.wait(TICK_S):
            reporter.tick(time.monotonic())

    thread = threading.Thread(target=watch, daemon=True, name="ipdiff-progress")
    thread.start()
    try:
        with progress.listening(reporter):
            yield reporter
    finally:
        over.set()
        thread.join()
        reporter.erase()


@contextmanager
def job(cell: str, processes: int) -> Iterator[Reporter]:
    """Report the making of a cell, and leave word of how it ended where it did not come to its end.

    The caller says by `keep_status(Status(cell, ...))` that the cell is its own to make.
    """
    told: Status | None = None
    try:
        with reporting(cell, processes=processes) as reporter:
            try:
                yield reporter
            finally:
                told = reporter.status
    except BaseException as error:  # outside of the block: nothing ticks any more that would write over it
        _leave_word(told, cell, error)
        raise
    if told is not None:
        with suppress(OSError):
            status.remove(cell)


def _leave_word(mine: Status | None, cell: str, error: BaseException) -> None:
    if mine is None:  # it came to nothing before it held the cell, which another job may be making
        other = status.read(cell)
        if other is not None and other.standing(time.time())[0] == "running":
            return
        mine = Status(cell)
    stopped = isinstance(error, Preempted | KeyboardInterrupt | SystemExit)
    kind = "" if type(error).__module__ == UserError.__module__ else f"{type(error).__name__}: "
    reason = brief(f"{kind}{error}".removesuffix(": "), 300)
    with suppress(OSError):
        status.write(replace(mine, state="stopped" if stopped else "failed", reason=reason, time=time.time()))
