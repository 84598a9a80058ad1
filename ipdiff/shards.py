"""Parts of a long computation, saved in work/ as they are finished: a restart computes what is missing.

Any number of processes may work at one set. A part is computed under a lock of its own, which the kernel gives
back when its holder ends, so none is computed twice but those whose process was ended in the middle.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import numpy as safe

from ipdiff.files import md5, write_whole
from ipdiff.locks import locked, locked_if_free

IN_USE = ".in-use"
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Shards:
    """The finished parts of one set, in a directory whose name is the digest of all that decides their bytes.

    A part is a file `{start}-{stop}-{md5}.safetensors`; torn or damaged ones do not match their name, and
    count as missing.
    """

    directory: Path

    def complete(
        self,
        units: Sequence[range],
        compute: Callable[[range], Arrays],
        *,
        rank: int = 0,
        count: int = 1,
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Compute every unit that is missing.

        Process 0 returns when all are there, whoever computed them; the others when nothing is left to begin.

        Args:
            units: the fixed cut of the set.
            compute: the arrays of a unit, by name.
            rank: this process: it begins with units rank, rank + count, ... and then helps with the others.
            count: processes that work at the set.
            progress: called with the number of items known to be finished.
        """
        with locked(self.directory / IN_USE, shared=True):
            self._complete(units, compute, rank, count, progress)

    def _complete(
        self,
        units: Sequence[range],
        compute: Callable[[range], Arrays],
        rank: int,
        count: int,
        progress: Callable[[int], None],
    ) -> None:
        order = [*units[rank::count], *(unit for n, unit in enumerate(units) if n % count != rank)]
        done, left = 0, list[range]()
        for unit in order:
            if self.has(unit) or self._try(unit, compute):
                done += len(unit)
                progress(done)
            else:
                left.append(unit)
        for unit in left if rank == 0 else []:
            with locked(self._lock(unit)):
                if not self.has(unit):
                    self._put(unit, compute(unit))
            done += len(unit)
            progress(done)

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


def _name(unit: range) -> str:
    return f"{unit.start:09d}-{unit.stop:09d}"
