"""The experiment grid: from the studies' tables to cells, each with its paths, command, inputs and parameters.

Snakemake's rules and the dvc.yaml files are both views of it: a cell is a template (a `Stage`) and the names that fill
it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ipdiff.errors import ConfigError, brief
from ipdiff.metrics.spec import FEATURES, METRICS
from ipdiff.pipeline import config
from ipdiff.pipeline.config import Params, Studies
from ipdiff.pipeline.config.spec import Dataset
from ipdiff.pipeline.stages import IMAGES, IMPORT, NEIGHBOURS, RUN, SETTINGS, STAGES, START, Stage
from ipdiff.pipeline.store.code_digests import Rows, code_digest
from ipdiff.report.spec import FIGURES, Figure, Point, Table
from ipdiff.sample_sets.spec import Sampler
from ipdiff.work.recipes import RECIPE


@dataclass(frozen=True)
class Cell:
    """One artifact of the grid: a stage, the names that fill its templates, and inputs of its own."""

    stage: Stage
    names: tuple[tuple[str, str], ...]
    exact_inputs: tuple[str, ...] = ()
    rows: Rows = ()

    @cached_property
    def bindings(self) -> dict[str, str]:
        """Template name -> value."""
        return dict(self.names)

    def fill(self, template: str) -> str:
        """A template of its stage with its names."""
        return template.format(**self.bindings)

    @cached_property
    def directory(self) -> str:
        """Where its files are published; also the cell's name."""
        return self.fill(self.stage.directory)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Paths of its outputs, the recipe last."""
        return tuple(map(self.fill, self.stage.outputs))

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Paths it reads."""
        return (*map(self.fill, self.stage.inputs), *self.exact_inputs)

    @cached_property
    def params(self) -> tuple[str, ...]:
        """Keys of params.yaml that decide its bytes."""
        return tuple(map(self.fill, self.stage.params))

    @property
    def code(self) -> str:
        """Digest of the code that decides its bytes."""
        return code_digest(self.stage.module, self.rows, self.stage.runs)

    @property
    def given(self) -> bool:
        """True for an imported checkpoint: the engines take its files as they are."""
        return self.stage is IMPORT

    @property
    def command(self) -> str:
        """The command that makes it."""
        return self.fill(self.stage.command)


