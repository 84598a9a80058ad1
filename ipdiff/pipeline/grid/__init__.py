"""The experiment grid: from the studies' tables to cells, each with its paths, command, inputs and parameters.

The only place that spells a path or a command. Snakemake's rules and the dvc.yaml files are both views of
it: a cell is a template (a `Stage`) and the names that fill it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from ipdiff.errors import ConfigError
from ipdiff.pipeline import config
from ipdiff.pipeline.config import Params, Studies
from ipdiff.pipeline.config.spec import Dataset
from ipdiff.report.spec import Figure, Point, Table
from ipdiff.sample_sets.spec import Sampler
from ipdiff.work.recipes import RECIPE


@dataclass(frozen=True)
class Stage:
    """A verb: templates of its directory, files, inputs, parameter keys and flags."""

    verb: str
    directory: str
    files: tuple[str, ...]
    wildcards: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    variant: str = ""

    @property
    def name(self) -> str:
        """The verb, or the variant's name: stages of one name have equal templates."""
        return self.variant or self.verb

    @property
    def outputs(self) -> tuple[str, ...]:
        """Every declared output, the recipe last."""
        return tuple(f"{self.directory}/{name}" for name in (*self.files, RECIPE))

    @property
    def command(self) -> str:
        """What both engines run."""
        return " ".join([f"ipdiff {self.verb}", *(f"--{name} {{{name}}}" for name in self.wildcards)])

    @property
    def log(self) -> str:
        """Where Snakemake keeps what a job says."""
        return f"logs/{self.directory}.log"

    def reading(self, variant: str, inputs: tuple[str, ...] = (), params: tuple[str, ...] = ()) -> Stage:
        """A variant of the stage that reads more."""
        return dataclasses.replace(
            self, variant=variant, inputs=(*self.inputs, *inputs), params=(*params, *self.params)
        )


_DATA = "data/{dataset}"
_FEATURES = "features/{dataset}"
_REFERENCE = "reference/{dataset}"
_NEIGHBOURS = "neighbours/{dataset}"
_RUN = "runs/{dataset}/{model}/s{seed}"
_SAMPLES = "samples/{dataset}/{model}/s{seed}/{step}/{sampler}"
_METRICS = "metrics/{dataset}/{model}/s{seed}/{step}/{sampler}"
_IMAGES = f"{_DATA}/images.npy"
_CLASSIFIER = f"{_FEATURES}/classifier.safetensors"
_SETTINGS = "datasets.{dataset}"
_FLOAT32 = (f"{_SETTINGS}.compute.device", f"{_SETTINGS}.compute.threads")
"""What feature networks compute on: their precision is float32 whatever `compute.precision` says."""

