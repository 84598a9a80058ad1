"""Content-addressed artifacts: verify what is read, publish what is written in one step, recipe last.

An artifact is a directory with its files and a `recipe.json`, the commit marker: it names the digests (md5,
the same as in dvc.lock) of every input and output, the parameters and the code digest, and nothing volatile.
What is volatile (versions, hardware, seconds) goes into a receipt beside the project, under receipts/.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from ipdiff.errors import IntegrityError, UserError

RECIPE = "recipe.json"
STAGING = Path("work/staging")
RECEIPTS = Path("receipts")
_BLOCK = 1 << 20


def file_digest(path: Path) -> str:
    """md5 of a file's bytes (of a directory: of its sorted paths and their digests)."""
    if path.is_dir():
        lines = [f"{file_digest(p)} {p.relative_to(path).as_posix()}\n" for p in sorted(path.rglob("*")) if p.is_file()]
        return hashlib.md5("".join(lines).encode(), usedforsecurity=False).hexdigest()
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe at `path`; UserError if it is missing, IntegrityError if it is none."""
    try:
        recipe = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: that artifact has not been made (or pulled) yet") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise IntegrityError(path, "a JSON recipe", "something else") from None
    if not isinstance(recipe, dict) or not isinstance(recipe.get("outputs"), dict):
        raise IntegrityError(path, "a recipe that names its outputs", "other JSON")
    if recipe.get("digest") != (found := sealed(recipe)["digest"]):
        raise IntegrityError(path, str(recipe.get("digest")), found)
    return recipe


def sealed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with the md5 of its other fields: nothing else guards the parameters it hands on."""
    rest = {key: value for key, value in recipe.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True)
    return {**rest, "digest": hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()}


def verify_inputs(paths: tuple[str, ...], raw: Container[str] = ()) -> dict[str, str]:
    """Digest every input and hold it against the recipe beside it.

    Args:
        paths: files to read.
        raw: those of them that no cell makes: they have no recipe.

    Returns:
        path -> md5, in the order given.

    Raises:
        UserError: an input or its recipe (the commit marker of its artifact) is missing.
        IntegrityError: an input's bytes are not those its recipe names.
    """
    recipes: dict[Path, dict[str, Any]] = {}
    found: dict[str, str] = {}
    for name in paths:
        path = Path(name)
        if not path.exists():
            raise UserError(
                f"{name} is missing: make it (snakemake {name}, or dvc repro), or pull it; raw data has to be put there"
            )
        found[name] = file_digest(path)
        if path.name == RECIPE or name in raw:
            continue
        beside = path.parent / RECIPE
        if beside not in recipes:
            recipes[beside] = read_recipe(beside)
        expected = recipes[beside]["outputs"].get(path.name)
        if expected != found[name]:
            raise IntegrityError(path, str(expected), found[name])
    return found


@dataclass
class Publication:
    """An artifact in the making: write files into `staging`; `extra` goes into the recipe."""

    staging: Path
    extra: dict[str, Any] = field(default_factory=dict)


@contextmanager
def publishing(directory: Path, files: tuple[str, ...], recipe: Mapping[str, Any]) -> Iterator[Publication]:
    """Publish a cell's files: staged aside, flushed, renamed into `directory`, the recipe last.

    Nothing appears in `directory` when the block raises, or leaves one of `files` unwritten (RuntimeError: a
    mistake in the stage, not in its input).
    """
    STAGING.mkdir(parents=True, exist_ok=True)
    publication = Publication(Path(tempfile.mkdtemp(dir=STAGING)))
    started = time.monotonic()
    try:
        yield publication
        written = {name: publication.staging / name for name in files}
        if forgotten := [name for name, path in written.items() if not path.exists()]:
            raise RuntimeError(f"{directory}: the stage did not write {', '.join(forgotten)}; nothing was published")
        outputs = {name: file_digest(path) for name, path in written.items()}
        full = sealed({**recipe, **publication.extra, "outputs": outputs})
        written[RECIPE] = publication.staging / RECIPE
        written[RECIPE].write_text(json.dumps(full, indent=1, sort_keys=True) + "\n")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / RECIPE).unlink(missing_ok=True)
        for name, path in written.items():
            path.chmod(0o644)  # some writers choose 0600, which no colleague could read
            _flush(path)
            path.replace(directory / name)
        _flush(directory)
        write_receipt(directory, full, time.monotonic() - started)
    finally:
        shutil.rmtree(publication.staging, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_receipt(directory: Path, recipe: Mapping[str, Any], seconds: float) -> None:
    """Write receipts/{directory}.json: the recipe's digest with versions, hardware and seconds."""
    path = RECEIPTS / f"{directory}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    packages = ("torch", "numpy", "scipy", "snakemake", "dvc")
    receipt = {
        "recipe": file_digest(directory / RECIPE),
        "stage": recipe["stage"],
        "seconds": round(seconds, 3),
        "python": platform.python_version(),
        "versions": {name: version for name in packages if (version := _version(name))},
        "machine": platform.machine(),
        "system": platform.system(),
        "libc": " ".join(platform.libc_ver()),
        "cpu": _cpu(),
    }
    part = path.with_suffix(".part")
    part.write_text(json.dumps(receipt, indent=1, sort_keys=True) + "\n")
    part.replace(path)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
