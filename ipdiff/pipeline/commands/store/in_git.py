"""published/store: a small DVC remote inside the repository, so that a clone can pull without any server.

It keeps a part of what the dvc.lock files of the published studies record: every recipe, the results (metrics, tables,
figures, report), the last checkpoint of each training, and what else `Stage.stored` names. Data, train states and
sample sets are left out, as is any file above 16 MB: they are large, or made again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ipdiff.errors import UserError
from ipdiff.pipeline.engines import dvc_files
from ipdiff.pipeline.grid import Cell, Grid, cache_keys, selection
from ipdiff.pipeline.store import artifact, dvc_cache

PUBLISHED = Path("published")
"""What git keeps of the studies, a folder each."""
STORE = PUBLISHED / "store"
REMOTE = "published"
"""Its name as a DVC remote, in .dvc/config. It is never the default remote, to which `dvc push` sends everything."""
LIMIT = 32_000_000
"""Bytes that it may hold: every clone gets them."""
LARGEST = 16_000_000
"""Bytes above which a file is left out, such as the features of all images of a large data set."""
_OBJECTS = STORE / "files" / "md5"


def studies(known: Grid) -> list[str]:
    """The studies that are published."""
    return [name for name in known.studies.names if (PUBLISHED / name / "metrics.json").is_file()]


def part(known: Grid, study: str) -> list[str]:
    """The outputs of a study that the store keeps, and the settings on which DVC's stages depend."""
    cells = known.study(study)
    made = {path: cell for cell in cells for path in cell.outputs}
    last: dict[tuple[str, ...], int] = {}
    for cell in made.values():
        last[_run(cell)] = max(last.get(_run(cell), 0), _step(cell))
    stored = {path: cell for path, cell in made.items() if cell.stage.stored and _step(cell) == last[_run(cell)]}
    settings = (cache_keys.path_of(cell, study) for cell in cells)
    return list(dict.fromkeys([*stored, *selection.results(made), *settings]))


def outputs(known: Grid, studies: Iterable[str]) -> dict[str, str]:
    """Output path -> md5 of what the store is to keep of these studies, by their dvc.lock files.

    Raises:
        UserError: a dvc.lock cannot be read.
    """
    studies = list(studies)
    wanted = {path for study in studies for path in part(known, study)}
    recorded = dvc_files.outputs(studies).items()
    return {path: digest for path, (digest, size) in recorded if path in wanted and size <= LARGEST}


def _run(cell: Cell) -> tuple[str, ...]:
    return cell.stage.verb, *(cell.bindings.get(name, "") for name in ("dataset", "model", "seed", "sampler"))


def _step(cell: Cell) -> int:
    return int(cell.bindings.get("step", 0))


@dataclass(frozen=True)
class Plan:
    """What the store is to hold.

    Attributes:
        studies: whose artifacts.
        sources: digest -> a file with these bytes.
        size: bytes in all.
    """

    studies: list[str]
    sources: Mapping[str, Path]
    size: int


def plan(known: Grid, names: Iterable[str], limit: int = LIMIT) -> Plan:
    """Find what the store is to hold for these studies; nothing is written.

    Raises:
        UserError: a dvc.lock cannot be read, an object is nowhere here, or they are larger than `limit` bytes.
    """
    chosen = list(dict.fromkeys(names))
    wanted = {digest: path for path, digest in outputs(known, chosen).items()}
    cache = dvc_cache.root()
    sources = {digest: _source(digest, path, cache) for digest, path in wanted.items()}
    sizes = {digest: source.stat().st_size for digest, source in sources.items()}
    if (size := sum(sizes.values())) > limit:
        largest = max(sizes, key=sizes.__getitem__)
        raise UserError(
            f"{STORE} would hold {_mb(size)} ({', '.join(chosen)}; the largest file is {wanted[largest]}, "
            f"{_mb(sizes[largest])}); at most {_mb(limit)} go into git: use another DVC remote for such a study"
        )
    return Plan(chosen, sources, size)


def _source(digest: str, path: str, cache: Path) -> Path:
    """A file with the recorded bytes: in DVC's cache, in the workspace, or already in the store."""
    places = (dvc_cache.path_in(cache, digest), Path(path), dvc_cache.path_in(_OBJECTS, digest))
    for place in places:
        if place.is_file() and artifact.file_digest(place) == digest:
            return place
    raise UserError(f"{path}: what dvc.lock records ({digest}) is not here; make the study or pull it first")


def write(planned: Plan) -> str:
    """Make the store hold what was planned and nothing else; returns a line about it. Idempotent."""
    new = 0
    kept = {dvc_cache.path_in(_OBJECTS, digest): digest for digest in planned.sources}
    for path, digest in kept.items():
        source = planned.sources[digest]
        if source != path and not (path.is_file() and artifact.file_digest(path) == digest):
            path.parent.mkdir(parents=True, exist_ok=True)
            part_of = path.with_name(f".{path.name}.part")
            shutil.copyfile(source, part_of)
            part_of.replace(path)
            new += 1
    others = [path for path in STORE.rglob("*") if path.is_file() and path not in kept]
    for path in others:
        path.unlink()
    for folder in sorted((path for path in STORE.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    return (
        f"{STORE}: {len(kept)} files, {_mb(planned.size)} of at most {_mb(LIMIT)} ({', '.join(planned.studies)}); "
        f"{new} new, {len(others)} dropped"
    )


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


# As a remote


def is_fallback() -> bool:
    """Whether a pull that names no remote takes the store: there is one here, and no default remote is set."""
    from dvc.config import Config

    config = Config(dvc_dir=".dvc")
    return config["core"].get("remote") is None and REMOTE in config["remote"] and _OBJECTS.is_dir()


def has(digest: str) -> bool:
    """Whether the store keeps an object."""
    return dvc_cache.path_in(_OBJECTS, digest).is_file()
