"""Every artifact that is there, hashed again and held against what recipes, dvc.lock and DVC's cache say of it.

Neither engine does this: both go by times and sizes, and call a tampered file up to date.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ipdiff.errors import IntegrityError, UserError
from ipdiff.pipeline import grid
from ipdiff.pipeline.commands.store.publish import PUBLISHED, RECEIPTS
from ipdiff.pipeline.engines import dvc_files
from ipdiff.pipeline.grid import Cell, Grid, cache_keys, selection
from ipdiff.pipeline.store import artifact, dvc_cache, receipts
from ipdiff.work import recipes
from ipdiff.work.recipes import RECIPE

Progress = Callable[[int], object]
"""Told how many bytes of files have been hashed since the last call."""


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


def digests_of(paths: Iterable[str], progress: Progress | None = None) -> dict[str, str]:
    """md5 of every file, by as many threads as there are cores; a file under two names is read once.

    A file that cannot be read gets a text that is no digest.
    """
    names: dict[tuple[int, int], list[str]] = {}
    unreadable: dict[str, str] = {}
    for path in paths:
        try:
            status = os.stat(path)
            names.setdefault((status.st_dev, status.st_ino), []).append(path)
        except OSError as error:
            unreadable[path] = _unreadable(error)

    found: dict[str, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashed = pool.map(_digest, [group[0] for group in names.values()])
        for group, digest in zip(names.values(), hashed, strict=True):
            found |= dict.fromkeys(group, digest)
            if progress is not None:
                progress(sum(map(_size, group)))
    return found | unreadable


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


def _hash(paths: Sequence[str]) -> dict[str, str]:
    """`digests_of`, with a progress bar when stderr is a terminal."""
    if not sys.stderr.isatty():
        return digests_of(paths)
    from tqdm import tqdm

    with tqdm(total=sum(map(_size, paths)), unit="B", unit_scale=True, desc="hashing", leave=False) as bar:
        return digests_of(paths, bar.update)


# DVC's cache

_OBJECT = re.compile("[0-9a-f]{2}/[0-9a-f]{30}(\\.dir)?")


def _cached(root: Path | None, digests: Iterable[str] | None) -> dict[str, str]:
    """Path of a cached object -> the md5 it is named by; only of those digests if they are given."""
    if root is None or not root.is_dir():
        return {}
    if digests is not None:
        paths = (dvc_cache.path_in(root, digest) for digest in digests)
        return {str(path): _name_of(path) for path in paths if path.exists()}
    paths = sorted(path for folder in root.iterdir() if folder.is_dir() for path in folder.iterdir())
    return {str(path): _name_of(path) for path in paths if _OBJECT.fullmatch(f"{path.parent.name}/{path.name}")}


def _name_of(path: Path) -> str:
    return path.parent.name + path.name.removesuffix(".dir")


# Artifacts


@dataclass(frozen=True)
class Word:
    """What a recipe says of its files, and what is wrong with the recipe itself."""

    recipe: dict[str, Any]
    problem: Problem | None = None

    def of(self, path: str) -> str | None:
        """An output's digest by this recipe."""
        return self.recipe.get("outputs", {}).get(os.path.basename(path))


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
        self._words: dict[str, Word] = {}

    def problems(self, cell: Cell, outputs: Iterable[str]) -> Iterator[Problem]:
        """What is wrong with a cell: with its recipe, and with those of its outputs that are asked for."""
        word = self._word(cell)
        files = [path for path in outputs if path in self.found and path != cell.outputs[-1]]
        if word.problem is None:
            yield from self._lock_problems(cell, word)
            yield from self._input_problems(cell, word)
        elif files or cell.outputs[-1] in self.found:
            yield word.problem
        for path in files:
            said = (self.recorded.get(path) if word.problem else None) or word.of(path)
            if said not in (None, self.found[path]):
                yield Problem(path, str(said), self.found[path])

    def _word(self, cell: Cell) -> Word:
        if cell.directory not in self._words:
            self._words[cell.directory] = self._read(cell, cell.outputs[-1])
        return self._words[cell.directory]

    def _read(self, cell: Cell, path: str) -> Word:
        if path not in self.found:
            return Word({}, Problem(path, "the recipe of the files beside it", "nothing"))
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
        return Word(recipe, wrong)

    def _lock_problems(self, cell: Cell, word: Word) -> Iterator[Problem]:
        """A dvc.lock that agrees with the recipe's digest but not with what the recipe says."""
        by = dvc_files.pointer_of(cell) if cell.given else "dvc.lock"
        for path in cell.outputs[:-1]:
            if self.recorded.get(path) not in (None, word.of(path)):
                yield Problem(f"{by} entry of {path}", f"{word.of(path)} (its recipe)", self.recorded[path])

    def _input_problems(self, cell: Cell, word: Word) -> Iterator[Problem]:
        """Inputs that were other ones when the cell was made."""
        for path, used in word.recipe.get("inputs", {}).items():
            now = self._input_now(path)
            if now not in (None, used):
                yield Problem(cell.outputs[-1], f"{used} for its input {path}", f"{now} there now")

    def _input_now(self, path: str) -> str | None:
        """An input's digest by its maker's recipe; None where that is not there or is itself a problem."""
        maker = self.grid.maker(path)
        if maker is None or path.endswith(f"/{RECIPE}"):
            return self.found.get(path) if maker is None or self._word(maker).problem is None else None
        word = self._word(maker)
        return word.of(path) if word.problem is None else None


