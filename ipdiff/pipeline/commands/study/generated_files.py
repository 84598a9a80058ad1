"""Files that are written from the studies' params.yaml and the code, committed, and checked for freshness."""

from __future__ import annotations

from pathlib import Path

from ipdiff.pipeline.config import reference, schema
from ipdiff.pipeline.engines import dvc_files
from ipdiff.pipeline.grid import Grid, checks


def expected(grid: Grid) -> dict[Path, str]:
    """Every written file and the text it should have; none for a study that cannot be made."""
    broken = checks.broken(grid)
    good = [study for study in grid.studies.names if study not in broken]
    files = {dvc_files.path_of(study): dvc_files.render(grid, study) for study in good}
    return {**files, reference.PATH: reference.render(), schema.PATH: schema.render()}


def stale(grid: Grid) -> list[Path]:
    """The written files that are missing, differ from what they should be, or should not be there any more."""
    wrong = [path for path, text in expected(grid).items() if not path.exists() or path.read_text() != text]
    return [*wrong, *dvc_files.abandoned(grid.studies.names)]


def write(grid: Grid) -> list[Path]:
    """Write the files that are stale, remove those that should not be there any more; return both."""
    texts = expected(grid)
    paths = stale(grid)
    for path in paths:
        if path not in texts:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[path])
    return paths
