"""DVC's lock and cache, and Snakemake's records, kept in agreement with the artifacts that are there.

A cell *holds* when its recipe names the code, the parameters and the inputs of now (`ipdiff.freshness`). After
Snakemake, cells that hold are recorded in dvc.lock and the cache (`record`); after `dvc repro`, `dvc pull` or a
clone, Snakemake is told which outputs are good and which are not (`adopt`). Both are idempotent.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ipdiff import artifact, config, dvcfile, grid, records
from ipdiff.artifact import RECIPE
from ipdiff.code import code_digest
from ipdiff.dvclog import line, listening
from ipdiff.errors import IntegrityError, UserError
from ipdiff.files import write_whole
from ipdiff.freshness import Freshness, State
from ipdiff.grid import Cell


@dataclass
class Synced:
    """What a synchronisation did: cells recorded with DVC, cells Snakemake was told of, and what was wrong."""

    recorded: list[str] = field(default_factory=list)
    adopted: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    mended: list[str] = field(default_factory=list)


def sync(studies: Iterable[str] | None = None) -> Synced:
    """Record with DVC what holds, and tell Snakemake about it. `studies`: names; all of params.yaml if None."""
    done = record(studies)
    done.adopted += adopt(studies)
    return done


def freshness() -> Freshness:
    """How the cells of params.yaml stand now."""
    return Freshness(grid.load(), config.load_raw())


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
        done.mended += [str(lock) for lock in map(_mend, map(dvcfile.lock_of, fresh.grid.params.studies)) if lock]
        for study, new in _unrecorded(fresh, studies):
            _record(repo, study, new, fresh, done)
    return done


def unrecorded(studies: Iterable[str] | None = None) -> bool:
    """True if `record` has something to do."""
    return Path(".dvc").is_dir() and any(_unrecorded(freshness(), studies))


def adopt(studies: Iterable[str] | None = None) -> list[str]:
    """Tell Snakemake which outputs are good and which are not; return the directories it did not know about."""
    fresh = freshness()
    names = studies if studies is not None else fresh.grid.params.studies
    return [directory for name in names for directory in records.adopt(fresh.grid.study(name), fresh)]


def _unrecorded(fresh: Freshness, studies: Iterable[str] | None) -> Iterator[tuple[str, list[Cell]]]:
    """Each study's cells that hold, with all their files, and that dvc.lock does not have; none is left out."""
    for study in studies if studies is not None else fresh.grid.params.studies:
        entries = _entries(dvcfile.lock_of(study))
        new = [
            cell
            for cell in fresh.grid.study(study)
            if fresh.own(cell) is State.HOLDS
            and all(Path(path).exists() for path in cell.inputs)
            and not _is_recorded(entries.get(dvcfile.address(cell)), cell, fresh)
        ]
        if new:
            yield study, new


def track(cell: Cell) -> Path:
    """Put an imported checkpoint into DVC's cache and write the .dvc file that stands for it; returns that file.

    Raises:
        UserError: DVC could not write, or another stage has these files as outputs.
    """
    pointer = dvcfile.pointer_of(cell)
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
        with repo.lock, listening(), _parameters_read_once():
            yield repo
    except (OSError, sqlite3.Error, DvcException) as error:
        reason = line(str(error)) or type(error).__name__
        raise UserError(f"could not record in dvc.lock and DVC's cache: {reason}; then {again}") from None


@contextmanager
def _parameters_read_once() -> Iterator[None]:
    """Parse params.yaml once for all stages: DVC does it three times a stage, most of the time that recording takes."""
    from dvc.dependency import param

    load = param.load_path
    read = cache(load)
    param.load_path = lambda *args: deepcopy(read(*args))  # shared values would become anchors in dvc.lock
    try:
        yield
    finally:
        param.load_path = load


def _record(repo: Any, study: str, new: list[Cell], fresh: Freshness, done: Synced) -> None:
    """Put cells that hold into the cache and dvc.lock; one whose files are not those of its recipe is refused."""
    stages = {stage.addressing.rpartition(":")[2]: stage for stage in _stages_of(repo, study)}
    verbs = sorted({cell.stage.verb for cell in new})
    if missing := {dvcfile.address(cell) for cell in new} - stages.keys():
        path = dvcfile.path_of(study)
        raise UserError(f"{path} has no stage {min(missing)}; run `ipdiff grid --write`, then `ipdiff sync`")
    for verb in verbs:
        write_code_digest(verb, study)
    good = [_saved(stages[f"code-{verb}"]) for verb in verbs]
    for cell in new:
        stage = _saved(stages[dvcfile.address(cell)])
        if wrong := _mismatch(stage, fresh.recipe(cell) or {}):
            done.refused.append(wrong)
        else:
            good.append(stage)
            done.recorded.append(cell.directory)
    for stage in good:
        stage.commit()
        repo.stage_cache.save(stage)
    _write_lock(dvcfile.lock_of(study), good)


def _saved(stage: Any) -> Any:
    """The stage with the digests of its files as they are; the run cache is left for when they are known good."""
    stage.save(run_cache=False)
    return stage


def write_code_digest(verb: str, study: str) -> Path:
    """Write the file that stands for a verb's code in DVC's graph, unless it is right already."""
    path = Path(dvcfile.code_output(verb, study))
    text = code_digest(verb) + "\n"
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())  # never in place: the file may be a hard link into DVC's cache
    return path


def _stages_of(repo: Any, study: str) -> list[Any]:
    """DVC's stages of a study's dvc.yaml."""
    wanted = dvcfile.path_of(study).resolve()
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


def _is_recorded(entry: Any, cell: Cell, fresh: Freshness) -> bool:
    """True if a dvc.lock entry says of a cell what its recipe says."""
    recipe = fresh.recipe(cell) or {}
    try:
        outs = {Path(out["path"]).name: out["md5"] for out in entry["outs"]}
        deps = {dep["path"]: dep["md5"] for dep in entry["deps"]}
        params = {key: value for file in entry.get("params", {}).values() for key, value in file.items()}
    except (KeyError, TypeError, AttributeError):  # no entry, or a torn one
        return False
    code = {path for path in deps if path.startswith("code/")}
    return (
        entry.get("cmd") == cell.command
        and {name: digest for name, digest in outs.items() if name != RECIPE} == recipe.get("outputs")
        and outs.get(RECIPE) == artifact.file_digest(Path(cell.outputs[-1]))
        and {path: digest for path, digest in deps.items() if path not in code} == recipe.get("inputs")
        and all(deps[path] == _text_digest(code_digest(cell.stage.verb) + "\n") for path in code)
        and params == recipe.get("params")
    )


def _text_digest(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _mismatch(stage: Any, recipe: dict[str, Any]) -> str | None:
    """A line about the first file of a saved stage whose bytes are not those of its recipe, or None."""
    outputs = {out.def_path: recipe.get("outputs", {}).get(Path(out.def_path).name) for out in stage.outs}
    inputs: dict[str, str] = recipe.get("inputs", {})
    for file in (*stage.deps, *stage.outs):
        expected = {**outputs, **inputs}.get(getattr(file, "def_path", ""))
        if expected is not None and file.hash_info.value != expected:
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