class Grid:
    """Cells of all studies. Every cell can be asked for by its wildcards; studies list those they need."""

    def __init__(self, studies: Studies) -> None:
        """Cells of these studies; a study's file is read when a cell of it is asked for."""
        self.studies = studies
        self.maker = cache(self._maker)
        self._cells: dict[tuple[str, ...], Cell] = {}
        self._behind_report = cache(lambda study: self.needed(self.cell("report", study=study)))

    def of(self, cell: Cell) -> Params:
        """The parameters that a cell is made with: its study's."""
        return self.studies.of(cell.bindings)

    def param_values(self, cell: Cell) -> dict[str, Any]:
        """The cell's parameters as they are written: what both engines compare.

        Raises:
            UserError: the file does not write out some key; all are named that its study needs.
        """
        params = self.of(cell)
        if params.unwritten(cell.params):
            params.values(key for one in (cell, *self.study(params.study)) for key in one.params)
        return params.values(cell.params)

    def cell(self, verb: str, **wildcards: str) -> Cell:
        """The cell of a verb.

        Raises:
            ConfigError: a wildcard names something that no params.yaml has.
        """
        stage = IMPORT if verb == IMPORT.verb else STAGES[verb]
        names = {name: str(wildcards[name]) for name in stage.wildcards}
        key = (verb, *names.values())
        if key not in self._cells:
            self._cells[key] = self._made(stage, names)
        return self._cells[key]

    def _made(self, stage: Stage, names: dict[str, str]) -> Cell:
        params = self.studies.of(names)
        if "step" in names:
            self._check_step(names)
        if stage.verb in ("train", "resume") and params.model(names["model"]).imported:
            raise ConfigError(
                f"model {names['model']} is imported, not trained; get its checkpoint with `ipdiff import`"
            )
        if "sampler" in names:
            try:
                config.sampler_of(params, names["dataset"], names["model"], names["sampler"])
            except ValueError as error:
                raise ConfigError(str(error)) from None
        filled = names | {name: _DERIVED[name](params, names) for name in _DERIVED if name in stage.derived}
        view = stage.verb in ("table", "figure", "report")
        cell = self._view_cell(stage, filled) if view else getattr(self, f"_{stage.verb}", _cell)(stage, filled)
        return dataclasses.replace(cell, rows=rows_of(params, names))

    def _dataset(self, names: dict[str, str]) -> Dataset:
        return self.studies.of(names).dataset(names["dataset"])

    def _prepare(self, stage: Stage, names: dict[str, str]) -> Cell:
        raw = self._dataset(names).source.raw
        return _cell(stage if raw is None else stage.reading("prepare_raw", ("{raw}",)), names, raw=raw)

    def _reference(self, stage: Stage, names: dict[str, str]) -> Cell:
        return self._measuring(self._of_subset(stage, names), names)

    def _neighbours(self, stage: Stage, names: dict[str, str]) -> Cell:
        if not self._dataset(names).reference.neighbours:
            key = f"datasets.{names['dataset']}.reference.neighbours"
            raise ConfigError(f"{self.studies.of(names).path} {key}: not true, so there are none to measure")
        return self._measuring(self._of_subset(stage, names), names)

    def _halves(self, stage: Stage, names: dict[str, str]) -> Cell:
        _check_whole("samples", names["samples"])
        if int(names["samples"]) < 2:
            raise ConfigError(f"samples is {names['samples']}; use 2 or more")
        return self._measuring(self._of_subset(stage, names), names)

    def _of_subset(self, stage: Stage, names: dict[str, str]) -> Stage:
        """The variant that draws a subset of the real images, where the data set asks for one."""
        if self._dataset(names).reference.images is None:
            return stage
        keys = tuple(f"{SETTINGS}.reference.{key}" for key in ("images", "seed"))
        return stage.reading(f"{stage.name}_subset", params=keys)

    def _measuring(self, stage: Stage, names: dict[str, str]) -> Cell:
        """The cell of a stage that looks at images through the data set's feature network."""
        dataset = self._dataset(names)
        name, kind = dataset.features, FEATURES[dataset.features]
        keys = tuple(f"{SETTINGS}.{key}" for key in kind.params)
        if kind.file == "stage":
            return _cell(stage.reading(stage.name, STAGES[name].outputs[:1], keys), names)
        if kind.file == "published" and (raw := dataset.feature_settings.raw) is not None:
            return _cell(stage.reading(f"{stage.name}_raw_{name}", ("{raw}",)), names, raw=raw)
        return _cell(stage.reading(f"{stage.name}_{name}", params=keys), names)

    def _train(self, stage: Stage, names: dict[str, str]) -> Cell:
        steps = self._dataset(names).checkpoints
        earlier = [step for step in steps if step < int(names["step"])]
        if earlier:
            stage = stage.reading("continue", (f"{RUN}/{{previous}}/{RECIPE}",))
        borrowed = self.studies.of(names).model(names["model"]).borrowed
        stage = stage.reading(stage.name, params=tuple(f"{SETTINGS}.strengths.{key}" for key in borrowed))
        return self._starting(stage, names, previous=str(earlier[-1]) if earlier else None)

    def _resume(self, stage: Stage, names: dict[str, str]) -> Cell:
        return self._starting(stage, names)

    def _starting(self, stage: Stage, names: dict[str, str], previous: str | None = None) -> Cell:
        """The cell of a stage that trains, with the checkpoint that the run starts from, if it does.

        Every segment reads it: one whose train states are lost trains from there.
        """
        params = self.studies.of(names)
        if (found := config.start_of(params, names["dataset"], names["model"])) is None:
            return _cell(stage, names, previous=previous)
        dataset, model, step = found
        seed = str(params.seeds_of(model)[0]) if params.model(model).imported else names["seed"]
        stage = stage.reading(f"{stage.name}_from", (f"{START}/{IMPORT.files[0]}", f"{START}/{RECIPE}"))
        names = names | {"start_dataset": dataset, "start_model": model, "start_seed": seed, "start_step": str(step)}
        return _cell(stage, names, previous=previous)

    def _sample(self, stage: Stage, names: dict[str, str]) -> Cell:
        exposed = Sampler.parse(names["sampler"]).row.from_images
        return _cell(stage.reading("expose", (IMAGES,)) if exposed else stage, names)

    def _evaluate(self, stage: Stage, names: dict[str, str]) -> Cell:
        names = names | {"samples": str(self._dataset(names).sampling.count(Sampler.parse(names["sampler"])))}
        if self._dataset(names).reference.neighbours:
            near = tuple(f"{NEIGHBOURS}/{name}" for name in ("features.npy", "radii.npy"))
            stage = stage.reading("evaluate_neighbours", near)
        if self._dataset(names).metrics:
            keys = ("metrics", *self._dataset(names).metric_settings)
            stage = stage.reading(f"{stage.name}_more", params=tuple(f"{SETTINGS}.{key}" for key in keys))
        return self._measuring(stage, names)

    def _analyse(self, stage: Stage, names: dict[str, str]) -> Cell:
        if self._dataset(names).analysis is None:
            path = self.studies.of(names).path
            raise ConfigError(f"{path} datasets.{names['dataset']}.analysis: missing key; {stage.verb} needs it")
        return _cell(stage, names)

    _drift = _analyse

    def _summary(self, stage: Stage, names: dict[str, str]) -> Cell:
        tables = self.studies.load(names["study"]).tables
        return _cell(
            stage, names, tuple(self.cell("table", study=names["study"], table=name).outputs[0] for name in tables)
        )

    def _view_cell(self, stage: Stage, names: dict[str, str]) -> Cell:
        study = self.studies.load(names["study"])
        if stage.verb == "report":
            views = [("table", name) for name in study.tables] + [("figure", name) for name in study.figures]
            cells = [self.cell(kind, study=names["study"], **{kind: name}) for kind, name in views]
            drawn = [path for cell in cells for path in cell.outputs if not path.endswith(RECIPE)]
            stage = stage.reading(stage.name, params=tuple(key for key in ("note", "figures") if key in study.raw))
            return _cell(stage, names, exact=(*drawn, *self._recipes_behind(cells)))
        view = study.table(names["table"]) if stage.verb == "table" else study.figure(names["figure"])
        stage = stage.reading(stage.name, params=_strengths(study, view))
        return _cell(stage, names, exact=tuple(dict.fromkeys(self._view_inputs(study, view))))

    def _view_inputs(self, study: Params, view: Table | Figure) -> Iterator[str]:
        """Files that a table or figure shows."""
        verb, file = FIGURES[view.kind if isinstance(view, Figure) else "lines"]
        if isinstance(view, Figure) and view.of_runs:
            for dataset, model, step in config.runs(study, view):
                for seed in view.seeds or study.seeds_of(model):
                    names = {"dataset": dataset, "model": model, "seed": str(seed), "step": str(step)}
                    yield f"{self.cell(verb, **names).directory}/{file}"
            return
        for point in config.points(study, view):
            for seed in view.seeds or study.seeds_of(point.model):
                shown = self._point_cell(verb, point, seed)
                yield f"{shown.directory}/{file}"
                if verb == "evaluate":  # what the numbers are of, in words
                    yield shown.outputs[-1]
                if view.paper is not None:  # how it was measured, drawn, trained, and what with: held against the paper
                    made = "import" if self.is_imported(point.dataset, point.model) else "train"
                    for behind in ("sample", made, "reference", "prepare"):
                        yield self._point_cell(behind, point, seed).outputs[-1]

    def _point_cell(self, verb: str, point: Point, seed: int) -> Cell:
        """The cell of a verb behind a measured point."""
        return self.cell(verb, **{key: str(value) for key, value in vars(point).items()}, seed=str(seed))

    def _recipes_behind(self, views: list[Cell]) -> list[str]:
        """Recipes of all that the numbers of tables and figures were made from: their cards."""
        found: dict[str, Cell] = {}
        for view in views:
            found |= {cell.directory: cell for cell in self.needed(view)}
        return [cell.outputs[-1] for cell in found.values() if cell.stage.card]

    def _check_step(self, names: dict[str, str]) -> None:
        self.studies.of(names).family(names["dataset"], names["model"])
        for name in ("seed", "step"):
            _check_whole(name, names[name])
        if int(names["seed"]) >= 2**64:
            raise ConfigError(f"seed is {names['seed']}; use 0..2**64-1")
        params = self.studies.of(names)
        if wrong := config.step_problem(params, names["dataset"], names["model"], int(names["step"])):
            raise ConfigError(f"step {wrong}")

    def study(self, name: str) -> list[Cell]:
        """Every cell of a study that an engine makes, makers before users, without repeats."""
        return [cell for cell in self._behind_report(name) if not cell.given]

    def imports(self, study: str) -> list[Cell]:
        """The imported checkpoints a study reads."""
        return [cell for cell in self._behind_report(study) if cell.given]

    def needed(self, *targets: Cell) -> list[Cell]:
        """The targets and every cell they need, makers before users; imported checkpoints are among them.

        A report brings the last states of its runs and the summary of its tables.
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

        for target in targets:
            visit(target)
        for report in (target for target in targets if target.stage.verb == "report"):
            trained = [cell for cell in found.values() if cell.stage.verb == "train"]
            last = {cell.directory.rpartition("/")[0]: cell for cell in trained}  # segments come in their order
            for cell in last.values():
                visit(self.cell("resume", **cell.bindings))
            if self.studies.load(report.bindings["study"]).tables:
                visit(self.cell("summary", **report.bindings))
        return list(found.values())

    def is_imported(self, dataset: str, model: str) -> bool:
        """True for a model whose checkpoints come from `ipdiff import`."""
        return self.studies.owner(dataset).model(model).imported

    def _maker(self, path: str) -> Cell | None:
        """The cell that makes a file, or None for raw data."""
        for stage, pattern in _MADE:
            if found := pattern.fullmatch(path):
                names = found.groupdict()
                if stage.verb not in ("train", IMPORT.verb) or self.is_imported(names["dataset"], names["model"]) == (
                    stage is IMPORT
                ):
                    return self.cell(stage.verb, **names)
        return None

    def targets(self, study: str) -> list[str]:
        """Files that stand for a whole study: its report, its summary and its runs' last states."""
        return [cell.outputs[0] for cell in self.study(study) if cell.stage.verb in ("report", "summary", "resume")]


