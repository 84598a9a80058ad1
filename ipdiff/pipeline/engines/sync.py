"""DVC's lock and cache, and Snakemake's records, kept in agreement with the artifacts that are there.

A cell *holds* when its recipe names the code, the parameters and the inputs of now (`grid.freshness`). After
Snakemake, cells that hold are recorded in dvc.lock and the cache (`record`); after `dvc repro`, `dvc pull` or a
clone, Snakemake is told which outputs are good and which are not (`adopt`). Both are idempotent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
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
from ipdiff.work.files import md5, write_whole


@dataclass
class Recorded:
    """What `record` did: cells recorded with DVC, what was wrong with others, and locks that were set aside."""

    cells: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    mended: list[Path] = field(default_factory=list)


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


def record() -> Recorded:
    """Bring dvc.lock and DVC's cache up to date with the cells that hold.

    Raises:
        UserError: DVC could not write (a full disk, a file in its way); nothing is damaged, and the next one goes on.
    """
    done = Recorded()
    if not unrecorded():
        return done
    with _dvc() as repo:
        fresh = Freshness(grid.load())
        done.mended += filter(None, map(_mend, map(dvc_files.lock_of, fresh.grid.studies.names)))
        for study, new in _unrecorded(fresh):
            _record(repo, study, new, fresh, done)
    return done


def unrecorded() -> bool:
    """True if `record` has something to do."""
    return obstacle() is None and any(_unrecorded(Freshness(grid.load())))


def adopt() -> list[str]:
    """Tell Snakemake which outputs are good and which are not; return the directories it did not know about."""
    fresh = Freshness(grid.load())
    studies = map(fresh.grid.study, _begun(fresh.grid))
    return [directory for cells in studies for directory in snakemake_records.adopt(cells, fresh)]


def _begun(known: grid.Grid) -> list[str]:
    """The studies of which something is here: the others have nothing to agree on, and are not read."""
    tops = {stage.directory.partition("/")[0] for stage in (*grid.STAGES.values(), grid.IMPORT)}
    begun = [
        study
        for study, datasets in known.studies.datasets.items()
        if datasets is None or any(Path(top, name).exists() for top in tops for name in (study, *datasets))
    ]
    return known.studies.readable(begun)


def _unrecorded(fresh: Freshness) -> Iterator[tuple[str, list[Cell]]]:
    """Studies with cells that hold and that DVC does not have: their names and those cells.

    No cells where only the settings are to be recorded, since code or parameters of other cells changed, or a comment.
    """
    for study in _begun(fresh.grid):
        cells, lock = fresh.grid.study(study), _Lock(study, fresh)
        here = [
            cell
            for cell in cells
            if fresh.own(cell) is State.HOLDS and all(Path(path).exists() for path in cell.inputs)
        ]
        new = [cell for cell in here if not lock.has(cell)]
        if new or (here and not lock.has_settings(cells)):
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


def _record(repo: Any, study: str, new: list[Cell], fresh: Freshness, done: Recorded) -> None:
    """Put cells that hold into the cache and dvc.lock; one whose files are not those of its recipe is refused."""
    path = dvc_files.path_of(study)
    found = (stage for stage in repo.index.stages if Path(stage.path).resolve() == path.resolve())
    stages = {stage.addressing.rpartition(":")[2]: stage for stage in found}
    if missing := {dvc_files.SETTINGS, *map(dvc_files.address, new)} - stages.keys():
        raise UserError(f"{path} has no stage {min(missing)}; run `ipdiff grid --write`, then `ipdiff sync`")
    cache_keys.write(cache_keys.texts(fresh.grid, study))
    good = [stages[dvc_files.SETTINGS]]
    good[0].save(run_cache=False)  # the run cache is for stages whose files are known to be good
    for cell in new:
        stage = stages[dvc_files.address(cell)]
        stage.save(run_cache=False)
        if wrong := _mismatch(stage, fresh.recipe(cell) or {}):
            done.refused.append(wrong)
        else:
            good.append(stage)
            done.cells.append(cell.directory)
    for stage in good:
        stage.commit()
        repo.stage_cache.save(stage)
    _write_lock(dvc_files.lock_of(study), good, stages)


def _entries(lock: Path) -> dict[str, Any]:
    """The stages of a dvc.lock; none where it is missing or damaged."""
    try:
        stages = yaml.load(lock.read_bytes(), Loader=dvc_files.LOADER)["stages"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return {}
    return stages if isinstance(stages, dict) else {}


def _mend(lock: Path) -> Path | None:
    """Set aside a dvc.lock that was torn (DVC writes it in place), and say where; what holds is recorded anew."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    if not lock.exists():
        return None
    try:
        COMPILED_LOCKFILE_SCHEMA(yaml.load(lock.read_bytes(), Loader=dvc_files.LOADER))
    except (yaml.YAMLError, Invalid):
        return lock.replace(lock.with_suffix(".lock.damaged"))
    return None


class _Lock:
    """What a study's dvc.lock and DVC's cache have."""

    def __init__(self, study: str, fresh: Freshness) -> None:
        self.study, self.fresh = study, fresh
        self.entries = _entries(dvc_files.lock_of(study))
        self.cache = dvc_cache.root()

    def has(self, cell: Cell) -> bool:
        """True if the entry says of a cell what its recipe says, and its outputs are in the cache."""
        recipe = self.fresh.recipe(cell) or {}
        chosen = cache_keys.digest(recipe["code"], recipe["params"])
        outputs = {f"{cell.directory}/{name}": digest for name, digest in recipe["outputs"].items()}
        return self._has(
            dvc_files.address(cell),
            cmd=cell.command,
            deps=recipe["inputs"] | {cache_keys.path_of(cell, self.study): chosen},
            outs=outputs | {cell.outputs[-1]: artifact.file_digest(Path(cell.outputs[-1]))},
        )

    def has_settings(self, cells: list[Cell]) -> bool:
        """True if the entry of the study's settings is that of now, as are the files."""
        known = self.fresh.grid
        stage, params = dvc_files.settings(cells, self.study), known.studies.load(self.study)
        outs = {path: md5(text.encode()) for path, text in cache_keys.texts(known, self.study).items()}
        try:
            now = {path: artifact.file_digest(Path(path)) for path in (*stage["deps"], *outs)}
        except OSError:
            return False
        return now == now | outs and self._has(
            dvc_files.SETTINGS,
            cmd=stage["cmd"],
            deps={path: now[path] for path in stage["deps"]},
            params={config.path_of(self.study).as_posix(): params.values(cache_keys.keys(cells))},
            outs=outs,
        )

    def _has(self, address: str, *, outs: dict[str, str], **said: Any) -> bool:
        """True if a stage's entry says this and nothing else, and its outputs are in the cache."""
        entry: Any = self.entries.get(address)
        try:
            there = {**entry, "deps": _files(entry["deps"]), "outs": _files(entry["outs"])}
        except (KeyError, TypeError):  # no entry, or a torn one
            return False
        cached = (dvc_cache.path_in(self.cache, digest).exists() for digest in outs.values())
        return there == {**said, "outs": outs} and all(cached)


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


def _write_lock(path: Path, stages: list[Any], known: Collection[str]) -> None:
    """Update a dvc.lock in one step (DVC writes it in place: a kill would tear it); it keeps stages that are known."""
    from dvc.stage.serialize import to_lockfile
    from dvc.utils.serialize import dumps_yaml

    entries = {name: entry for name, entry in _entries(path).items() if name in known}
    for stage in stages:
        entries.update(to_lockfile(stage))
    write_whole(path, dumps_yaml({"schema": "2.0", "stages": entries}).encode())
