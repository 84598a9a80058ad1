"""A study's numbers at a git revision and now, as a page: old, new, difference."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ipdiff.errors import IntegrityError, UserError
from ipdiff.pipeline import grid
from ipdiff.pipeline.commands.store import revisions
from ipdiff.pipeline.commands.store.in_git import PUBLISHED
from ipdiff.pipeline.engines import dvc_files
from ipdiff.pipeline.stages import STAGES
from ipdiff.pipeline.store import artifact, dvc_cache
from ipdiff.report.pages import against
from ipdiff.work import recipes
from ipdiff.work.recipes import RECIPE

FILE = STAGES["evaluate"].files[0]
Numbers = Mapping[str, Mapping[str, Any]]
"""Directory of an evaluation -> what its metrics file and its recipe say, as in published/STUDY/metrics.json."""


def compare(revision: str, study: str) -> list[str]:
    """Write report/STUDY/against.html; returns lines for a person, the page's path first.

    Numbers of now are those of the artifacts that are here, else of published/STUDY. Those of the revision are what its
    dvc.lock records, found in DVC's cache here, among the artifacts or in its published/STUDY.

    Raises:
        UserError: git does not know the revision, it has no numbers of the study, or there are none now.
        IntegrityError: a metrics file, its recipe or its copy in the cache is damaged.
    """
    known = grid.load()
    title = known.studies.load(study).title
    commit = revisions.commit_of(revision)
    here, now = _now(known, study)
    then, unknown = _then(commit, study, here, now)
    out = Path(STAGES["report"].directory.format(study=study))
    out.mkdir(parents=True, exist_ok=True)
    name = revision if commit.startswith(revision) else f"{revision} ({commit[:12]})"
    said = against.run(title, name, then, now, unknown, out)
    return [f"{out}/against.html", *said]


def _now(known: grid.Grid, study: str) -> tuple[dict[str, str], Numbers]:
    """The md5 of each metrics file that is here, and the numbers of a study."""
    shown = [cell for cell in known.study(study) if cell.stage.verb == "evaluate"]
    path = PUBLISHED / study / FILE
    published = _parsed(path.read_bytes(), str(path)) if path.exists() else {}
    files = {cell.directory: Path(cell.outputs[0]) for cell in shown}
    here = {directory: file for directory, file in files.items() if file.exists()}
    now = {
        directory: _with_words(here[directory], here[directory].with_name(RECIPE))
        if directory in here
        else published[directory]
        for directory in files
        if directory in here or directory in published
    }
    if not now:
        raise UserError(f"study {study} has no metrics here and no {path}; make it, or `ipdiff pull --metrics-only`")
    return {directory: artifact.file_digest(file) for directory, file in here.items()}, now


def _then(commit: str, study: str, here: Mapping[str, str], now: Numbers) -> tuple[Numbers, int]:
    """The numbers of a commit, and of how many evaluations they are recorded but not to be found."""
    path = (PUBLISHED / study / FILE).as_posix()
    text = revisions.text_of(commit, path)
    published = _parsed(text, f"{path} at {commit[:12]}") if text else {}
    digests = revisions.recorded(commit, [study])
    folder = re.sub(r"\{\w+\}", "[^/]+", STAGES["evaluate"].directory)
    locked = [path.removesuffix(f"/{FILE}") for path in digests if re.fullmatch(f"{folder}/{FILE}", path)]
    if not locked and not published:
        lock = dvc_files.lock_of(study)
        raise UserError(f"{commit[:12]} has no metrics in {lock} and no {path}: nothing to compare with")
    cache = dvc_cache.root()
    found: dict[str, Mapping[str, Any]] = {}
    for directory in locked or published:
        digest = digests.get(f"{directory}/{FILE}")
        file, recipe = (_cached(cache, digests.get(f"{directory}/{name}")) for name in (FILE, RECIPE))
        if file is not None:
            found[directory] = _with_words(file, recipe)
        elif digest is not None and digest == here.get(directory):
            found[directory] = now[directory]
        elif directory in published:
            found[directory] = published[directory]
    return found, len(locked or published) - len(found)


def _cached(cache: Path, digest: str | None) -> Path | None:
    """A file of DVC's cache, if it is there and is what it is named by."""
    path = dvc_cache.path_in(cache, digest) if digest else None
    if path is None or not path.exists():
        return None
    if (got := artifact.file_digest(path)) != digest:
        raise IntegrityError(path, str(digest), got)
    return path


def _with_words(file: Path, recipe: Path | None) -> Mapping[str, Any]:
    words = recipes.read(recipe).get("measured", {}) if recipe is not None and recipe.exists() else {}
    return {**words, **_parsed(file.read_bytes(), str(file))}


def _parsed(text: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{where} is no JSON object; make or restore it")
    return found
