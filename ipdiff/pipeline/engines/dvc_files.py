"""The dvc.yaml of each study, written from the grid: templates over cells, tables with their exact metrics."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from ipdiff.errors import ConfigError, UserError
from ipdiff.pipeline import config
from ipdiff.pipeline.grid import Cell, Grid, cache_keys
from ipdiff.pipeline.stages import STAGES, Stage
from ipdiff.pipeline.store.code_digests import code_files

WRITTEN = "# Written by `ipdiff grid --write`"
HEADER = f"""\
{WRITTEN} from {{params}} and ipdiff/pipeline/grid; do not edit.
# Study: {{study}}. {{count}} cells. `dvc repro` makes them one after another, `snakemake {{study}}` in parallel.
"""
SETTINGS = "settings"
"""The stage that writes what decides cells besides the files they read."""
IMPORTED = Path("imported")
"""Where the .dvc files of imported checkpoints lie: git ignores what is under runs/."""


def path_of(study: str) -> Path:
    """Where a study's dvc.yaml lies: beside its params.yaml."""
    return config.path_of(study).with_name("dvc.yaml")


def abandoned(studies: Iterable[str]) -> list[Path]:
    """The dvc.yaml files here that were written for studies which are not among these; a person's own do not count.

    Those under workflow/ are where other studies' lay before each was a folder.
    """
    kept = {path_of(study) for study in studies}
    folders = [config.FOLDER, Path("workflow")]
    there = [path_of(config.DEFAULT), *(path for folder in folders for path in sorted(folder.glob("*/dvc.yaml")))]
    return [path for path in there if path not in kept and path.is_file() and _is_written(path)]


def _is_written(path: Path) -> bool:
    return path.read_bytes().startswith(WRITTEN.encode())


def lock_of(study: str) -> Path:
    """Where DVC records a study's digests: beside its dvc.yaml."""
    return path_of(study).with_suffix(".lock")


def lock_entries(text: str) -> dict[str, Any]:
    """The stages of a dvc.lock; ValueError if the text is none."""
    try:
        data = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return dict(data["stages"])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"no dvc.lock: {type(error).__name__}") from None


def lock_digests(text: str) -> dict[str, str]:
    """Output path -> md5, as a dvc.lock has them; ValueError if the text is none."""
    try:
        outs = [out for entry in lock_entries(text).values() for out in entry.get("outs", [])]
        return {out["path"]: str(out["md5"]) for out in outs}
    except (AttributeError, KeyError, TypeError):
        raise ValueError("no dvc.lock: an entry is damaged") from None


def pointer_of(cell: Cell) -> Path:
    """The .dvc file that stands for an imported checkpoint. Names hold no dot, so no two cells share one."""
    names = cell.bindings
    return IMPORTED / f"{names['dataset']}.{names['model']}.s{names['seed']}.{names['step']}.dvc"


def pointer_digests(text: str) -> dict[str, str]:
    """Output path -> md5, as a .dvc file has them; ValueError if the text is none."""
    try:
        return {out["path"]: str(out["md5"]) for out in yaml.safe_load(text)["outs"]}
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"no .dvc file: {type(error).__name__}") from None


def recorded(studies: Iterable[str]) -> dict[str, str]:
    """Output path -> md5 by the dvc.lock files of these studies and by the .dvc files of imported checkpoints.

    Raises:
        UserError: a dvc.lock or a .dvc file cannot be read.
    """
    digests: dict[str, str] = {}
    for lock in filter(Path.exists, map(lock_of, studies)):
        try:
            digests |= lock_digests(lock.read_text())
        except ValueError as error:
            raise UserError(f"{lock} is {error}; restore it: git checkout {lock}") from None
    for pointer in sorted(IMPORTED.glob("*.dvc")):
        try:
            digests |= pointer_digests(pointer.read_text())
        except ValueError as error:
            raise UserError(f"{pointer} is {error}; restore it: git checkout {pointer}") from None
    return digests


def stage_name(cell: Cell) -> str:
    """The DVC stage (before @) of a cell: its stage's variant, for DVC wants one template of deps and params."""
    verb = cell.stage.verb
    return f"{verb}_{cell.bindings[verb]}" if verb in ("table", "figure") else cell.stage.name