def verify(
    names: Sequence[str] = (),
    *,
    studies: Iterable[str] | None = None,
    cache: bool = True,
    selected: dict[str, Cell] | None = None,
) -> Verified:
    """Hash again what is there and hold it against the records.

    Args:
        names: targets (see `targets.select`); nothing means all, and then missing artifacts are no problem.
        studies: studies whose artifacts to look at; all that can be read if None.
        cache: also hash DVC's cache (of the named artifacts alone, if any are named).
        selected: the outputs to look at, instead of `names`.

    Raises:
        UserError: a name is unknown, or a dvc.lock cannot be read.
    """
    known = grid.load()
    names_of_studies = _studies(known, studies)
    outputs = selection.select(known, names, names_of_studies) if selected is None else selected
    recorded = dvc_files.recorded(known.studies.names)
    some = bool(names) or selected is not None
    wanted = [recorded[path] for path in outputs if path in recorded] if some else None
    cached = _cached(dvc_cache.root(), wanted) if cache else {}
    needed = _readable(known, outputs)
    found = _hash([*needed, *cached])
    done = Verified(cached=len(cached), size=sum(map(_size, {*needed, *cached})), found=found)
    verifier = Verifier(known, recorded, {path: found[path] for path in needed})
    _check_cells(outputs, verifier, done)
    if names:
        done.problems += _absent(outputs, names)
    done.problems += _cache_problems(cached, found, recorded)
    return done


def _studies(known: Grid, studies: Iterable[str] | None) -> list[str]:
    if studies is None:
        return known.studies.readable()
    names = list(studies)
    for name in names:
        known.studies.load(name)
    return names


def _readable(known: Grid, outputs: dict[str, Cell]) -> list[str]:
    """The outputs that are there, and what judging them needs: recipes of their makers, raw inputs."""
    paths = dict.fromkeys(outputs)
    for cell in selection.cells_of(outputs):
        for path in cell.inputs:
            maker = known.maker(path)
            paths[path if maker is None else maker.outputs[-1]] = None
    return [path for path in paths if os.path.exists(path)]


def _check_cells(outputs: dict[str, Cell], verifier: Verifier, done: Verified) -> None:
    files: dict[str, list[str]] = {}
    for path, cell in outputs.items():
        files.setdefault(cell.directory, []).append(path)
    for cell in selection.cells_of(outputs):
        here = [path for path in files[cell.directory] if path in verifier.found]
        done.files += len(here)
        done.artifacts += bool(here)
        done.missing += not here
        done.problems += verifier.problems(cell, here)


def _absent(outputs: dict[str, Cell], names: Sequence[str]) -> list[Problem]:
    """Named artifacts that are not there, and missing files of those that are in part."""
    missing = {path: cell.directory for path, cell in outputs.items() if not os.path.exists(path)}
    partly = {cell.directory for path, cell in outputs.items() if path not in missing}
    lines = dict.fromkeys(path if folder in partly else folder for path, folder in missing.items())
    return [Problem(path, f"to be here for {' '.join(names)}", "nothing") for path in lines]


def _cache_problems(cached: dict[str, str], found: dict[str, str], recorded: dict[str, str]) -> list[Problem]:
    outputs = {digest: path for path, digest in recorded.items()}
    return [
        Problem(path, name, found[path], about=outputs.get(name, "of no dvc.lock here"))
        for path, name in cached.items()
        if found[path] != name
    ]


# Against another revision


