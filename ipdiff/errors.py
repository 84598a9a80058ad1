"""Errors that the command line turns into one line and an exit code."""

from __future__ import annotations

from pathlib import Path


class UserError(Exception):
    """Bad input: printed as one line, exit code 2."""


class ConfigError(UserError):
    """A parameter file that cannot be used: printed as one line, exit code 2."""


class Unavailable(UserError):
    """What may be there later or elsewhere, such as a server or a device: exit code 2, but worth another try."""


class IntegrityError(Exception):
    """A file whose bytes are not the recorded ones: printed as one line, exit code 3."""

    def __init__(self, path: Path | str, expected: str, got: str) -> None:
        super().__init__(f"{path}: expected {expected}, found {got}; the file was changed or damaged")
        self.path, self.expected, self.got = path, expected, got


class Preempted(Exception):
    """Stopped by a signal with its progress saved: run the same command again (exit code 75)."""


def brief(what: object, most: int = 100) -> str:
    """What somebody else wrote (a library's error, a name in a file) as one line of at most `most` characters."""
    text = " ".join(str(what).split()) or type(what).__name__
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= most else f"{text[: most - 3]}..."
