"""The dvc.yaml of each study, written from the grid: templates over cells, tables with their exact metrics."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
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
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""What reads DVC's files: libyaml where PyYAML was built with it, which is ten times as fast."""
IMPORTED = Path("imported")
"""Where the .dvc files of imported checkpoints lie: git ignores what is under runs/."""


def path_of(study: str) -> Path:
    """Where a study's dvc.yaml lies: beside its params.yaml."""
    return config.path_of(study).with_name("dvc.yaml")


def abandoned(studies: Iterable[str]) -> list[Path]:
    """The dvc.yaml files here that were written for studies which are not among these; a person's own do not count."""
    kept = {path_of(study) for study in studies}
    there = [path_of(config.DEFAULT), *sorted(config.FOLDER.glob("*/dvc.yaml"))]
    others = [path for path in there if path not in kept and path.is_file()]
    return [path for path in others if path.read_bytes().startswith(WRITTEN.encode())]


def lock_of(study: str) -> Path:
    """Where DVC records a study's digests: beside its dvc.yaml."""
    return path_of(study).with_suffix(".lock")


def pointer_of(cell: Cell) -> Path:
    """The .dvc file that stands for an imported checkpoint. Names hold no dot, so no two cells share one."""
    names = cell.bindings
    return IMPORTED / f"{names['dataset']}.{names['model']}.s{names['seed']}.{names['step']}.dvc"


def recorded(studies: Iterable[str]) -> dict[str, str]:
    """Output path -> md5 by the dvc.lock files of these studies and by the .dvc files of imported checkpoints.

    Raises:
        UserError: a dvc.lock or a .dvc file cannot be read.
    """
    return {path: digest for path, (digest, _) in outputs(studies).items()}


def outputs(studies: Iterable[str]) -> dict[str, tuple[str, int]]:
    """`recorded`, with the bytes of each output beside its md5; raises like that."""
    paths = filter(Path.exists, (*map(lock_of, studies), *sorted(IMPORTED.glob("*.dvc"))))
    return outputs_in({path.as_posix(): path.read_bytes() for path in paths})


def digests_in(records: Mapping[str, bytes], revision: str | None = None) -> dict[str, str]:
    """Output path -> md5, as dvc.lock and .dvc files have them: their paths and contents, here or at a git revision.

    Raises:
        UserError: one is damaged.
    """
    return {path: digest for path, (digest, _) in outputs_in(records, revision).items()}


def outputs_in(records: Mapping[str, bytes], revision: str | None = None) -> dict[str, tuple[str, int]]:
    """`digests_in`, with the bytes of each output beside its md5; 0 where they are not recorded."""
    found: dict[str, tuple[str, int]] = {}
    for path, content in records.items():
        pointer = path.endswith(".dvc")
        try:
            data = yaml.load(content, Loader=LOADER)
            outs = data["outs"] if pointer else [o for each in data["stages"].values() for o in each.get("outs", [])]
            found |= {out["path"]: (str(out["md5"]), int(out.get("size", 0))) for out in outs}
        except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
            kind = ".dvc file" if pointer else "dvc.lock"
            remedy = f"restore it: git checkout {path}" if revision is None else f"that is so at {revision}"
            raise UserError(f"{path} is no {kind}: {type(error).__name__}; {remedy}") from None
    return found


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
    stages: dict[str, Any] = {SETTINGS: settings(cells, study)}
    order = {verb: i for i, verb in enumerate(STAGES)}
    ordered = sorted(cells, key=lambda cell: (order[cell.stage.verb], stage_name(cell)))
    for name, group in groupby(ordered, key=stage_name):
        stages[name] = _stage(list(group), study)
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
                "x": "step" if view.over_training else "nfe",
                "y": "mean",
                "x_label": "training steps" if view.over_training else "network evaluations an image",
                "y_label": view.metric,
                "template": "lines",
            }
        }
        for name, view in views
        if view.is_curve
    ]


def settings(cells: Sequence[Cell], study: str) -> dict[str, Any]:
    """The stage on whose files the cells depend instead of naming code and parameters; see `grid.cache_keys`.

    It reads the rooms, as a whole, of which any code counts: DVC asks it anew after an edit there, and what comes out
    decides about the cells.
    """
    root, keys = Path(__file__).parents[3], cache_keys.keys(cells)
    codes = {(cell.stage.module, cell.rows, cell.stage.runs) for cell in cells}
    files = {path.relative_to(root) for code in codes for path in code_files(*code)}
    return {
        "cmd": f"ipdiff settings --study {study}",
        "deps": sorted({Path(*file.parts[:2]).as_posix() for file in files}),
        "params": keys if study == config.DEFAULT else [{config.path_of(study).as_posix(): keys}],
        "outs": sorted({cache_keys.path_of(cell, study) for cell in cells}),
    }


def _body(stage: Stage, study: str, fill: Any, exact: Sequence[str] = ()) -> dict[str, Any]:
    body: dict[str, Any] = {"cmd": fill(stage.command)}
    body["deps"] = [*map(fill, stage.inputs), *exact, fill(cache_keys.template(stage, study))]
    # DVC looks for the metrics of every dvc.yaml, and calls those of studies that were never made faulty.
    metrics = [f"{stage.directory}/{name}" for name in stage.metrics if study == config.DEFAULT]
    body["outs"] = [fill(path) for path in stage.outputs if path not in metrics]
    if metrics:
        body["metrics"] = [fill(path) for path in metrics]
    return body


def _stage(cells: list[Cell], study: str) -> dict[str, Any]:
    """The stage of cells of one name: over all of them, or of the one that has inputs of its own."""
    first = cells[0]
    if first.exact_inputs:
        return _body(first.stage, study, first.fill, first.exact_inputs)
    items = {_key(cell): _Flow(cell.bindings) for cell in cells}
    if len(items) < len(cells):
        keys = [_key(cell) for cell in cells]
        twice = next(key for key in keys if keys.count(key) > 1)
        both = " and ".join(cell.directory for cell in cells if _key(cell) == twice)
        raise ConfigError(f"study {study}: {both} have the same address in DVC, {twice}; rename a data set or model")
    return {"foreach": items, "do": _body(first.stage, study, _item)}


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
