"""Train states in work/: a cache of everything a run needs to go on, never an artifact.

A state is one safetensors file `{step}-{md5}.safetensors` in a directory of the run, whose name is the digest
of everything that decides the run's bytes. Torn or damaged files do not match their name and are passed over.
A state may be larger than what is left of the memory (8.7 GB for FFHQ), so it is written, hashed and read a tensor
at a time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipdiff.work.files import flush, md5_of
from ipdiff.work.locks import locked, locked_if_free

LOCK, IN_USE = ".lock", ".in-use"
PART = ".state.part"
KINDS = {
    "uint64": "U64", "int64": "I64", "float64": "F64", "float32": "F32", "uint32": "U32", "int32": "I32",
    "float16": "F16", "uint16": "U16", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""The format's words for types, in the order in which their tensors stand in a file."""


BLOCK = 1 << 20
"""Bytes of a file that are read at a time."""


class Tensors(Mapping[str, np.ndarray]):
    """Arrays by name, each copied from where it lies when it is asked for, and not kept.

    `parts` holds NumPy arrays and torch tensors of any device; contiguous ones of the CPU are handed on as they are.
    """

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.parts = parts

    def __getitem__(self, name: str) -> np.ndarray:
        part = self.parts[name]
        return part if isinstance(part, np.ndarray) else part.detach().cpu().contiguous().numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


@dataclass(frozen=True)
class States:
    """The train states of one run (all seeds, models and code versions have directories of their own)."""

    directory: Path
    keep: int = 2

    def save(self, step: int, tensors: Mapping[str, np.ndarray]) -> str:
        """Write a state (flushed, then renamed into place), return its digest.

        Older files are dropped; this one and the newest others, `keep` in all, stay.
        """
        digest = self._write(step, chunks(tensors))
        final = self._file(step, digest)
        others = [path for path in self._files() if path != final]
        for old in others[: max(0, len(others) + 1 - self.keep)]:
            old.unlink(missing_ok=True)
        return digest

    def _write(self, step: int, parts: Iterable[bytes | memoryview]) -> str:
        """Write a state, also where a file of its name is there, for it may be damaged; returns its digest."""
        with locked(self.directory / LOCK):  # so a part that lies here is of somebody who ended without finishing
            for orphan in self.directory.glob(".*.part"):
                orphan.unlink()
            part, digest = self.directory / PART, hashlib.md5(usedforsecurity=False)
            try:
                with part.open("wb") as stream:
                    for piece in parts:
                        digest.update(piece)
                        stream.write(piece)
                    stream.flush()
                    os.fsync(stream.fileno())
                part.replace(self._file(step, digest.hexdigest()))
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            flush(self.directory)
        return digest.hexdigest()

    def newest(self, last_step: int) -> tuple[int, Path] | None:
        """The newest state at or before `last_step` whose bytes match its name: (step, file), or None."""
        for path in reversed(self._files()):
            step, digest = path.stem.split("-")
            if int(step) <= last_step and self.find(int(step), digest) is not None:
                return int(step), path
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
        if self.find(step, digest) is None and published.exists() and md5_of(published) == digest:
            with published.open("rb") as stream:
                self._write(step, iter(lambda: stream.read(BLOCK), b""))

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


def opened(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file, read where they are looked at; what is written into them stays in this process."""
    return np.memmap(path, np.uint8, "c")


def tensors_of(data: NDArray[np.uint8]) -> dict[str, np.ndarray]:
    """The arrays of a state's bytes, as views. Its digest has been looked at: it is the file that was written."""
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    names, found = {word: name for name, word in KINDS.items()}, dict[str, np.ndarray]()
    for name, part in json.loads(data[8:start].tobytes()).items():
        first, last = part["data_offsets"]
        array = np.asarray(data[start + first : start + last])
        found[name] = array.view(names[part["dtype"]]).reshape(part["shape"])
    return found


def chunks(tensors: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, the same as the library's, with one tensor in memory at a time."""
    parts = tensors.parts if isinstance(tensors, Tensors) else tensors
    kinds = {name: str(part.dtype).removeprefix("torch.") for name, part in parts.items()}
    order, names = list(KINDS), sorted(parts)
    names.sort(key=lambda name: order.index(kinds[name]))
    header, end = dict[str, Any](), 0
    for name in names:
        shape = list(parts[name].shape)
        start, end = end, end + parts[name].dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": KINDS[kinds[name]], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data


def state_digest(tensors: Mapping[str, np.ndarray]) -> str:
    """md5 of a state's file, without writing it."""
    digest = hashlib.md5(usedforsecurity=False)
    for piece in chunks(tensors):
        digest.update(piece)
    return digest.hexdigest()
