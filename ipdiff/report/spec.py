"""Tables and figures, and the study that holds them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from ipdiff.metrics.spec import Metric
from ipdiff.parameters import FORBID, SEED, Range, Record, check

Axis = Literal["dataset", "model", "step", "sampler", "metric"]


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
    points: Annotated[list[Point], "explicit points instead of a product"] = field(default_factory=list)
    compare: Annotated[dict[str, str], "model: baseline; adds difference rows, paired by seed"] = field(
        default_factory=dict
    )
    paper: Annotated[str | None, "key of ipdiff/report/paper_values.yaml whose figures stand beside ours"] = None
    note: Annotated[str, "a sentence under the table"] = ""


@dataclass(frozen=True)
class Figure(Record):
    """Lines over training steps or over T', a grid of sample images, or the prediction error over t."""

    __pydantic_config__: ClassVar = FORBID
    kind: Annotated[Literal["lines", "samples", "errors"], "curves of a metric, images, or prediction errors"]
    title: Annotated[str, "what the figure shows"]
    datasets: Annotated[list[str], "data sets: a panel each"]
    models: Annotated[list[str], "models: a line, or a block of images each"]
    samplers: Annotated[list[str], "samplers; over T' they make the x axis; none for prediction errors"] = field(
        default_factory=list
    )
    steps: Annotated[list[int], "training steps; each model's final step if empty", Range(1)] = field(
        default_factory=list
    )
    until: Annotated[dict[str, int], "model: its last training step, where `steps` go further", Range(1)] = field(
        default_factory=dict
    )
    metric: Annotated[Metric, "what the lines show"] = "fid"
    x: Annotated[Literal["step", "sample_steps"], "x axis of lines"] = "sample_steps"
    images: Annotated[int, "images a row of a sample grid", Range(1)] = 16
    paper: Annotated[
        str | None, "key of ipdiff/report/paper_values.yaml whose curves stand beside lines over training steps"
    ] = None
    note: Annotated[str, "a sentence under the figure"] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.paper is None or (self.kind, self.x) == ("lines", "step"),
            f"paper is {self.paper}, but the paper's curves are over training steps; use kind: lines and x: step",
        )


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
