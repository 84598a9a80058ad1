"""DVC's lock and cache, and Snakemake's records, kept in agreement with the artifacts that are there.

A cell *holds* when its recipe names the code, the parameters and the inputs of now (`grid.freshness`). After
Snakemake, cells that hold are recorded in dvc.lock and the cache (`record`); after `dvc repro`, `dvc pull` or a
clone, Snakemake is told which outputs are good and which are not (`adopt`). Both are idempotent.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from ipdiff.errors import IntegrityError, UserError
from ipdiff.pipeline import config, grid
from ipdiff.pipeline.engines import dvc_files, snakemake_records
from ipdiff.pipeline.grid import Cell, cache_keys
from ipdiff.pipeline.grid.freshness import Freshness, State
from ipdiff.pipeline.store import artifact, dvc_cache
from ipdiff.pipeline.store.dvc_log import line, listening
from ipdiff.work.files import md5


@dataclass
class Synced:
    """What a synchronisation did: cells recorded with DVC, cells Snakemake was told of, and what was wrong."""

    recorded: list[str] = field(default_factory=list)
    adopted: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    mended: list[str] = field(default_factory=list)


def sync(studies: Iterable[str] | None = None) -> Synced:
    """Record with DVC what holds, and tell Snakemake about it. `studies`: names; all if None."""
    done = record(studies)
    done.adopted += adopt(studies)
    return done


def freshness() -> Freshness:
    """How the cells of all studies stand now."""
    return Freshness(grid.load())


def obstacle() -> str | None:
    """Why nothing can be recorded with DVC here, and what to do; None where it can."""
    if not Path(".dvc").is_dir():
        return "there is no .dvc here: run this in the project's root, or git init and dvc init"
    if find_spec("dvc") is None:
        return "DVC is not installed: pip install 'ipdiff[pipeline]'"
    from dvc.config import Config
    from dvc.exceptions import DvcException
    from dvc.scm import SCM

    try:
        SCM(".", no_scm=Config(dvc_dir=".dvc")["core"].get("no_scm", False))
    except DvcException as error:
        remedy = "git init, or `dvc config --local core.no_scm true` to do without"
        return f"DVC needs a git repository: {remedy} ({line(str(error))})"
    return None


def record(studies: Iterable[str] | None = None) -> Synced:
    """Bring dvc.lock and DVC's cache up to date with the cells that hold.

    Raises:
        UserError: DVC could not write (a full disk, a file in its way); nothing is damaged, and the next one goes on.
    """
    done = Synced()
    if not unrecorded(studies):
        return done
    with _dvc() as repo:
        fresh = freshness()
        done.mended += [str(lock) for lock in map(_mend, map(dvc_files.lock_of, fresh.grid.studies.names)) if lock]
        for study, new in _unrecorded(fresh, studies):
            _record(repo, study, new, fresh, done)
    return done


def unrecorded(studies: Iterable[str] | None = None) -> bool:
    """True if `record` has something to do."""
    return obstacle() is None and any(_unrecorded(freshness(), studies))


def adopt(studies: Iterable[str] | None = None) -> list[str]:
    """Tell Snakemake which outputs are good and which are not; return the directories it did not know about."""
    fresh = freshness()
    names = studies if studies is not None else _begun(fresh.grid)
    return [directory for name in names for directory in snakemake_records.adopt(fresh.grid.study(name), fresh)]


def _begun(known: grid.Grid) -> list[str]:
    """The studies of which something is here: the others have nothing to agree on, and are not read."""
    tops = {stage.directory.partition("/")[0] for stage in (*grid.STAGES.values(), grid.IMPORT)}
    begun = [
        study
        for study, datasets in known.studies.datasets.items()
        if datasets is None or any(Path(top, name).exists() for top in tops for name in (study, *datasets))
    ]
    return known.studies.readable(begun)


def _unrecorded(fresh: Freshness, studies: Iterable[str] | None) -> Iterator[tuple[str, list[Cell]]]:
    """Studies with cells that hold and that DVC does not have: their names and those cells.

    No cells where only the settings are to be recorded, since code or parameters of other cells changed, or a comment.
    """
    for study in studies if studies is not None else _begun(fresh.grid):
        cells, recorded = fresh.grid.study(study), _Recorded(study, fresh)
        here = [
            cell
            for cell in cells
            if fresh.own(cell) is State.HOLDS and all(Path(path).exists() for path in cell.inputs)
        ]
        new = [cell for cell in here if not recorded.has(cell)]
        if new or (here and not recorded.has_settings(cells)):
            yield study, new


def track(cell: Cell) -> Path:
    """Put an imported checkpoint into DVC's cache and write the .dvc file that stands for it; returns that file.

    Raises:
        UserError: DVC could not write, or another stage has these files as outputs.
    """
    pointer = dvc_files.pointer_of(cell)
    pointer.parent.mkdir(exist_ok=True)
    with _dvc(again="import it again") as repo:
        outs = list(cell.outputs)
        stage = repo.stage.create(single_stage=True, force=True, fname=str(pointer), wdir=".", outs=outs)
        stage.save()
        stage.commit()
        stage.dump()
    return pointer


@contextmanager
def _dvc(again: str = "run `ipdiff sync`") -> Iterator[Any]:
    """DVC's view of the project, locked; waits while another process has the lock. `again`: advice if it fails."""
    import sqlite3

    from dvc.exceptions import DvcException  # slow to import, and seldom needed
    from dvc.repo import Repo

    try:
        repo = Repo(".", _wait_for_lock=True)
        with repo.lock, listening():
            yield repo
    except (OSError, sqlite3.Error, DvcException) as error:
        reason = line(str(error)) or type(error).__name__
        raise UserError(f"could not record in dvc.lock and DVC's cache: {reason}; then {again}") from None


