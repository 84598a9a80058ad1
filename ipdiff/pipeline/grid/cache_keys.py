"""What decides a cell besides the files it reads: a digest of its code, and its parameters, as a file.

Snakemake is told both by the grid. DVC's graph goes by files: one stage of each study, `settings`, writes them all, and
every cell depends on its own. (DVC parses params.yaml anew for each stage that names parameters, and runs a stage again
when a comment in its code has changed; with one such stage it does so once, and the cells see only what counts.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ipdiff.pipeline.grid import Cell, Grid
from ipdiff.pipeline.stages import Stage
from ipdiff.work.files import md5, write_whole

FOLDER = "settings"


def template(stage: Stage, study: str) -> str:
    """Where a stage's cells find their settings: a template of the names that decide them.

    One file for each study, because DVC allows an output in one dvc.yaml only.
    """
    named = set(stage.named)
    if named - set(stage.wildcards):
        named.add("model")  # it decides the rest: its family, its strength
    names = [name for name in stage.wildcards if name in named and name != "study"]
    deciding = [f"{{{name}}}" for name in (*names, *stage.decided_by)]
    return "/".join([FOLDER, study, stage.name, *deciding]) + ".json"


def path_of(cell: Cell, study: str) -> str:
    """The file of a cell's settings."""
    return cell.fill(template(cell.stage, study))


def text(code: str, params: Mapping[str, Any]) -> str:
    """The content of the file: JSON with sorted keys."""
    return json.dumps({"code": code, "params": params}, indent=1, sort_keys=True) + "\n"


def digest(code: str, params: Mapping[str, Any]) -> str:
    """md5 of `text`, as dvc.lock has it."""
    return md5(text(code, params).encode())


def texts(known: Grid, study: str) -> dict[str, str]:
    """Path -> content of all settings files of a study's cells, in the order of the paths.

    Raises:
        UserError: params.yaml does not write out a key that a cell needs.
    """
    of_each = {path_of(cell, study): cell for cell in known.study(study)}
    return {path: text(cell.code, known.param_values(cell)) for path, cell in sorted(of_each.items())}


def keys(cells: Iterable[Cell]) -> list[str]:
    """Keys of params.yaml that the settings of these cells are made of; none lies within another."""
    found = {key for cell in cells for key in cell.params}
    return sorted(key for key in found if not any(key.startswith(f"{other}.") for other in found))


def write(contents: Mapping[str, str]) -> list[Path]:
    """Write settings files that are not as they should be; returns the paths of all."""
    paths = []
    for name, content in contents.items():
        path = Path(name)
        if not path.exists() or path.read_text() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content.encode())  # never in place: the file may be a hard link into DVC's cache
        paths.append(path)
    return paths
