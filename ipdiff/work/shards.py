"""Parts of a long computation, saved in work/ as they are finished: a restart computes what is missing.

Any number of processes may work at one set. A part is computed under a lock of its own, which the kernel gives
back when its holder ends, so none is computed twice but those whose process was ended in the middle.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import numpy as safe

from ipdiff.errors import UserError
from ipdiff.work import progress
from ipdiff.work.files import md5, write_whole
from ipdiff.work.locks import locked, locked_if_free

IN_USE = ".in-use"
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Shards:
    """The finished parts of one set, in a directory whose name is the digest of all that decides their bytes.

    A part is a file `{start}-{stop}-{md5}.safetensors`; torn or damaged ones do not match their name, and
    count as missing.
    """

    directory: Path
    rank: int = 0
    """This process: it begins with units rank, rank + count, ... and then helps with the others."""
    count: int = 1
    """Processes that work at the set."""

    @property
    def first(self) -> bool:
        """Whether this process puts the set together; the others only help."""
        return self.rank == 0

    def complete(self, units: Sequence[range], compute: Callable[[range], Arrays]) -> None:
        """Compute every unit that is missing.

        Process 0 returns when all are there, whoever computed them; the others when nothing is left to begin.

        Args:
            units: the fixed cut of the set.
            compute: the arrays of a unit, by name.
        """
        with self.in_use():
            progress.begin("images", sum(map(len, units)), self._finished(units))
            self._complete(units, compute)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Nobody drops the parts while the block runs."""
        with locked(self.directory / IN_USE, shared=True):
            yield

    def _complete(self, units: Sequence[range], compute: Callable[[range], Arrays]) -> None:
        mine = range(self.rank, len(units), self.count)
        order = [*(units[n] for n in mine), *(unit for n, unit in enumerate(units) if n not in mine)]
        left = list[range]()
        for unit in order:
            if self.has(unit) or self._try(unit, compute):
                progress.tell(self._finished(units))
            else:
                left.append(unit)
        for unit in left if self.first else []:
            with locked(self._lock(unit)):
                if not self.has(unit):
                    self._put(unit, compute(unit))
            progress.tell(self._finished(units))

    def _finished(self, units: Sequence[range]) -> int:
        """Items whose parts are there by name, whoever computed them."""
        there = {path.name.rpartition("-")[0] for path in self.directory.glob("[0-9]*.safetensors")}
        return sum(len(unit) for unit in units if _name(unit) in there)

    def _try(self, unit: range, compute: Callable[[range], Arrays]) -> bool:
        with locked_if_free(self._lock(unit)) as free:
            if free and not self.has(unit):
                self._put(unit, compute(unit))
            return free

    def parts(self, units: Sequence[range]) -> Iterator[dict[str, np.ndarray]]:
        """The units' arrays in order, one in memory at a time. KeyError if one is missing."""
        for unit in units:
            data = self._read(unit)
            if data is None:
                raise KeyError(f"{self.directory}: items {unit.start}..{unit.stop - 1} are missing")
            yield safe.load(data)

    def has(self, unit: range) -> bool:
        """Whether a unit is there, undamaged."""
        return self._read(unit) is not None

    def drop(self) -> None:
        """Remove all, once no process works here any more: the set is published."""
        if not self.directory.exists():
            return
        with locked(self.directory / IN_USE):
            shutil.rmtree(self.directory, ignore_errors=True)

    def drop_others(self) -> None:
        """Remove the directories beside this one: parts of the same set with other parameters or other code."""
        for path in self.directory.parent.glob("*"):
            if path != self.directory:
                shutil.rmtree(path, ignore_errors=True)

    def _put(self, unit: range, arrays: Arrays) -> None:
        data = safe.save(dict(arrays))
        write_whole(self.directory / f"{_name(unit)}-{md5(data)}.safetensors", data)

    def _read(self, unit: range) -> bytes | None:
        for path in sorted(self.directory.glob(f"{_name(unit)}-*.safetensors")):
            data = path.read_bytes()
            if path.stem.endswith(f"-{md5(data)}"):
                return data
        return None

    def _lock(self, unit: range) -> Path:
        return self.directory / f"{_name(unit)}.lock"


def cut(count: int, size: int) -> list[range]:
    """The fixed cut of a set of `count` items into units of `size`; the last one is the rest."""
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def unit_of(index: int, count: int, size: int) -> range:
    """The unit that holds an item; UserError where the set has no such item."""
    if not 0 <= index < count:
        raise UserError(f"index is {index}; the set has images 0..{count - 1}")
    return cut(count, size)[index // size]


def _name(unit: range) -> str:
    return f"{unit.start:09d}-{unit.stop:09d}"