def _record(repo: Any, study: str, new: list[Cell], fresh: Freshness, done: Synced) -> None:
    """Put cells that hold into the cache and dvc.lock; one whose files are not those of its recipe is refused."""
    stages = {stage.addressing.rpartition(":")[2]: stage for stage in _stages_of(repo, study)}
    if missing := {dvc_files.SETTINGS, *map(dvc_files.address, new)} - stages.keys():
        path = dvc_files.path_of(study)
        raise UserError(f"{path} has no stage {min(missing)}; run `ipdiff grid --write`, then `ipdiff sync`")
    cache_keys.write(cache_keys.texts(fresh.grid, study))
    good = [_saved(stages[dvc_files.SETTINGS])]
    for cell in new:
        stage = _saved(stages[dvc_files.address(cell)])
        if wrong := _mismatch(stage, fresh.recipe(cell) or {}):
            done.refused.append(wrong)
        else:
            good.append(stage)
            done.recorded.append(cell.directory)
    for stage in good:
        stage.commit()
        repo.stage_cache.save(stage)
    _write_lock(dvc_files.lock_of(study), good)


def _saved(stage: Any) -> Any:
    """The stage with the digests of its files as they are; the run cache is left for when they are known good."""
    stage.save(run_cache=False)
    return stage


def _stages_of(repo: Any, study: str) -> list[Any]:
    """DVC's stages of a study's dvc.yaml."""
    wanted = dvc_files.path_of(study).resolve()
    return [stage for stage in repo.index.stages if Path(stage.path).resolve() == wanted]