STAGES = {
    stage.verb: stage
    for stage in (
        Stage("prepare", _DATA, ("images.npy", "labels.npy"), ("dataset",), params=(f"{_SETTINGS}.source",)),
        Stage(
            "classifier",
            _FEATURES,
            ("classifier.safetensors", "accuracy.json"),
            ("dataset",),
            inputs=(_IMAGES, f"{_DATA}/labels.npy"),
            params=(f"{_SETTINGS}.classifier", *_FLOAT32),
        ),
        Stage(
            "reference",
            _REFERENCE,
            ("stats.npz",),
            ("dataset",),
            inputs=(_IMAGES,),
            params=_FLOAT32,
        ),
        Stage(
            "neighbours",
            _NEIGHBOURS,
            ("features.npy", "radii.npy"),
            ("dataset",),
            inputs=(_IMAGES,),
            params=_FLOAT32,
        ),
        Stage(
            "train",
            f"{_RUN}/{{step}}",
            ("ema.safetensors", "loss.csv"),
            ("dataset", "model", "seed", "step"),
            inputs=(_IMAGES,),
            params=(
                "models.{model}",
                "{strength}",
                *(f"{_SETTINGS}.families.{{family}}.{part}" for part in ("network", "diffusion", "training")),
                f"{_SETTINGS}.compute",
            ),
        ),
        Stage(
            "resume",
            "states/{dataset}/{model}/s{seed}/{step}",
            ("state.safetensors",),
            ("dataset", "model", "seed", "step"),
            inputs=(_IMAGES, f"{_RUN}/{{step}}/{RECIPE}"),
        ),
        Stage(
            "sample",
            _SAMPLES,
            ("samples.npz",),
            ("dataset", "model", "seed", "step", "sampler"),
            inputs=(f"{_RUN}/{{step}}/ema.safetensors", f"{_RUN}/{{step}}/{RECIPE}"),
            params=(
                f"{_SETTINGS}.sampling",
                *(f"{_SETTINGS}.families.{{family}}.{key}" for key in ("clip_denoised", "quantise")),
                f"{_SETTINGS}.compute",
            ),
        ),
        Stage(
            "evaluate",
            _METRICS,
            ("metrics.json",),
            ("dataset", "model", "seed", "step", "sampler"),
            inputs=(f"{_SAMPLES}/samples.npz", f"{_SAMPLES}/{RECIPE}", f"{_REFERENCE}/stats.npz"),
            params=_FLOAT32,
            metrics=("metrics.json",),
        ),
        Stage(
            "analyse",
            "analysis/{dataset}/{model}/s{seed}/{step}",
            ("errors.csv", "histogram.csv", "analysis.json"),
            ("dataset", "model", "seed", "step"),
            inputs=(f"{_RUN}/{{step}}/ema.safetensors", f"{_RUN}/{{step}}/{RECIPE}", _IMAGES),
            params=(f"{_SETTINGS}.analysis", f"{_SETTINGS}.compute"),
        ),
        Stage(
            "table",
            "tables/{study}/{table}",
            ("table.csv", "table.md", "table.tex"),
            ("study", "table"),
            params=("tables.{table}",),
        ),
        Stage(
            "figure",
            "figures/{study}/{figure}",
            ("figure.png", "figure.csv"),
            ("study", "figure"),
            params=("figures.{figure}",),
        ),
        Stage(
            "report", "report/{study}", ("index.html", "cards.html"), ("study",), params=("title", "seeds", "tables")
        ),
    )
}

IMPORT = Stage("import", f"{_RUN}/{{step}}", ("ema.safetensors",), ("dataset", "model", "seed", "step"))
"""A checkpoint that came from elsewhere, where a trained one would be. A user makes it, no engine does."""


CARDS = ("prepare", "train", "import", "sample", "evaluate")
"""Verbs whose recipes the report reads, to say where a number comes from."""


