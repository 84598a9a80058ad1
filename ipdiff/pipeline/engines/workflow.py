"""What the Snakemake rules read: the grid, seen through wildcards."""

from __future__ import annotations

import atexit
import subprocess
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from ipdiff.errors import UserError
from ipdiff.pipeline import grid
from ipdiff.pipeline.engines import imports, snakemake_records, sync
from ipdiff.pipeline.stages import STAGES
from ipdiff.pipeline.store import artifact
from ipdiff.work import launch, locks

_T = TypeVar("_T")


class Workflow:
    """The grid for Snakemake. Bad input ends Snakemake with one line and exit code 2.

    Only the studies that are asked for are read: what is wrong with another one stops nothing.
    """

    def __init__(self) -> None:
        """Find the studies."""
        self.grid = grid.load()
        self.studies: list[str] = _or_exit(lambda: self.grid.studies.names)

    @property
    def trained(self) -> str:
        """Pattern of the runs that are trained, from the data set on: nothing makes imported checkpoints."""
        imported = "|".join(map("/".join, self.grid.studies.imported()))
        return rf"(?!(?:{imported})/)[^/]+" if imported else "[^/]+"

    def targets(self, study: str) -> Callable[[Any], list[str]]:
        """Snakemake's input function of the files that stand for a study."""

        def files() -> list[str]:
            imports.require(self.grid, self.grid.imports(study))
            return self.grid.targets(study)

        return lambda wildcards: _or_exit(files)

    def inputs(self, verb: str) -> Callable[[Any], list[str]]:
        """Snakemake's input function of a verb; nothing makes an imported checkpoint that is not here."""

        def files(cell: grid.Cell) -> list[str]:
            imports.require(self.grid, filter(None, map(self.grid.maker, cell.inputs)))
            return list(cell.inputs)

        return self._asked(verb, files)

    def outputs(self, verb: str) -> dict[str, str]:
        """Named outputs of a verb, with wildcards: {images_npy: data/{dataset}/images.npy, recipe_json: ...}."""
        return {path.rpartition("/")[2].replace(".", "_"): path for path in STAGES[verb].outputs}

    def params(self, verb: str) -> Callable[[Any], str]:
        """Snakemake's params function of a verb: what decides a cell besides files and code, as JSON."""
        return self._asked(verb, lambda cell: snakemake_records.params_text(cell, self.grid))

    def _asked(self, verb: str, ask: Callable[[grid.Cell], _T]) -> Callable[[Any], _T]:
        """A function of Snakemake's wildcards: what is asked of the cell that they name."""

        def cell(wildcards: Any) -> grid.Cell:
            return self.grid.cell(verb, **{name: getattr(wildcards, name) for name in STAGES[verb].wildcards})

        return lambda wildcards: _or_exit(lambda: ask(cell(wildcards)))

    def code(self, verb: str) -> Callable[[Any], str]:
        """Snakemake's params function of a verb: the digest of a cell's code, whose change makes the cell stale."""
        return self._asked(verb, lambda cell: cell.code)

    def log(self, verb: str) -> str:
        """Where a job's messages go."""
        return STAGES[verb].log

    def command(self, verb: str) -> str:
        """The shell command of a verb."""
        return snakemake_records.shell_command(verb)

    def threads(self, verb: str) -> Callable[[Any], int]:
        """CPU cores of a job that runs a network: the threads it computes with, in each of its processes."""
        processes = _or_exit(lambda: launch.wanted(shared=STAGES[verb].shared))
        return lambda wildcards: processes * self.grid.studies.dataset(wildcards.dataset).compute.threads

    def gpus(self, verb: str) -> Callable[[Any], int]:
        """GPUs of a job that runs a network: one for each of its processes, or none."""
        processes = _or_exit(lambda: launch.wanted(shared=STAGES[verb].shared))
        return lambda wildcards: (
            processes if self.grid.studies.dataset(wildcards.dataset).compute.device == "cuda" else 0
        )

    def prepare(self) -> None:
        """What a Snakemake does that is no job of another one, before it looks at anything.

        A lock that a killed Snakemake left is taken off; one that is held is left for Snakemake to respect. What
        `dvc repro`, `dvc pull` or a clone brought is accepted, before Snakemake looks at times.
        """
        _or_exit(_join)
        if (why := sync.obstacle()) is not None:
            print(f"ipdiff: what is made will not be recorded: {why}", file=sys.stderr)
        _or_exit(sync.adopt)

    def record_at_exit(self, snakemake: Any) -> None:
        """Record what an earlier run could not, even if this one finds nothing to do (it calls no onsuccess then)."""

        def record() -> None:
            if snakemake.executor_plugin is not None and not snakemake.dryrun and sync.unrecorded():
                subprocess.run(["ipdiff", "sync", "--record-only"], check=False)

        atexit.register(record)


def _join() -> None:
    lock = artifact.LOCKS / "snakemake.lock"
    try:
        locks.join(lock, _unlock)
    except OSError as error:
        raise UserError(
            f"{lock}: cannot be written: {error.strerror}; use a copy of the project that you may write"
        ) from None


def _unlock() -> None:
    if snakemake_records.unlock():
        print(
            "ipdiff: took off the lock of a Snakemake that was killed here; no other one is running",
            file=sys.stderr,
        )


def _or_exit(function: Callable[[], _T]) -> _T:
    """Call a function; bad input ends Snakemake with one line and exit code 2."""
    try:
        return function()
    except UserError as error:
        print(f"ipdiff: {error}", file=sys.stderr)
        raise SystemExit(2) from None