def _entries(lock: Path) -> dict[str, Any]:
    """The stages of a dvc.lock; none where it is missing or damaged."""
    try:
        stages = yaml.load(lock.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["stages"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return {}
    return stages if isinstance(stages, dict) else {}


def _mend(lock: Path) -> Path | None:
    """Set aside a dvc.lock that was torn (DVC writes it in place), and say where; what holds is recorded anew."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    if not lock.exists():
        return None
    try:
        COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(lock.read_text()))
    except (UnicodeDecodeError, yaml.YAMLError, Invalid):
        return lock.replace(lock.with_suffix(".lock.damaged"))
    return None


class _Recorded:
    """What a study's dvc.lock and DVC's cache have."""

    def __init__(self, study: str, fresh: Freshness) -> None:
        self.study, self.fresh = study, fresh
        self.entries = _entries(dvc_files.lock_of(study))
        self.cache = dvc_cache.root()

    def has(self, cell: Cell) -> bool:
        """True if the entry says of a cell what its recipe says, and its outputs are in the cache."""
        recipe = self.fresh.recipe(cell) or {}
        try:
            entry = self.entries[dvc_files.address(cell)]
            deps, outs = _files(entry["deps"]), _files(entry["outs"])
            chosen = cache_keys.digest(recipe["code"], recipe["params"])
            outputs = {f"{cell.directory}/{name}": digest for name, digest in recipe["outputs"].items()}
            return (
                entry["cmd"] == cell.command
                and deps == recipe["inputs"] | {cache_keys.path_of(cell, self.study): chosen}
                and outs == outputs | {cell.outputs[-1]: artifact.file_digest(Path(cell.outputs[-1]))}
                and self._cached(outs)
            )
        except (KeyError, TypeError, AttributeError):  # no entry, or a torn one
            return False

    def has_settings(self, cells: list[Cell]) -> bool:
        """True if the entry of the study's settings is that of now, as are the files."""
        try:
            entry = self.entries[dvc_files.SETTINGS]
            deps, outs = _files(entry["deps"]), _files(entry["outs"])
            known = self.fresh.grid
            wanted, params = cache_keys.texts(known, self.study), known.studies.load(self.study)
            return (
                entry["params"] == {config.path_of(self.study).as_posix(): params.values(cache_keys.keys(cells))}
                and outs == {path: md5(text.encode()) for path, text in wanted.items()}
                and all(artifact.file_digest(Path(path)) == digest for path, digest in (deps | outs).items())
                and self._cached(outs)
            )
        except (OSError, KeyError, TypeError, AttributeError):
            return False

    def _cached(self, outs: dict[str, str]) -> bool:
        cache = self.cache
        return cache is not None and all(dvc_cache.path_in(cache, digest).exists() for digest in outs.values())


def _files(entries: list[dict[str, str]]) -> dict[str, str]:
    """Path -> md5 of a list of dvc.lock."""
    return {entry["path"]: entry["md5"] for entry in entries}


def _mismatch(stage: Any, recipe: dict[str, Any]) -> str | None:
    """A line about the first file of a saved stage whose bytes are not those of its recipe, or None."""
    outputs = {out.def_path: recipe.get("outputs", {}).get(Path(out.def_path).name) for out in stage.outs}
    inputs: dict[str, str] = recipe.get("inputs", {})
    for file in (*stage.deps, *stage.outs):
        expected = {**outputs, **inputs}.get(getattr(file, "def_path", ""))
        if expected is not None and file.hash_info.value != expected:
            if Path(file.def_path).is_dir() and artifact.file_digest(Path(file.def_path)) == expected:
                return (
                    f"{file.def_path}: .dvcignore leaves out some of its files, so DVC does not see what was read; "
                    "change .dvcignore, or move them"
                )
            return str(IntegrityError(file.def_path, expected, str(file.hash_info.value)))
    return None


def _write_lock(path: Path, stages: list[Any]) -> None:
    """Update a dvc.lock in one step (DVC writes it in place: a kill would tear it)."""
    from dvc.stage.serialize import to_lockfile
    from dvc.utils.serialize import dumps_yaml

    entries = _entries(path)
    for stage in stages:
        entries.update(to_lockfile(stage))
    part = path.with_suffix(".lock.part")
    try:
        with part.open("w") as stream:
            stream.write(dumps_yaml({"schema": "2.0", "stages": entries}))
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
