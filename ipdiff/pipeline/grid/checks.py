"""What is wrong with a study, before anything runs: the same for every verb and both engines."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ipdiff.data.spec import READERS
from ipdiff.errors import ConfigError, UserError
from ipdiff.pipeline.config import Params
from ipdiff.pipeline.grid import Cell, Grid, selection
from ipdiff.pipeline.stages import STAGES


def broken(known: Grid, names: Iterable[str] | None = None) -> dict[str, str]:
    """Those of these studies (of all, if None) that cannot be made, and a line about each."""
    names = None if names is None else list(names)
    found = known.studies.broken(names)
    for name in known.studies.names if names is None else names:
        if name not in found and (line := _problem(known, name)) is not None:
            found[name] = line
    return found


def require(known: Grid, studies: Iterable[str]) -> None:
    """Raise ConfigError, with one line, for the first of these studies that cannot be made."""
    for line in broken(known, studies).values():
        raise ConfigError(line)


def targets(known: Grid, names: Sequence[str]) -> list[str]:
    """What these targets of a person mean: all studies that can be made if there are none, the others named on stderr.

    Raises:
        UserError: a target is none (see `selection.select`), or its study cannot be made.
    """
    if not names:
        wrong = broken(known)
        for line in wrong.values():
            print(f"ipdiff: left out: {line}", file=sys.stderr)
        return [study for study in known.studies.names if study not in wrong]
    require(known, sorted({known.of(cell).study for cell in selection.select(known, names).values()}))
    return list(names)


def require_labels(known: Grid, cell: Cell) -> None:
    """Raise ConfigError for a classifier that is to be trained on images without labels."""
    params = known.of(cell)
    if cell.stage is STAGES["classifier"] and (why := _unlabelled(params, name := cell.bindings["dataset"])):
        raise ConfigError(
            f"{params.path} datasets.{name}.features: classifier needs labels, and {why}; use inception, or "
            "torchscript for a network of your own (docs/metrics.md)"
        )


def notes(known: Grid, study: str) -> list[str]:
    """What is worth a line of a study that can be read: it has no tables, a data set that nothing shows."""
    params = known.studies.load(study)
    if not (params.tables or params.figures):
        return [f"{params.path}: no tables and no figures, so nothing is trained, drawn or measured"]
    read = {cell.bindings.get("dataset") for cell in known.study(study)}
    return [
        f"{params.path} datasets.{name}: no table and no figure shows it, so the study makes nothing of it"
        for name in params.datasets
        if name not in read
    ]


def _problem(known: Grid, study: str) -> str | None:
    """Why a study that can be read cannot be made, in one line that names all keys."""
    try:
        cells = known.study(study)
        known.studies.load(study).values(key for cell in cells for key in cell.params)
        for cell in cells:
            require_labels(known, cell)
    except UserError as error:
        return str(error)
    return None


def _unlabelled(params: Params, name: str) -> str | None:
    """Why a data set's images have no labels, as far as that can be known before they are read."""
    source = params.dataset(name).source
    if not READERS[source.reader].labelled:
        return f"images of the reader {source.reader} have none"
    if source.labels == "none":
        return "source.labels is none"
    if READERS[source.reader].own and source.raw is not None and Path(source.raw).is_dir():
        folders = [path for path in Path(source.raw).iterdir() if path.is_dir() and not path.name.startswith(".")]
        return None if folders else f"{source.raw} has no folders that could be labels"
    return None