def _strengths(study: Params, view: Table | Figure) -> tuple[str, ...]:
    """Keys of params.yaml that say the gammas of what a view shows: it names the models by them."""
    trained = config.trained(view)
    own = [f"models.{model}" for _, model in trained]
    borrowing = [dataset for dataset, model in trained if study.model(model).gamma == "dataset"]
    return tuple(dict.fromkeys((*own, *(f"datasets.{dataset}.strengths.gamma" for dataset in borrowing))))


def _check_whole(name: str, text: str) -> None:
    if not re.fullmatch("0|[1-9][0-9]{0,19}", text):
        raise ConfigError(f"{name} is {brief(text, 40)!r}; expected a whole number, without leading zeros")


_DERIVED: dict[str, Callable[[Params, Mapping[str, str]], str]] = {
    "family": lambda params, names: params.model(names["model"]).family,
    "target": lambda params, names: params.model(names["model"]).target,
    "kind": lambda params, names: Sampler.parse(names["sampler"]).kind,
}
"""What a row may name besides its wildcards, and where it comes from."""


def _pattern(stage: Stage) -> re.Pattern[str]:
    """What the paths of a stage's outputs look like; names hold no slash."""
    files = "|".join(map(re.escape, (*stage.files, RECIPE)))
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", stage.directory) + f"/(?:{files})")


