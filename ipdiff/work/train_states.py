"""Train states in work/: a cache of everything a run needs to go on, never an artifact.

A state is one safetensors file `{step}-{md5}.safetensors` in a directory of the run, whose name is the digest
of everything that decides the run's bytes. Torn or damaged files do not match their name and are passed over.
"""

from __future__ import annotations

import shutil
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import numpy as safe

from ipdiff.work.files import md5, md5_of, write_whole
from ipdiff.work.locks import locked, locked_if_free

LOCK, IN_USE = ".lock", ".in-use"


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
        digest = md5(data)
        final = self._file(step, digest)
        self._write(final, data)  # also where a file of this name is there: it may be damaged
        others = [path for path in self._files() if path != final]
        for old in others[: max(0, len(others) + 1 - self.keep)]:
            old.unlink(missing_ok=True)
        return digest

    def _write(self, final: Path, data: bytes) -> None:
        with locked(self.directory / LOCK):
            for orphan in self.directory.glob(".*.part"):  # whoever wrote it ended without finishing
                orphan.unlink()
            write_whole(final, data)

    def newest(self, last_step: int) -> tuple[int, bytes] | None:
        """The newest state at or before `last_step` whose bytes match its name: (step, bytes), or None."""
        for path in reversed(self._files()):
            step, digest = path.stem.split("-")
            if int(step) > last_step:
                continue
            data = _read(path)
            if data is not None and md5(data) == digest:
                return int(step), data
        return None

    def find(self, step: int, digest: str) -> Path | None:
        """The file of the state of `step` with `digest`, if it is there and undamaged."""
        path = self._file(step, digest)
        try:
            return path if md5_of(path) == digest else None
        except FileNotFoundError:
            return None

    def copy(self, step: int, digest: str, to: Path) -> bool:
        """Copy the state of `step` with `digest` to the file `to`; False if it is not there, or damaged."""
        try:
            shutil.copyfile(self._file(step, digest), to)
        except FileNotFoundError:
            return False
        return md5_of(to) == digest

    def take(self, published: Path, step: int, digest: str) -> None:
        """Take over a published state of this run, if it is there, undamaged and the one that is asked for."""
        data = None if self.find(step, digest) else _read(published)
        if data is not None and md5(data) == digest:
            self._write(self._file(step, digest), data)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep `prune_others` of other processes away for the block."""
        with locked(self.directory / IN_USE, shared=True):
            yield

    def prune_others(self, wanted: Container[str]) -> None:
        """Drop the directories beside this one that nobody will go on from: other parameters or other code.

        This one, the newest others (`keep` in all), every one with a state in `wanted` and every one in use stay.

        Args:
            wanted: digests of states that present checkpoints name.
        """
        others = [path for path in self.directory.parent.glob("*") if path.is_dir() and path != self.directory]
        others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in others[max(0, self.keep - 1) :]:
            if any(file.stem.split("-")[-1] in wanted for file in States(path)._files()):
                continue
            with locked_if_free(path / IN_USE) as free:
                if free:
                    shutil.rmtree(path, ignore_errors=True)

    def _file(self, step: int, digest: str) -> Path:
        return self.directory / f"{step:09d}-{digest}.safetensors"

    def _files(self) -> list[Path]:
        return sorted(self.directory.glob("[0-9]*.safetensors"))


def tensors_of(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a state's file."""
    return safe.load(data)


def state_digest(tensors: Mapping[str, np.ndarray]) -> str:
    """md5 of a state's file, without writing it."""
    return md5(safe.save(dict(tensors)))


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # dropped by another process since it was listed
        return None
