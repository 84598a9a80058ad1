"""Tables and figures, and the study that holds them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from ipdiff.metrics.spec import Metric
from ipdiff.parameters import FORBID, SEED, Range, Record, check

Axis = Literal["dataset", "model", "step", "sampler", "method", "sample_steps", "metric"]
"""`method` is the sampler without T', `sample_steps` T' alone: the two together are `sampler`."""


Gamma = tuple[float, ...]
"""Strength of a model's input perturbation: a constant, several over t, or the first and last of training."""


@dataclass(frozen=True)
class Point(Record):
    """One measured point: a checkpoint of a model and a sampler; every seed of the model is measured there."""

    __pydantic_config__: ClassVar = FORBID
    dataset: str
    model: str
    sampler: str
    step: Annotated[int | None, "training step; the data set's final_step for the model if empty", Range(1)] = None


def wanted(steps: list[int], until: Mapping[str, int], model: str) -> list[int]:
    """The training steps of a view that it shows for a model."""
    return [step for step in steps if step <= until.get(model, step)]


@dataclass(frozen=True)
class Table(Record):
    """A table: a product of data sets, models, samplers and steps, or an explicit list of points."""

    __pydantic_config__: ClassVar = FORBID
    title: Annotated[str, "what the table shows"]
    metrics: Annotated[
        list[Metric],
        "what is shown; docs/metrics.md says what each needs",
    ]
    rows: Annotated[list[Axis], "axes that make the rows"]
    columns: Annotated[list[Axis], "axes that make the columns"]
    datasets: Annotated[list[str], "data sets of the product"] = field(default_factory=list)
    models: Annotated[list[str], "models of the product"] = field(default_factory=list)
    samplers: Annotated[list[str], "samplers of the product"] = field(default_factory=list)
    steps: Annotated[list[int], "training steps of the product; each model's final step if empty", Range(1)] = field(
        default_factory=list
    )
    until: Annotated[
        dict[str, int], "model: its last training step, where the product's steps go further", Range(1)
    ] = field(default_factory=dict)
    seeds: Annotated[list[int], "training seeds that are shown; each model's own of the study if empty", SEED] = field(
        default_factory=list
    )
    points: Annotated[list[Point], "explicit points instead of a product"] = field(default_factory=list)
    compare: Annotated[dict[str, str], "model: baseline; adds difference rows, paired by seed"] = field(
        default_factory=dict
    )
    paper: Annotated[str | None, "key of ipdiff/report/paper_values.yaml whose figures stand beside ours"] = None
    note: Annotated[str, "a sentence under the table"] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        listed = self.datasets and self.models and self.samplers
        check(bool(self.points or listed), "no cell; name datasets, models and samplers, or points")
        check(bool(self.metrics), "no metric; name one or more")
        axes, rows, columns = [*self.rows, *self.columns], f"rows {self.rows}", f"columns {self.columns}"
        check(len(set(axes)) == len(axes), f"an axis stands twice in {rows} and {columns}")
        both = {"method", "sample_steps"}
        part = both & set(axes)
        check(
            len(part) != 1 or "sampler" in axes,
            f"{''.join(part)} alone tells no samplers apart; add {''.join(both - part)}",
        )
        axes += ["sampler"] if part == both else []
        asked_for = {"dataset": self.datasets, "model": self.models, "sampler": self.samplers, "step": self.steps}
        for name, asked in asked_for.items():
            check(
                bool(self.points) or name in axes or len(asked) < 2,
                f"{len(asked)} values of {name} are asked for, but neither {rows} nor {columns} tell them apart; "
                f"add {name} to one of them",
            )

    @property
    def axes(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The axes that make its rows and its columns; points are one row each, and a metric that varies a column."""
        if self.points:
            return ("dataset", "model", "step", "sampler"), ("metric",)
        rows, columns = tuple(self.rows), tuple(self.columns)
        if "metric" not in rows + columns and (len(self.metrics) > 1 or not columns):
            columns += ("metric",)
        return rows, columns


FIGURES = {
    "lines": ("evaluate", "metrics.json"),
    "monitor": ("evaluate", "metrics.json"),
    "samples": ("sample", "samples.npz"),
    "errors": ("analyse", "errors.csv"),
    "drift": ("drift", "drift.csv"),
    "training": ("train", "loss.csv"),
}
"""Kinds of figures, and which file of which stage each shows."""


@dataclass(frozen=True)
class Figure(Record):
    """Lines over training steps or over T', a grid of sample images, or what happens over t."""

    __pydantic_config__: ClassVar = FORBID
    kind: Annotated[
        Literal["lines", "monitor", "samples", "errors", "drift", "training"],
        "curves of a metric, the FID at every checkpoint (docs/monitor.md), images, prediction errors, how far "
        "sampling chains stray from diffused images, or the loss of whole runs",
    ]
    title: Annotated[str, "what the figure shows"]
    datasets: Annotated[list[str], "data sets: a panel each"]
    models: Annotated[list[str], "models: a line, or a block of images each"]
    samplers: Annotated[list[str], "samplers; over T' they make the x axis; none for errors and training"] = field(
        default_factory=list
    )
    steps: Annotated[
        list[int],
        "training steps; each model's final step if empty, of kinds monitor and training every checkpoint until it",
        Range(1),
    ] = field(default_factory=list)
    until: Annotated[dict[str, int], "model: its last training step, where `steps` go further", Range(1)] = field(
        default_factory=dict
    )
    seeds: Annotated[list[int], "training seeds that are shown; each model's own of the study if empty", SEED] = field(
        default_factory=list
    )
    metric: Annotated[Metric, "what the lines show"] = "fid"
    x: Annotated[Literal["step", "sample_steps", "nfe"], "x axis of lines"] = "sample_steps"
    images: Annotated[int, "images a row of a sample grid", Range(1)] = 16
    paper: Annotated[
        str | None, "key of ipdiff/report/paper_values.yaml whose curves stand beside lines over training steps"
    ] = None
    note: Annotated[str, "a sentence under the figure"] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        alone = {"errors": "prediction errors need", "training": "a training loss needs"}.get(self.kind)
        check(not (alone and self.samplers), f"samplers is {self.samplers}; {alone} no sampler")
        whole = self.kind != "training" or not self.steps
        check(whole, f"steps is {self.steps}; a training loss is shown of the whole run; leave it out")
        listed = self.datasets and self.models and (alone or self.samplers)
        check(bool(listed), f"no cell; name datasets{' and models' if alone else ', models and samplers'}")
        lines = self.kind == "lines" or (self.metric, self.x) == ("fid", "sample_steps")
        check(lines, f"metric and x are of kind lines, found kind {self.kind}; leave them out")
        samples = self.kind == "samples" or self.images == 16
        check(samples, f"images is of kind samples, found kind {self.kind}; leave it out")
        check(
            self.paper is None or (self.kind, self.x) == ("lines", "step"),
            f"paper is {self.paper}, but the paper's curves are over training steps; use kind: lines and x: step",
        )

    @property
    def is_curve(self) -> bool:
        """Whether it shows a metric as lines."""
        return self.kind in ("lines", "monitor")

    @property
    def of_runs(self) -> bool:
        """Whether it shows checkpoints or runs, and no sampler."""
        return self.kind in ("errors", "training")

    @property
    def over_training(self) -> bool:
        """Whether its lines go over training steps."""
        return self.kind == "monitor" or self.x == "step"


def product(view: Table | Figure) -> list[Point]:
    """The points of a view's data sets, models, training steps and samplers, each once, in this order."""
    found = [
        Point(dataset, model, sampler, step)
        for dataset in view.datasets
        for model in view.models
        for step in (wanted(view.steps, view.until, model) or [None])
        for sampler in view.samplers
    ]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Study(Record):
    """What a report shows: tables and figures over data sets."""

    __pydantic_config__: ClassVar = FORBID
    title: Annotated[str, "headline of the report"]
    datasets: Annotated[Collection[str], "names of its data sets"]
    seeds: Annotated[dict[str, list[int]], "training seeds by model; `default` for the others", SEED]
    tables: Annotated[dict[str, Table], "tables by name"]
    figures: Annotated[dict[str, Figure], "figures by name"] = field(default_factory=dict)
    note: Annotated[str, "opening paragraph of the report"] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("default" in self.seeds, "seeds needs a `default`")

    def seeds_of(self, model: str) -> list[int]:
        """Training seeds of a model in this study."""
        return self.seeds.get(model, self.seeds["default"])
