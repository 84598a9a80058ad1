"""DVC's lock and cache, and Snakemake's records, kept in agreement with the artifacts that are there.

A cell *holds* when its recipe names the code, the parameters and the inputs of now. After Snakemake, cells that
hold are recorded in dvc.lock and the cache (`record`); after `dvc repro`, `dvc pull` or a clone, Snakemake is told
which outputs are good (`adopt`). Both are idempotent and leave alone what does not hold: both engines then see it
as stale by themselves.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ipdiff import artifact, config, dvcfile, grid
from ipdiff.artifact import RECIPE
from ipdiff.code import code_digest
from ipdiff.errors import IntegrityError, UserError
from ipdiff.grid import Cell, Grid

SYNCING = "IPDIFF_SYNCING"
"""Set in the environment of a Snakemake that only touches: it must not start another."""

SNAKEMAKE_RECORDS = Path(".snakemake/metadata")


@dataclass
class Synced:
    """What a synchronisation did."""

    recorded: list[str] = field(default_factory=list)
    adopted: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


class Holding:
    """Which cells hold, by their recipes alone: no large file is read."""

    def __init__(self, known: Grid, raw: dict[str, Any]) -> None:
        """Judge cells of this grid with these parameters."""
        self.grid, self.raw = known, raw
        self._recipes: dict[str, dict[str, Any] | None] = {}

    def recipe(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's recipe, or None where it or an output is missing."""
        if cell.directory not in self._recipes:
            there = all(Path(path).exists() for path in cell.outputs)
            self._recipes[cell.directory] = artifact.read_recipe(Path(cell.outputs[-1])) if there else None
        return self._recipes[cell.directory]

    def __call__(self, cell: Cell) -> bool:
        """True if the cell's recipe names the code, parameters and inputs of now."""
        recipe = self.recipe(cell)
        return (
            recipe is not None
            and recipe.get("code") == code_digest(cell.stage.verb)
            and recipe.get("command") == cell.command
            and recipe.get("params") == grid.param_values(cell, self.raw)
            and list(recipe.get("inputs", {})) == sorted(cell.inputs)
            and all(self._input_digest(path) == digest for path, digest in recipe["inputs"].items())
        )

    def _input_digest(self, path: str) -> str | None:
        """What an input's digest should be now: its maker's word for it, or the bytes of a recipe or raw file."""
        maker = self.grid.maker(path)
        if maker is None or path.endswith(RECIPE):
            return artifact.file_digest(Path(path)) if Path(path).exists() else None
        recipe = self.recipe(maker)
        return None if recipe is None else recipe["outputs"].get(Path(path).name)


def sync(studies: Iterable[str] | None = None) -> Synced:
    """Record with DVC what holds, and tell Snakemake about it. `studies`: names; all of params.yaml if None."""
    done = record(studies)
    done.adopted += adopt(studies)
    return done


def _held(studies: Iterable[str] | None) -> Iterator[tuple[str, list[Cell], Holding]]:
    """Each study's cells that hold."""
    known = grid.load()
    holding = Holding(known, config.load_raw())
    for study in studies if studies is not None else known.params.studies:
        yield study, [cell for cell in known.study(study) if holding(cell)], holding


def record(studies: Iterable[str] | None = None) -> Synced:
    """Bring dvc.lock and DVC's cache up to date with the cells that hold."""
    done = Synced()
    if Path(".dvc").is_dir():
        for study, cells, holding in _held(studies):
            _record(study, cells, holding, done)
    return done


def adopt(studies: Iterable[str] | None = None) -> list[str]:
    """Tell Snakemake that outputs are good, where it has no record of them or their times are out of order.

    Returns:
        Directories of the cells whose outputs were touched, makers before users.
    """
    touched: list[str] = []
    for _, cells, _ in _held(studies):
        if _out_of_order(cells):
            _touch([path for cell in cells for path in cell.outputs])
            touched += [cell.directory for cell in cells]
    return touched


