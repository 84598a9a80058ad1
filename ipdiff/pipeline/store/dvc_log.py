"""What DVC's loggers say, as lines to choose from, instead of messages and tracebacks on stderr."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class _Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message and the exception it is about, each as one line."""
        error = record.exc_info[1] if record.exc_info else None
        self.lines.append(line(record.getMessage()) + (f": {line(str(error) or repr(error))}" if error else ""))


@contextmanager
def listening() -> Iterator[list[str]]:
    """Collect the warnings and errors of DVC's loggers. DVC has to be imported before: importing it sets them up."""
    handler = _Said()
    loggers = [logging.getLogger(name) for name in ("dvc", "dvc_data", "dvc_objects")]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    try:
        yield handler.lines
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate


def line(text: str) -> str:
    """A text on one line."""
    return " ".join(text.split())