_MADE = [(stage, _pattern(stage)) for stage in (*STAGES.values(), IMPORT)]


def rows_of(params: Params, names: Mapping[str, str]) -> Rows:
    """Of the registries, the rows that a cell of these names goes by."""
    found: dict[str, set[str]] = {}
    if "study" in names:
        samplers, datasets, metrics = _shown(params, names)
    else:
        samplers, datasets = {names["sampler"]} if "sampler" in names else set(), {names["dataset"]}
        more = params.dataset(names["dataset"]).metrics
        metrics = {name for name, kind in METRICS.items() if kind.always or name in more}
    kinds = {Sampler.parse(name).kind for name in samplers}
    if "model" in names:
        model = params.model(names["model"])
        found["ipdiff.spec.FAMILIES"] = {model.family}
        found["ipdiff.spec.OBJECTIVES"] = found["ipdiff.diffusion.TARGETS"] = {model.target}
    found["ipdiff.sample_sets.spec.SAMPLERS"] = found["ipdiff.samplers.CHAINS"] = kinds
    found["ipdiff.metrics.spec.METRICS"] = metrics
    found["ipdiff.metrics.spec.FEATURES"] = {params.dataset(name).features for name in datasets}
    found["ipdiff.data.spec.READERS"] = {params.dataset(name).source.reader for name in datasets}
    return tuple((registry, tuple(sorted(keys))) for registry, keys in sorted(found.items()))


def _shown(params: Params, names: Mapping[str, str]) -> tuple[set[str], set[str], set[str]]:
    """Samplers, data sets and metrics of a table or figure, or of all of a study's."""
    views: list[Table | Figure] = [
        view
        for kind, known in (("table", params.tables), ("figure", params.figures))
        for name, view in known.items()
        if names.get(kind, name) == name and (kind in names or not {"table", "figure"} & names.keys())
    ]
    points = [point for view in views for point in config.points(params, view)]
    datasets = {dataset for view in views for dataset in view.datasets} | {point.dataset for point in points}
    metrics = {name for view in views for name in (view.metrics if isinstance(view, Table) else [view.metric])}
    return {point.sampler for point in points}, datasets, metrics


def _cell(stage: Stage, names: dict[str, str], exact: tuple[str, ...] = (), **more: str | None) -> Cell:
    filled = {**names, **{key: value for key, value in more.items() if value is not None}}
    if "raw" in filled:
        filled["raw"] = config.project_path(filled["raw"])
    return Cell(stage, tuple(filled.items()), exact)


def load(root: Path = Path()) -> Grid:
    """The grid of the project in this directory."""
    return Grid(Studies(root))
