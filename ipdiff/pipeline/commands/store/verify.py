"""Every artifact that is there, hashed again and held against what recipes, dvc.lock and DVC's cache say of it.

Neither engine does this: both go by times and sizes, and call a tampered file up to date.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ipdiff.errors import IntegrityError, UserError
from ipdiff.pipeline import grid
from ipdiff.pipeline.commands.store import revisions
from ipdiff.pipeline.commands.store.in_git import PUBLISHED
from ipdiff.pipeline.commands.store.publish import RECEIPTS
from ipdiff.pipeline.engines import dvc_files
from ipdiff.pipeline.grid import Cell, Grid, cache_keys, selection
from ipdiff.pipeline.progress.reporter import reporting
from ipdiff.pipeline.store import artifact, dvc_cache, receipts
from ipdiff.work import progress, recipes
from ipdiff.work.recipes import RECIPE


@dataclass(frozen=True)
class Problem:
    """A file that is not what the records say."""

    path: str
    expected: str
    found: str
    about: str = ""

    def __str__(self) -> str:
        about = f" ({self.about})" if self.about else ""
        return f"{self.path}{about}: expected {self.expected}, found {self.found}"


@dataclass
class Verified:
    """What a verification saw."""

    artifacts: int = 0
    files: int = 0
    cached: int = 0
    size: int = 0
    missing: int = 0
    problems: list[Problem] = field(default_factory=list)
    found: dict[str, str] = field(default_factory=dict, repr=False)
    """Path -> md5 of everything that was hashed."""

    def __str__(self) -> str:
        cached = f", {count(self.cached, 'cached object')}" if self.cached else ""
        missing = f"; {count(self.missing, 'artifact')} not here" if self.missing else ""
        return (
            f"verified {count(self.artifacts, 'artifact')}, {count(self.files, 'file')}{cached}, "
            f"{bytes_text(self.size)}; {count(len(self.problems), 'problem')}{missing}"
        )


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 file, 2 files."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def bytes_text(size: float) -> str:
    """A number of bytes for people: 412 B, 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


# Hashing


def digests_of(paths: Iterable[str]) -> dict[str, str]:
    """md5 of every file, by as many threads as there are cores; a file under two names is read once.

    A file that cannot be read gets a text that is no digest. Where it takes long, stderr shows how far it is.
    """
    found: dict[str, str] = {}
    names: dict[tuple[int, int], list[str]] = {}
    total = 0
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            found[path] = _unreadable(error)
            continue
        names.setdefault((status.st_dev, status.st_ino), []).append(path)
        total += status.st_size
    with ThreadPoolExecutor(os.cpu_count()) as pool, reporting("hashing"):
        progress.begin("bytes", total)
        done = 0
        hashed = pool.map(_digest, [group[0] for group in names.values()])
        for group, digest in zip(names.values(), hashed, strict=True):
            found |= dict.fromkeys(group, digest)
            done += sum(map(_size, group))
            progress.tell(done)
    return found


def _digest(path: str) -> str:
    try:
        return artifact.file_digest(Path(path))
    except OSError as error:
        return _unreadable(error)


def _unreadable(error: OSError) -> str:
    return f"a file that cannot be read ({error.strerror})"


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


# DVC's cache

_OBJECT = re.compile("[0-9a-f]{2}/[0-9a-f]{30}(\\.dir)?")


def _cached(root: Path, digests: Iterable[str] | None) -> dict[str, str]:
    """Path of a cached object -> the md5 it is named by; only of those digests if they are given."""
    if not root.is_dir():
        return {}
    if digests is not None:
        paths = (dvc_cache.path_in(root, digest) for digest in digests)
        return {str(path): _name_of(path) for path in paths if path.exists()}
    paths = sorted(path for folder in root.iterdir() if folder.is_dir() for path in folder.iterdir())
    return {str(path): _name_of(path) for path in paths if _OBJECT.fullmatch(f"{path.parent.name}/{path.name}")}


def _name_of(path: Path) -> str:
    return path.parent.name + path.name.removesuffix(".dir")


# Artifacts