def _record(study: str, cells: list[Cell], holding: Holding, done: Synced) -> None:
    """Bring dvc.lock and the cache up to date with cells that hold; one that was tampered with is refused."""
    lock = dvcfile.lock_of(study)
    entries = _entries(lock)
    new = [cell for cell in cells if not _is_recorded(entries.get(dvcfile.address(cell)), cell, holding)]
    if not new:
        return
    verbs = sorted({cell.stage.verb for cell in cells})
    for verb in verbs:
        write_code_digest(verb, study)
    from dvc.repo import Repo  # slow to import, and seldom needed

    repo = Repo(".")
    with repo.lock:
        stages = {stage.addressing.rpartition(":")[2]: stage for stage in _stages_of(repo, study)}
        good = [stages[f"code-{verb}"] for verb in verbs]
        for stage in good:
            stage.save()
        for cell in new:
            stage = stages[dvcfile.address(cell)]
            stage.save()
            if wrong := _tampered(stage, holding.recipe(cell) or {}):
                done.refused.append(wrong)
            else:
                good.append(stage)
                done.recorded.append(cell.directory)
        for stage in good:
            stage.commit()
        _write_lock(lock, good)


def write_code_digest(verb: str, study: str) -> Path:
    """Write the file that stands for a verb's code in DVC's graph, unless it is right already."""
    path = Path(dvcfile.code_output(verb, study))
    text = code_digest(verb) + "\n"
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path


def _stages_of(repo: Any, study: str) -> list[Any]:
    """DVC's stages of a study's dvc.yaml."""
    wanted = dvcfile.path_of(study).resolve()
    return [stage for stage in repo.index.stages if Path(stage.path).resolve() == wanted]


def _entries(lock: Path) -> dict[str, Any]:
    """The stages of a dvc.lock; one that cannot be read counts as empty (it is written anew)."""
    try:
        return dvcfile.lock_entries(lock.read_text())
    except (OSError, ValueError):
        return {}


def _is_recorded(entry: dict[str, Any] | None, cell: Cell, holding: Holding) -> bool:
    """True if a dvc.lock entry says of a cell what its recipe says."""
    if entry is None or entry.get("cmd") != cell.command:
        return False
    recipe = holding.recipe(cell) or {}
    outs = {Path(out["path"]).name: out.get("md5") for out in entry.get("outs", [])}
    deps = {dep["path"]: dep.get("md5") for dep in entry.get("deps", [])}
    code = {path for path in deps if path.startswith("code/")}
    params = {key: value for file in entry.get("params", {}).values() for key, value in file.items()}
    return (
        {name: digest for name, digest in outs.items() if name != RECIPE} == recipe.get("outputs")
        and outs.get(RECIPE) == artifact.file_digest(Path(cell.outputs[-1]))
        and {path: digest for path, digest in deps.items() if path not in code} == recipe.get("inputs")
        and all(deps[path] == _text_digest(code_digest(cell.stage.verb) + "\n") for path in code)
        and params == recipe.get("params")
    )


def _text_digest(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _tampered(stage: Any, recipe: dict[str, Any]) -> str | None:
    """A line about the first output whose bytes are not those of its recipe, or None."""
    for out in stage.outs:
        path = Path(out.def_path)
        expected = recipe.get("outputs", {}).get(path.name)
        if path.name != RECIPE and out.hash_info.value != expected:
            return str(IntegrityError(path, str(expected), str(out.hash_info.value)))
    return None


def _write_lock(path: Path, stages: list[Any]) -> None:
    """Update a dvc.lock in one step (DVC writes it in place: a kill would tear it)."""
    from dvc.stage.serialize import to_lockfile
    from dvc.utils.serialize import dumps_yaml

    entries = _entries(path)
    for stage in stages:
        entries.update(to_lockfile(stage))
    part = path.with_suffix(".lock.part")
    with part.open("w") as stream:
        stream.write(dumps_yaml({"schema": "2.0", "stages": entries}))
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)


def _touch(paths: list[str]) -> None:
    """Let Snakemake touch and record these outputs as if it had made them."""
    command = [sys.executable, "-m", "snakemake", "--touch", "--force", "--cores", "1", "--nolock", "--quiet", "all"]
    ran = subprocess.run(
        [*command, "--", *paths], env={**os.environ, SYNCING: "1"}, capture_output=True, text=True, check=False
    )
    if ran.returncode:
        raise UserError(f"snakemake --touch ended with {ran.returncode}: {' '.join(ran.stderr.split()[-30:])}")


def _out_of_order(cells: list[Cell]) -> bool:
    """True if some output is older than an input of its cell, or Snakemake has no record of it."""
    return any(
        min(_times(cell.outputs)) < max(_times(cell.inputs), default=0.0) or not _is_known(cell.outputs[0])
        for cell in cells
    )


def _times(paths: tuple[str, ...]) -> list[float]:
    return [Path(path).stat().st_mtime for path in paths]


def _is_known(path: str) -> bool:
    return (SNAKEMAKE_RECORDS / urlsafe_b64encode(path.encode()).decode()).exists()
