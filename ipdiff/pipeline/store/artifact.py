"""Content-addressed artifacts: verify what is read, publish what is written in one step, recipe last.

An artifact is a directory with its files and a `recipe.json`, the commit marker: it names the digests (md5,
the same as in dvc.lock) of every input and output, the parameters and the code digest, and nothing volatile.
What is volatile (versions, hardware, seconds) goes into a receipt beside the project, under receipts/.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ipdiff.errors import IntegrityError, UserError
from ipdiff.pipeline.store import receipts
from ipdiff.work import recipes
from ipdiff.work.files import flush, md5_of, md5_of_folder
from ipdiff.work.locks import locked_if_free
from ipdiff.work.recipes import RECIPE

STAGING = Path("work/staging")
LOCKS = Path("work/locks")


def file_digest(path: Path) -> str:
    """The digest that DVC gives a file or a directory."""
    return md5_of_folder(path) if path.is_dir() else md5_of(path)


def verify_inputs(paths: tuple[str, ...], raw: str | None = None) -> dict[str, str]:
    """Digest every input and hold it against the recipe beside it.

    Args:
        paths: files to read.
        raw: the one of them that no cell makes: it has no recipe.

    Returns:
        path -> md5, in the order given.

    Raises:
        UserError: an input or its recipe (the commit marker of its artifact) is missing, or cannot be read.
        IntegrityError: an input's bytes are not those its recipe names.
    """
    known: dict[Path, dict[str, Any]] = {}
    found: dict[str, str] = {}
    for name in paths:
        path = Path(name)
        if not path.exists():
            raise UserError(
                f"{name} is missing: make it (snakemake {name}, or dvc repro), or pull it; raw data has to be put there"
            )
        try:
            found[name] = file_digest(path)
        except OSError as error:
            raise UserError(f"{error.filename or name}: cannot be read: {error.strerror or error}") from None
        if path.name == RECIPE or name == raw:
            continue
        beside = path.parent / RECIPE
        if beside not in known:
            known[beside] = recipes.read(beside)
        expected = known[beside]["outputs"].get(path.name)
        if expected != found[name]:
            raise IntegrityError(path, str(expected), found[name])
    return found


@dataclass
class Publication:
    """An artifact in the making: write files into `staging`; `extra` goes into the recipe, `execution` the receipt.

    `afterwards` is for the caller to call when all is published: what was saved on the way can go.
    """

    staging: Path
    extra: dict[str, Any] = field(default_factory=dict)
    execution: dict[str, Any] = field(default_factory=dict)
    afterwards: Callable[[], None] = lambda: None


def lock_of(directory: Path) -> Path:
    """The lock to hold while an artifact is made."""
    return LOCKS / f"{_flat(directory)}.lock"


def _flat(directory: Path) -> str:
    return directory.as_posix().replace("/", "@")  # no name of the grid holds an @


@contextmanager
def publishing(directory: Path, files: tuple[str, ...], recipe: Mapping[str, Any]) -> Iterator[Publication]:
    """Publish a cell's files: staged aside, flushed, renamed into `directory`, the recipe last.

    The caller holds `lock_of(directory)`: what an earlier process left in the staging area is removed. Nothing
    appears in `directory` when the block raises, or leaves one of `files` unwritten (RuntimeError: a mistake
    in the stage, not in its input).
    """
    STAGING.mkdir(parents=True, exist_ok=True)
    _sweep(directory)
    publication = Publication(Path(tempfile.mkdtemp(prefix=f"{_flat(directory)}@@", dir=STAGING)))
    started = time.monotonic()
    try:
        yield publication
        written = {name: publication.staging / name for name in files}
        if forgotten := [name for name, path in written.items() if not path.exists()]:
            raise RuntimeError(f"{directory}: the stage did not write {', '.join(forgotten)}; nothing was published")
        outputs = {name: file_digest(path) for name, path in written.items()}
        full = recipes.sealed({**recipe, **publication.extra, "outputs": outputs})
        (publication.staging / RECIPE).write_text(json.dumps(full, indent=1, sort_keys=True) + "\n")
        _commit(publication.staging, directory, files)
        digest = file_digest(directory / RECIPE)
        seconds = time.monotonic() - started
        receipts.write(directory, recipe=digest, stage=full["stage"], seconds=seconds, execution=publication.execution)
    finally:
        shutil.rmtree(publication.staging, ignore_errors=True)


def _sweep(directory: Path) -> None:
    """Remove what killed stages left half-made: this artifact's, and that of every other whose lock is free."""
    for orphan in (*STAGING.glob(f"{_flat(directory)}@@*"), *directory.glob(".*.part")):
        shutil.rmtree(orphan) if orphan.is_dir() else orphan.unlink()
    for staged in STAGING.glob("*@@*"):
        with locked_if_free(LOCKS / f"{staged.name.partition('@@')[0]}.lock") as free:
            if free:
                shutil.rmtree(staged, ignore_errors=True)  # another stage may be sweeping, too


def _commit(staging: Path, directory: Path, files: tuple[str, ...]) -> None:
    """Move files and recipe into `directory` so that at any instant, power cuts included, a recipe means: whole."""
    for name in (*files, RECIPE):
        (staging / name).chmod(0o644)  # some writers choose 0600, which no colleague could read
        flush(staging / name)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / RECIPE).unlink(missing_ok=True)
    flush(directory)
    for name in files:
        _move(staging / name, directory / name)
    flush(directory)
    _move(staging / RECIPE, directory / RECIPE)
    for path in (directory, *directory.parents):  # entries of directories that were made just now as well
        flush(path)


def _move(path: Path, final: Path) -> None:
    """Give a flushed file its name in one step, also where work/ and the artifacts are on different file systems."""
    try:
        path.replace(final)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        part = final.with_name(f".{final.name}.part")
        try:
            shutil.copy(path, part)
            flush(part)
            part.replace(final)
        finally:
            part.unlink(missing_ok=True)


def is_published(directory: Path, recipe: Mapping[str, Any]) -> bool:
    """Whether an artifact of this recipe (inputs, parameters, code) is there, whole and undamaged."""
    try:
        found = recipes.read(directory / RECIPE)
        outputs = {name: file_digest(directory / name) for name in found["outputs"]}
    except (UserError, IntegrityError, FileNotFoundError):
        return False
    return outputs == found["outputs"] and all(found.get(key) == value for key, value in recipe.items())