class Verifier:
    """Holds digests of now against the records; a damaged file is reported once, not for each of its users."""

    def __init__(self, known: Grid, recorded: dict[str, str], found: dict[str, str]) -> None:
        """Judge by these records.

        Args:
            known: the grid.
            recorded: output path -> md5 by dvc.lock.
            found: path -> md5 now, of every file that is there.
        """
        self.grid, self.recorded, self.found = known, recorded, found
        self._recipes: dict[str, tuple[dict[str, Any], Problem | None]] = {}

    def problems(self, cell: Cell, here: Sequence[str]) -> Iterator[Problem]:
        """What is wrong with a cell: with its recipe, and with those of its outputs that are here."""
        recipe, wrong = self._recipe(cell)
        *files, marker = cell.outputs
        said = {path: recipe.get("outputs", {}).get(os.path.basename(path)) for path in files}
        if wrong is None:
            by = dvc_files.pointer_of(cell) if cell.given else "dvc.lock"
            for path in files:  # dvc.lock may agree with the recipe's digest, but not with what the recipe says
                if self.recorded.get(path) not in (None, said[path]):
                    yield Problem(f"{by} entry of {path}", f"{said[path]} (its recipe)", self.recorded[path])
            for path, used in recipe.get("inputs", {}).items():
                now = self._input_now(path)
                if now not in (None, used):
                    yield Problem(marker, f"{used} for its input {path}", f"{now} there now")
        elif here or marker in self.found:
            yield wrong
        for path in (path for path in here if path in said):
            expected = said[path] if wrong is None else self.recorded.get(path) or said[path]
            if expected not in (None, self.found[path]):
                yield Problem(path, str(expected), self.found[path])

    def _recipe(self, cell: Cell) -> tuple[dict[str, Any], Problem | None]:
        """A cell's recipe, and what is wrong with it."""
        if cell.directory not in self._recipes:
            self._recipes[cell.directory] = self._read(cell, cell.outputs[-1])
        return self._recipes[cell.directory]

    def _read(self, cell: Cell, path: str) -> tuple[dict[str, Any], Problem | None]:
        if path not in self.found:
            return {}, Problem(path, "the recipe of the files beside it", "nothing")
        wrong, recipe = None, {}
        try:
            recipe = recipes.read(Path(path))
        except IntegrityError as error:
            wrong = Problem(path, error.expected, error.got)
        except (UserError, OSError):
            wrong = Problem(path, "a recipe", self.found[path])
        recorded = self.recorded.get(path)
        if recorded not in (None, self.found[path]):
            by = dvc_files.pointer_of(cell) if cell.given else "dvc.lock; `ipdiff sync` records what was made since"
            wrong = Problem(path, f"{recorded} ({by})", self.found[path])
        elif wrong is None and recipe.get("cell") != cell.directory:
            wrong = Problem(path, f"the recipe of {cell.directory}", f"that of {recipe.get('cell')}")
        return recipe, wrong

    def _input_now(self, path: str) -> str | None:
        """An input's digest by its maker's recipe; None where that is not there or is itself a problem."""
        maker = self.grid.maker(path)
        if maker is None:
            return self.found.get(path)
        recipe, wrong = self._recipe(maker)
        if wrong is not None:
            return None
        return self.found.get(path) if path == maker.outputs[-1] else recipe["outputs"].get(os.path.basename(path))


def verify(
    names: Sequence[str] = (),
    *,
    study: str | None = None,
    cache: bool = True,
    selected: dict[str, Cell] | None = None,
) -> Verified:
    """Hash again what is there and hold it against the records.

    Args:
        names: targets (see `selection.select`); nothing means all, and then missing artifacts are no problem.
        study: the one whose artifacts to look at; all that can be read if None.
        cache: also hash DVC's cache (of the named artifacts alone, if any are named).
        selected: the outputs to look at, instead of `names`.

    Raises:
        UserError: a name is unknown, or a dvc.lock cannot be read.
    """
    known = grid.load()
    outputs = selection.select(known, names, study) if selected is None else selected
    recorded = dvc_files.recorded(known.studies.names)
    some = bool(names) or selected is not None
    wanted = [recorded[path] for path in outputs if path in recorded] if some else None
    cached = _cached(dvc_cache.root(), wanted) if cache else {}
    needed = _readable(known, outputs)
    found = digests_of([*needed, *cached])
    done = Verified(cached=len(cached), size=sum(map(_size, {*needed, *cached})), found=found)
    verifier = Verifier(known, recorded, {path: found[path] for path in needed})
    for cell in selection.cells_of(outputs):
        here = [path for path in cell.outputs if path in outputs and path in verifier.found]
        done.files += len(here)
        done.artifacts += bool(here)
        done.missing += not here
        done.problems += verifier.problems(cell, here)
    if names:
        done.problems += _absent(outputs, names)
    owners = {digest: path for path, digest in recorded.items()}
    done.problems += [
        Problem(path, name, found[path], about=owners.get(name, "of no dvc.lock here"))
        for path, name in cached.items()
        if found[path] != name
    ]
    return done