@dataclass(frozen=True)
class Cell:
    """One artifact of the grid: a stage, the names that fill its templates, and inputs of its own."""

    stage: Stage
    names: tuple[tuple[str, str], ...]
    exact_inputs: tuple[str, ...] = ()

    @cached_property
    def bindings(self) -> dict[str, str]:
        """Template name -> value."""
        return dict(self.names)

    def _fill(self, templates: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(template.format(**self.bindings) for template in templates)

    @property
    def directory(self) -> str:
        """Where its files are published; also the cell's name."""
        return self.stage.directory.format(**self.bindings)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Paths of its outputs, the recipe last."""
        return self._fill(self.stage.outputs)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Paths it reads."""
        return (*self._fill(self.stage.inputs), *self.exact_inputs)

    @property
    def params(self) -> tuple[str, ...]:
        """Keys of params.yaml that decide its bytes."""
        return self._fill(self.stage.params)

    @property
    def given(self) -> bool:
        """True for an imported checkpoint: the engines take its files as they are."""
        return self.stage is IMPORT

    @property
    def command(self) -> str:
        """The command that makes it."""
        return self.stage.command.format(**self.bindings)


class Grid:
    """Cells of all studies. Every cell can be asked for by its wildcards; studies list those they need."""

    def __init__(self, studies: Studies) -> None:
        """Cells of these studies; a study's file is read when a cell of it is asked for."""
        self.studies = studies

    def of(self, cell: Cell) -> Params:
        """The parameters that a cell is made with: its study's."""
        return self.studies.of(cell.bindings)

    def param_values(self, cell: Cell) -> dict[str, Any]:
        """The cell's parameters as they are written: what both engines compare."""
        return self.of(cell).values(cell.params)

    def cell(self, verb: str, **wildcards: str) -> Cell:
        """The cell of a verb.

        Raises:
            ConfigError: a wildcard names something that no params.yaml has.
        """
        stage = IMPORT if verb == IMPORT.verb else STAGES[verb]
        names = {name: str(wildcards[name]) for name in stage.wildcards}
        self.studies.of(names)
        if verb in ("table", "figure", "report"):
            return self._view_cell(stage, names)
        return getattr(self, f"_{verb}")(stage, names)

    def _dataset(self, names: dict[str, str]) -> Dataset:
        return self.studies.of(names).dataset(names["dataset"])

    def _prepare(self, stage: Stage, names: dict[str, str]) -> Cell:
        raw = self._dataset(names).source.raw
        return _cell(stage if raw is None else stage.reading("prepare_raw", ("{raw}",)), names, raw=raw)

    def _classifier(self, stage: Stage, names: dict[str, str]) -> Cell:
        return _cell(stage, names)

    def _reference(self, stage: Stage, names: dict[str, str]) -> Cell:
        return self._measuring(self._of_subset(stage, names), names)

    def _neighbours(self, stage: Stage, names: dict[str, str]) -> Cell:
        if not self._dataset(names).reference.neighbours:
            key = f"datasets.{names['dataset']}.reference.neighbours"
            raise ConfigError(f"{self.studies.of(names).path} {key}: not true, so there are none to measure")
        return self._measuring(self._of_subset(stage, names), names)

    def _of_subset(self, stage: Stage, names: dict[str, str]) -> Stage:
        """The variant that draws a subset of the real images, where the data set asks for one."""
        if self._dataset(names).reference.images is None:
            return stage
        keys = tuple(f"{_SETTINGS}.reference.{key}" for key in ("images", "seed"))
        return stage.reading(f"{stage.name}_subset", params=keys)

    def _measuring(self, stage: Stage, names: dict[str, str]) -> Cell:
        """The cell of a stage that looks at images through the data set's feature network."""
        dataset = self._dataset(names)
        if dataset.features == "classifier":
            return _cell(stage.reading(stage.name, (_CLASSIFIER,), (f"{_SETTINGS}.classifier",)), names)
        if (raw := dataset.inception.raw) is not None:
            return _cell(stage.reading(f"{stage.name}_raw_inception", ("{raw}",)), names, raw=raw)
        return _cell(stage.reading(f"{stage.name}_inception", params=(f"{_SETTINGS}.inception.sha256",)), names)

    def _import(self, stage: Stage, names: dict[str, str]) -> Cell:
        self._checked_steps(names)
        return _cell(stage, names)

    def _train(self, stage: Stage, names: dict[str, str]) -> Cell:
        self._checked_steps(names)
        self._check_trained(names)
        steps = self._dataset(names).checkpoints
        earlier = [step for step in steps if step < int(names["step"])]
        if earlier:
            stage = stage.reading("continue", (f"{_RUN}/{{previous}}/{RECIPE}",))
        return _cell(
            stage,
            names,
            family=self._family(names),
            strength=self._strength(names),
            previous=str(earlier[-1]) if earlier else None,
        )

    def _resume(self, stage: Stage, names: dict[str, str]) -> Cell:
        self._checked_steps(names)
        self._check_trained(names)
        return _cell(stage, names)

    def _sample(self, stage: Stage, names: dict[str, str]) -> Cell:
        self._checked_steps(names)
        sampler = self._checked_sampler(names)
        exposed = sampler.row.from_images
        return _cell(stage.reading("expose", (_IMAGES,)) if exposed else stage, names, family=self._family(names))

    def _evaluate(self, stage: Stage, names: dict[str, str]) -> Cell:
        self._checked_steps(names)
        self._checked_sampler(names)
        if self._dataset(names).reference.neighbours:
            near = tuple(f"{_NEIGHBOURS}/{name}" for name in ("features.npy", "radii.npy"))
            stage = stage.reading("evaluate_neighbours", near)
        return self._measuring(stage, names)

    def _analyse(self, stage: Stage, names: dict[str, str]) -> Cell:
        self._checked_steps(names)
        if self._dataset(names).analysis is None:
            path = self.studies.of(names).path
            raise ConfigError(f"{path} datasets.{names['dataset']}.analysis: missing key; analyse needs it")
        return _cell(stage, names)

    def _view_cell(self, stage: Stage, names: dict[str, str]) -> Cell:
        study = self.studies.load(names["study"])
        if stage.verb == "report":
            views = [("table", name) for name in study.tables] + [("figure", name) for name in study.figures]
            cells = [self.cell(kind, study=names["study"], **{kind: name}) for kind, name in views]
            drawn = [path for cell in cells for path in cell.outputs if not path.endswith(RECIPE)]
            stage = stage.reading(stage.name, params=tuple(key for key in ("note", "figures") if key in study.raw))
            return _cell(stage, names, exact=(*drawn, *self._recipes_behind(cells)))
        view = study.table(names["table"]) if stage.verb == "table" else study.figure(names["figure"])
        return _cell(stage, names, exact=tuple(dict.fromkeys(self._view_inputs(study, view))))

    def _view_inputs(self, study: Params, view: Table | Figure) -> Iterator[str]:
        """Files that a table or figure shows."""
        kind = view.kind if isinstance(view, Figure) else "table"
        if isinstance(view, Figure) and kind == "errors":
            for dataset, model, step in config.runs(study, view):
                for seed in study.seeds_of(model):
                    names = {"dataset": dataset, "model": model, "seed": str(seed), "step": str(step)}
                    yield self.cell("analyse", **names).outputs[0]
            return
        verb = "sample" if kind == "samples" else "evaluate"
        for point in config.points(study, view):
            for seed in study.seeds_of(point.model):
                yield self._point_cell(verb, point, seed).outputs[0]
                if view.paper is not None:
                    yield from self._recipes_of(point, seed)

    def _recipes_of(self, point: Point, seed: int) -> Iterator[str]:
        """What a figure is held against the paper's by: how it was measured, drawn, trained, and what with."""
        made = "import" if self.is_imported(point.dataset, point.model) else "train"
        names = {"dataset": point.dataset, "model": point.model, "seed": str(seed), "step": str(point.step)}
        cells = [self._point_cell(verb, point, seed) for verb in ("evaluate", "sample")]
        cells += [self.cell(verb, **names) for verb in (made, "reference", "prepare")]
        yield from (cell.outputs[-1] for cell in cells)

    def _recipes_behind(self, views: list[Cell]) -> list[str]:
        """Recipes of all that the numbers of tables and figures were made from: their cards."""
        found: dict[str, Cell] = {}
        for view in views:
            found |= {cell.directory: cell for cell in self.needed(view)}
        return [cell.outputs[-1] for cell in found.values() if cell.stage.verb in CARDS]

    def _point_cell(self, verb: str, point: Point, seed: int) -> Cell:
        return self.cell(
            verb, dataset=point.dataset, model=point.model, seed=str(seed), step=str(point.step), sampler=point.sampler
        )

    def _checked_steps(self, names: dict[str, str]) -> None:
        self.studies.of(names).family(names["dataset"], names["model"])
        for name in ("seed", "step"):
            if not re.fullmatch("0|[1-9][0-9]*", names[name]):
                raise ConfigError(f"{name} is '{names[name]}'; expected a whole number, without leading zeros")
        if int(names["seed"]) >= 2**64:
            raise ConfigError(f"seed is {names['seed']}; use 0..2**64-1")
        params = self.studies.of(names)
        if wrong := config.step_problem(params, names["dataset"], names["model"], int(names["step"])):
            raise ConfigError(f"step {wrong}")

    def _check_trained(self, names: dict[str, str]) -> None:
        if self.is_imported(names["dataset"], names["model"]):
            raise ConfigError(
                f"model {names['model']} is imported, not trained; get its checkpoint with `ipdiff import`"
            )

    def _checked_sampler(self, names: dict[str, str]) -> Sampler:
        try:
            return config.sampler_of(self.studies.of(names), names["dataset"], names["model"], names["sampler"])
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def _family(self, names: dict[str, str]) -> str:
        return self.studies.of(names).model(names["model"]).family

    def _strength(self, names: dict[str, str]) -> str:
        """The key of the strength that a model takes from its data set, or one that it has itself."""
        borrowed = self.studies.of(names).model(names["model"]).borrowed
        return f"datasets.{names['dataset']}.strengths.{borrowed[0]}" if borrowed else f"models.{names['model']}.family"

    def study(self, name: str) -> list[Cell]:
        """Every cell of a study that an engine makes, makers before users, without repeats."""
        return [cell for cell in self.needed(self.cell("report", study=name)) if not cell.given]

    def imports(self, study: str) -> list[Cell]:
        """The imported checkpoints a study reads."""
        return [cell for cell in self.needed(self.cell("report", study=study)) if cell.given]

    def needed(self, target: Cell) -> list[Cell]:
        """`target` and every cell it needs, makers before users; runs close with their `resume` cell.

        Imported checkpoints are among them.
        """
        found: dict[str, Cell] = {}

        def visit(cell: Cell) -> None:
            if cell.directory in found:
                return
            for path in cell.inputs:
                maker = self.maker(path)
                if maker is not None:
                    visit(maker)
            found[cell.directory] = cell

        visit(target)
        if target.stage.verb == "report":
            for cell in self._last_segments(list(found.values())):
                visit(self.cell("resume", **{name: cell.bindings[name] for name in STAGES["resume"].wildcards}))
        return list(found.values())

    @staticmethod
    def _last_segments(cells: list[Cell]) -> Iterator[Cell]:
        last: dict[str, Cell] = {}
        for cell in cells:
            if cell.stage.verb == "train":
                run = cell.directory.rpartition("/")[0]
                if run not in last or int(cell.bindings["step"]) > int(last[run].bindings["step"]):
                    last[run] = cell
        yield from last.values()

    def is_imported(self, dataset: str, model: str) -> bool:
        """True for a model whose checkpoints come from `ipdiff import`."""
        return self.studies.owner(dataset).model(model).imported

    def maker(self, path: str) -> Cell | None:
        """The cell that makes a file, or None for raw data."""
        return _maker(self, path)

    def targets(self, study: str) -> list[str]:
        """Files that stand for a whole study: its report and its runs' last states."""
        return [cell.outputs[0] for cell in self.study(study) if cell.stage.verb in ("report", "resume")]


@lru_cache(maxsize=100_000)
def _maker(grid: Grid, path: str) -> Cell | None:
    """Match a path against the stages' directories; names hold no slash, so the parts decide."""
    parts = path.split("/")
    for stage in (*STAGES.values(), IMPORT):
        template = stage.directory.split("/")
        if len(template) != len(parts) - 1 or parts[-1] not in (*stage.files, RECIPE):
            continue
        names: dict[str, str] = {}
        for pattern, part in zip(template, parts, strict=False):
            prefix, brace, name = pattern.partition("{")
            if not part.startswith(prefix) or (not brace and part != pattern):
                break
            if brace:
                names[name.rstrip("}")] = part[len(prefix) :]
        else:
            if stage.verb not in ("train", IMPORT.verb) or grid.is_imported(names["dataset"], names["model"]) == (
                stage is IMPORT
            ):
                return grid.cell(stage.verb, **names)
    return None


def _cell(stage: Stage, names: dict[str, str], exact: tuple[str, ...] = (), **more: str | None) -> Cell:
    filled = {**names, **{key: value for key, value in more.items() if value is not None}}
    if "raw" in filled:
        filled["raw"] = config.project_path(filled["raw"])
    return Cell(stage, tuple(filled.items()), exact)


def load(root: Path = Path()) -> Grid:
    """The grid of the project in this directory."""
    return Grid(Studies(root))
