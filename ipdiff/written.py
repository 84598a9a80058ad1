"""Files that are written from params.yaml and the code, committed, and checked for freshness."""

from __future__ import annotations

from pathlib import Path

from ipdiff import configdoc, dvcfile
from ipdiff.grid import Grid


def expected(grid: Grid) -> dict[Path, str]:
    """Every written file and the text it should have."""
    files = {dvcfile.path_of(study): dvcfile.render(grid, study) for study in grid.params.studies}
    return {**files, configdoc.PATH: configdoc.render()}


def stale(grid: Grid) -> list[Path]:
    """The written files that are missing, differ from what they should be, or should not be there any more."""
    wrong = [path for path, text in expected(grid).items() if not path.exists() or path.read_text() != text]
    return [*wrong, *dvcfile.abandoned(grid.params.studies)]


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