def _readable(known: Grid, outputs: dict[str, Cell]) -> list[str]:
    """The outputs that are there, and what judging them needs: recipes of their makers, raw inputs."""
    paths = dict.fromkeys(outputs)
    for cell in selection.cells_of(outputs):
        for path in cell.inputs:
            maker = known.maker(path)
            paths[path if maker is None else maker.outputs[-1]] = None
    return [path for path in paths if os.path.exists(path)]


def _absent(outputs: dict[str, Cell], names: Sequence[str]) -> list[Problem]:
    """Named artifacts that are not there, and missing files of those that are in part."""
    missing = {path: cell.directory for path, cell in outputs.items() if not os.path.exists(path)}
    partly = {cell.directory for path, cell in outputs.items() if path not in missing}
    lines = dict.fromkeys(path if folder in partly else folder for path, folder in missing.items())
    return [Problem(path, f"to be here for {' '.join(names)}", "nothing") for path in lines]


# Against another revision


def against(revision: str, names: Sequence[str] = (), *, study: str | None = None) -> list[str]:
    """Hash again what is there and compare it with the dvc.lock files of a git revision.

    Args:
        revision: of git.
        names: targets, as for `verify`.
        study: the one whose artifacts to look at; all that can be read if None.

    Returns:
        Lines for a person, the count last; then how this machine differs from the one that made the revision's
        artifacts, where that left receipts.

    Raises:
        UserError: git does not know the revision, it has no dvc.lock, or a name is unknown.
    """
    known = grid.load()
    outputs = selection.select(known, names, study)
    recorded = revisions.recorded(revision, known.studies.names)
    if not recorded:
        raise UserError(f"{revision} has no dvc.lock: nothing to compare with")
    some = bool(names) or study is not None
    there = {
        path: digest
        for path, digest in recorded.items()
        if path in outputs or not (some or path.startswith(f"{cache_keys.FOLDER}/"))
    }
    here = digests_of([path for path in outputs if os.path.exists(path)])
    cells = list(dict.fromkeys(map(os.path.dirname, [*here, *there])))
    differing: dict[str, list[str]] = {cell: [] for cell in cells}
    for path in here:
        if there.get(path) != here[path]:
            differing[os.path.dirname(path)].append(os.path.basename(path))
    ours, theirs = set(map(os.path.dirname, here)), set(map(os.path.dirname, there))
    both = [cell for cell in cells if cell in ours and cell in theirs]
    other = [cell for cell in both if differing[cell] and differing[cell] != [RECIPE]]
    recipe = [cell for cell in both if differing[cell] == [RECIPE]]
    only_here, only_there = ([cell for cell in cells if cell not in others] for others in (theirs, ours))
    return [
        *(f"differs: {cell} ({', '.join(differing[cell])})" for cell in other),
        *(f"same bytes, another recipe: {cell}" for cell in recipe),
        *(f"only here: {cell}" for cell in only_here),
        *(f"only in {revision}: {cell}" for cell in only_there),
        f"{len(both) - len(other)} of {len(both)} artifacts are byte-identical to those of {revision}"
        f"{f' ({len(recipe)} with another recipe)' if recipe else ''}; "
        f"{len(other)} differ, {len(only_here)} only here, {len(only_there)} only there",
        *_machines(revision, known.studies.names, ours),
    ]


def _machines(revision: str, studies: Iterable[str], cells: set[str]) -> list[str]:
    """A line about how the machine that made these artifacts differs from the revision's, by the receipts of both."""
    theirs: dict[str, Any] = {}
    for study in studies:
        text = revisions.text_of(revision, (PUBLISHED / study / RECEIPTS).as_posix())
        theirs |= json.loads(text) if text else {}
    ours = {cell: receipt for cell in cells if cell in theirs and (receipt := receipts.read(cell))}
    if not ours:
        return []
    differences = receipts.differences(ours.values(), [theirs[cell] for cell in ours])
    return [f"machines differ in {'; '.join(differences)}" if differences else "same machine type and versions"]