def address(cell: Cell) -> str:
    """The cell's address for `dvc repro`, without the dvc.yaml's path: `sample@digits-adm-s0-3000-ancestral-20`.

    An imported checkpoint's is its .dvc file.
    """
    if cell.given:
        return pointer_of(cell).as_posix()
    name = stage_name(cell)
    return name if cell.exact_inputs else f"{name}@{_key(cell)}"


def _key(cell: Cell) -> str:
    return "-".join(("s" if name == "seed" else "") + cell.bindings[name] for name in cell.stage.wildcards)


def render(grid: Grid, study: str) -> str:
    """The text of a study's dvc.yaml."""
    cells = grid.study(study)
    stages: dict[str, Any] = {}
    stages[SETTINGS] = _settings(cells, study)
    order = {verb: i for i, verb in enumerate(STAGES)}
    ordered = sorted(cells, key=lambda cell: (order[cell.stage.verb], stage_name(cell)))
    for name, group in groupby(ordered, key=stage_name):
        members = list(group)
        stages[name] = _exact(members[0], study) if members[0].exact_inputs else _foreach(members, study)
    if path_of(study).parent != Path():
        for stage in stages.values():
            stage.get("do", stage)["wdir"] = "../.."
    content = {"stages": stages, "plots": _plots(grid, study)}
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=200, default_flow_style=False)
    return HEADER.format(params=config.path_of(study), study=study, count=len(cells)) + text


def _plots(grid: Grid, study: str) -> list[dict[str, Any]]:
    """What `dvc plots` draws: the numbers of the study's line figures, one colour a model (.dvc/plots/lines.json)."""
    up = Path(*[".."] * len(path_of(study).parent.parts))  # plots, unlike stages, know no wdir
    views = grid.studies.load(study).figures.items()
    return [
        {
            (up / "figures" / study / name / "figure.csv").as_posix(): {
                "title": view.title,
                "x": "step" if view.x == "step" else "nfe",
                "y": "mean",
                "x_label": "training steps" if view.x == "step" else "network evaluations an image",
                "y_label": view.metric,
                "template": "lines",
            }
        }
        for name, view in views
        if view.kind == "lines"
    ]


def _settings(cells: Sequence[Cell], study: str) -> dict[str, Any]:
    """The stage on whose files the cells depend instead of naming code and parameters; see `grid.cache_keys`."""
    root, keys = Path(__file__).parents[3], cache_keys.keys(cells)
    codes = {(cell.stage.module, cell.rows, cell.stage.runs) for cell in cells}
    files = {path for code in codes for path in code_files(*code)}
    return {
        "cmd": f"ipdiff settings --study {study}",
        "deps": sorted(path.relative_to(root).as_posix() for path in files),
        "params": keys if study == config.DEFAULT else [{config.path_of(study).as_posix(): keys}],
        "outs": sorted({cache_keys.path_of(cell, study) for cell in cells}),
    }


def _body(stage: Stage, study: str, fill: Any, exact: Sequence[str] = ()) -> dict[str, Any]:
    body: dict[str, Any] = {"cmd": fill(stage.command)}
    body["deps"] = [*map(fill, stage.inputs), *exact, fill(cache_keys.template(stage, study))]
    metrics = [f"{stage.directory}/{name}" for name in stage.metrics]
    body["outs"] = [fill(path) for path in stage.outputs if path not in metrics]
    if metrics:
        body["metrics"] = [fill(path) for path in metrics]
    return body


def _exact(cell: Cell, study: str) -> dict[str, Any]:
    return _body(cell.stage, study, lambda text: text.format(**cell.bindings), cell.exact_inputs)


def _foreach(cells: list[Cell], study: str) -> dict[str, Any]:
    items = {_key(cell): _Flow(cell.bindings) for cell in cells}
    if len(items) < len(cells):
        keys = [_key(cell) for cell in cells]
        twice = next(key for key in keys if keys.count(key) > 1)
        both = " and ".join(cell.directory for cell in cells if _key(cell) == twice)
        raise ConfigError(f"study {study}: {both} have the same address in DVC, {twice}; rename a data set or model")
    return {"foreach": items, "do": _body(cells[0].stage, study, _item)}


def _item(template: str) -> str:
    return re.sub(r"\{(\w+)\}", r"${item.\1}", template)


class _Flow(dict[str, str]):
    """A mapping written on one line."""


class _Dumper(yaml.SafeDumper):
    """Block style, one-line cells, no anchors (they would turn a one-line edit into hundreds)."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    _Flow, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data, flow_style=True)
)