@dataclass
class Compared:
    """Artifacts here and in a revision's dvc.lock, by their directories."""

    revision: str
    identical: list[str] = field(default_factory=list)
    other_recipe: list[str] = field(default_factory=list)
    differing: dict[str, list[str]] = field(default_factory=dict)
    only_here: list[str] = field(default_factory=list)
    only_there: list[str] = field(default_factory=list)
    machines: list[str] | None = None
    """How this machine differs from the one that made the revision's artifacts; None where it left no receipts."""

    def lines(self) -> Iterator[str]:
        """What a person wants to read, the count last."""
        for cell, files in self.differing.items():
            yield f"differs: {cell} ({', '.join(files)})"
        for cell in self.other_recipe:
            yield f"same bytes, another recipe: {cell}"
        yield from (f"only here: {cell}" for cell in self.only_here)
        yield from (f"only in {self.revision}: {cell}" for cell in self.only_there)
        same = len(self.identical) + len(self.other_recipe)
        yield (
            f"{same} of {same + len(self.differing)} artifacts are byte-identical to those of {self.revision}"
            f"{f' ({len(self.other_recipe)} with another recipe)' if self.other_recipe else ''}; "
            f"{len(self.differing)} differ, {len(self.only_here)} only here, {len(self.only_there)} only there"
        )
        if self.machines is not None:
            yield (
                f"machines differ in {'; '.join(self.machines)}" if self.machines else "same machine type and versions"
            )


def against(revision: str, names: Sequence[str] = (), *, studies: Iterable[str] | None = None) -> Compared:
    """Hash again what is there and compare it with the dvc.lock files of a git revision.

    Raises:
        UserError: git does not know the revision, it has no dvc.lock, or a name is unknown.
    """
    known = grid.load()
    names_of_studies = _studies(known, studies)
    outputs = selection.select(known, names, names_of_studies)
    some = bool(names) or studies is not None
    there = {
        path: digest
        for path, digest in _recorded_at(revision, known.studies.names).items()
        if path in outputs or not (some or path.startswith(f"{cache_keys.FOLDER}/"))
    }
    here = _hash([path for path in outputs if os.path.exists(path)])
    compared = Compared(revision)
    folders: dict[str, list[str]] = {}
    for path in dict.fromkeys([*here, *there]):
        folders.setdefault(os.path.dirname(path), []).append(path)
    for folder, paths in folders.items():
        _compare(folder, paths, here, there, compared)
    compared.machines = _machines(revision, known.studies.names, {os.path.dirname(path) for path in here})
    return compared


def _machines(revision: str, studies: Iterable[str], cells: set[str]) -> list[str] | None:
    """How the machine that made these artifacts differs from the revision's, by the receipts of both."""
    theirs: dict[str, Any] = {}
    for study in studies:
        text = _git("show", f"{revision}:./{(PUBLISHED / study / RECEIPTS).as_posix()}")
        theirs |= json.loads(text) if text else {}
    ours = {cell: receipt for cell in cells if cell in theirs and (receipt := receipts.read(cell))}
    return receipts.differences(ours.values(), [theirs[cell] for cell in ours]) if ours else None


def _compare(folder: str, paths: list[str], here: dict[str, str], there: dict[str, str], compared: Compared) -> None:
    other = [os.path.basename(path) for path in paths if here.get(path, there.get(path)) != there.get(path)]
    if not any(path in there for path in paths):
        compared.only_here.append(folder)
    elif not any(path in here for path in paths):
        compared.only_there.append(folder)
    elif not other:
        compared.identical.append(folder)
    elif other == [RECIPE]:
        compared.other_recipe.append(folder)
    else:
        compared.differing[folder] = other


def _recorded_at(revision: str, studies: Iterable[str]) -> dict[str, str]:
    """Output path -> md5, by the dvc.lock files of a git revision."""
    _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", wrong=revision)
    readers = {dvc_files.lock_of(study).as_posix(): dvc_files.lock_digests for study in studies}
    pointers = _git("ls-tree", "--name-only", revision, f"./{dvc_files.IMPORTED}/").splitlines()
    readers |= {name: dvc_files.pointer_digests for name in pointers if name.endswith(".dvc")}
    digests: dict[str, str] = {}
    for name, read in readers.items():
        text = _git("show", f"{revision}:./{name}")
        try:
            digests |= read(text) if text else {}
        except ValueError as error:
            raise UserError(f"{name} of {revision} is {error}") from None
    if not digests:
        raise UserError(f"{revision} has no dvc.lock: nothing to compare with")
    return digests


def _git(*arguments: str, wrong: str | None = None) -> str:
    """What git says; if it fails: nothing, or UserError about the revision `wrong`."""
    try:
        ran = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("git is not installed; --against asks it for a revision's dvc.lock") from None
    if ran.returncode and wrong is not None:
        raise UserError(f"git knows no revision '{wrong}' here; see git log")
    return ran.stdout if not ran.returncode else ""
