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
        """Write a state (flushed, then renamed into place), drop all but the newest few, return its digest."""
        data = safe.save(dict(tensors))
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        self.directory.mkdir(parents=True, exist_ok=True)
        final = self.directory / f"{step:09d}-{digest}.safetensors"
        if not final.exists():
            part = self.directory / f".{os.getpid()}.part"
            with part.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(final)
        for old in self._files()[: -self.keep]:
            old.unlink(missing_ok=True)
        return digest

    def newest(self, last_step: int) -> tuple[int, dict[str, np.ndarray]] | None:
        """The newest state at or before `last_step` whose bytes match its name: (step, tensors), or None."""
        for path in reversed(self._files()):
            step, digest = path.stem.split("-")
            if int(step) > last_step:
                continue
            data = path.read_bytes()
            if hashlib.md5(data, usedforsecurity=False).hexdigest() == digest:
                return int(step), safe.load(data)
        return None

    def find(self, step: int, digest: str) -> Path | None:
        """The file of the state of `step` with `digest`, if it is there."""
        path = self.directory / f"{step:09d}-{digest}.safetensors"
        return path if path.exists() else None

    def _files(self) -> list[Path]:
        return sorted(self.directory.glob("[0-9]*.safetensors"))
