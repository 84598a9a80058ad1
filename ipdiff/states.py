"""Train states in work/: a cache of everything a run needs to go on, never an artifact.

A state is one safetensors file `{step}-{md5}.safetensors` in a directory of the run, whose name is the digest
of everything that decides the run's bytes. Torn or damaged files do not match their name and are passed over.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import numpy as safe


@dataclass(frozen=True)
class States:
    """The train states of one run (all seeds, models and code versions have directories of their own)."""

    directory: Path
    keep: int = 2

    def save(self, step: int, tensors: Mapping[str, np.ndarray]) -> str:
        """Write a state (flushed, then renamed into place), return its digest.

        Older files are dropped; this one and the newest others, `keep` in all, stay.
        """
        data = safe.save(dict(tensors))
        digest = _md5(data)
        final = self._file(step, digest)
        self._write(final, data)  # also where a file of this name is there: it may be damaged
        others = [path for path in self._files() if path != final]
        for old in others[: max(0, len(others) + 1 - self.keep)]:
            old.unlink(missing_ok=True)
        return digest

    def _write(self, final: Path, data: bytes) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        part = self.directory / f".{os.getpid()}.part"
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(final)

    def newest(self, last_step: int) -> tuple[int, dict[str, np.ndarray]] | None:
        """The newest state at or before `last_step` whose bytes match its name: (step, tensors), or None."""
        for path in reversed(self._files()):
            step, digest = path.stem.split("-")
            if int(step) > last_step:
                continue
            data = path.read_bytes()
            if _md5(data) == digest:
                return int(step), safe.load(data)
        return None

    def find(self, step: int, digest: str) -> Path | None:
        """The file of the state of `step` with `digest`, if it is there and undamaged."""
        path = self._file(step, digest)
        return path if path.exists() and _md5(path.read_bytes()) == digest else None

    def take(self, published: Path, step: int, digest: str) -> None:
        """Take over a published state of this run, if it is there, undamaged and the one that is asked for."""
        if published.exists() and self.find(step, digest) is None:
            data = published.read_bytes()
            if _md5(data) == digest:
                self._write(self._file(step, digest), data)

    def _file(self, step: int, digest: str) -> Path:
        return self.directory / f"{step:09d}-{digest}.safetensors"

    def _files(self) -> list[Path]:
        return sorted(self.directory.glob("[0-9]*.safetensors"))


def state_digest(tensors: Mapping[str, np.ndarray]) -> str:
    """md5 of a state's file, without writing it."""
    return _md5(safe.save(dict(tensors)))


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
