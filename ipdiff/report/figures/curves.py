"""Figures of curves in csv files: prediction errors and how far chains stray, over t; the loss over training."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import ScalarFormatter

from ipdiff.errors import UserError
from ipdiff.report import labels
from ipdiff.report.figures import canvas
from ipdiff.report.origin import Place, identify
from ipdiff.report.results import grouped
from ipdiff.report.tables.entries import write_rows

Row = dict[str, float]


@dataclass(frozen=True)
class Panel:
    """What one panel shows of a row.

    Attributes:
        text: its y axis.
        value: of a row.
        floor: what noise alone gives, drawn thin; None where nothing is known.
        middle: the value that means nothing happens; the axis is around it. None: the axis begins at 0.
        logarithmic: its y axis.
    """

    text: str
    value: Callable[[Row], float]
    floor: Callable[[Row], float] | None = None
    middle: float | None = None
    logarithmic: bool = False


@dataclass(frozen=True)
class Curves:
    """A kind of figure: the files it is made of and its panels.

    Attributes:
        path: of the files; names in capitals vary.
        columns: of the files that are shown, the x axis first.
        panels: of a data set.
        x: what the x axis is called.
        joined: whether the files of a run's checkpoints are one curve.
    """

    path: str
    columns: tuple[str, ...]
    panels: tuple[Panel, ...]
    x: str = "t"
    joined: bool = False

    @property
    def identity(self) -> tuple[str, ...]:
        """What tells its curves apart."""
        sampler = ("sampler",) if "SAMPLER" in self.path else ()
        return ("dataset", "model", "seed", *(() if self.joined else ("step", *sampler)))


KINDS = {
    "errors": Curves(
        "analysis/DATASET/MODEL/sSEED/STEP/errors.csv",
        ("t", "nu", "mean", "rejected"),
        (
            Panel("\N{GREEK SMALL LETTER NU}, error of the predicted x0", lambda row: row["nu"]),
            Panel("share of pixels not normal", lambda row: row["rejected"]),
        ),
    ),
    "drift": Curves(
        "drift/DATASET/MODEL/sSEED/STEP/SAMPLER/drift.csv",
        ("t", "eps_chain", "eps_chain_se", "eps_data", "eps_data_se", "delta", "delta_floor"),
        (
            Panel(
                "length of predicted eps:\nin the chain / at diffused images",
                lambda row: row["eps_chain"] / row["eps_data"],
                middle=1.0,
            ),
            Panel(
                "\N{GREEK SMALL LETTER DELTA}, squared difference of\nstandard deviations of x_t (thin: noise)",
                lambda row: row["delta"],
                lambda row: row["delta_floor"],
                logarithmic=True,
            ),
        ),
    ),
    "training": Curves(
        "runs/DATASET/MODEL/sSEED/STEP/loss.csv",
        ("step", "loss"),
        (Panel("training loss", lambda row: row["loss"], logarithmic=True),),
        x="training steps (optimiser updates)",
        joined=True,
    ),
}
"""By the kind of a figure in params.yaml."""


@dataclass(frozen=True)
class Run:
    """One curve: whose it is, and its lines."""

    of: Place
    rows: tuple[Row, ...]


def draw(name: str, inputs: list[Path], out: Path, named: Mapping[str, str]) -> None:
    """Write out/figure.png and out/figure.csv from files of a kind.

    `named` says how models are called; others go by `labels.model`.

    Raises:
        UserError: a file is malformed.
    """
    kind = KINDS[name]
    runs = [read(path, kind) for path in inputs]
    if kind.joined:
        runs = [_joined(group) for group in grouped(runs, lambda run: replace(run.of, step=0, source="")).values()]
    canvas.save(_draw(kind, runs, named), out)
    rows = [
        [*(getattr(run.of, key) for key in kind.identity), *(f"{row[key]:.9g}" for key in kind.columns)]
        for run in runs
        for row in run.rows
    ]
    write_rows(out / "figure.csv", (*kind.identity, *kind.columns), rows)


def _joined(parts: list[Run]) -> Run:
    """The checkpoints of a run, one after the other, as a curve of no checkpoint."""
    parts.sort(key=lambda run: run.of.step)
    return Run(replace(parts[0].of, step=0), tuple(row for run in parts for row in run.rows))


def read(path: Path, kind: Curves) -> Run:
    """One file; UserError where it is none of this kind."""
    of = identify(path, kind.path)
    try:
        with path.open(newline="") as stream:
            rows = tuple({key: float(row[key]) for key in kind.columns} for row in csv.DictReader(stream))
        if not rows or not all(math.isfinite(x) for row in rows for x in row.values()):
            raise ValueError("no finite numbers")
    except (OSError, ValueError, KeyError, TypeError) as error:
        columns = ", ".join(kind.columns)
        raise UserError(f"{path}: expected {kind.path} with {columns} ({error}); make it again") from error
    return Run(of, rows)


def _draw(kind: Curves, runs: list[Run], named: Mapping[str, str]) -> Canvas:
    datasets = list(dict.fromkeys(run.of.dataset for run in runs))
    styles = list(dict.fromkeys((run.of.step, run.of.sampler) for run in runs))
    width = 8.6 if len(kind.panels) > 1 else 6.4
    sheet = canvas.new(width, 3.2 * len(datasets) + 0.5, layout="constrained")
    axes = sheet.subplots(len(datasets), len(kind.panels), squeeze=False)
    for line, dataset in zip(axes, datasets, strict=True):
        for axis, panel in zip(line, kind.panels, strict=True):
            _panel(axis, kind, panel, [run for run in runs if run.of.dataset == dataset], styles)
            axis.set_title(labels.dataset(dataset), loc="left")
    handles, names = [], []
    for model, step, sampler in dict.fromkeys((run.of.model, run.of.step, run.of.sampler) for run in runs):
        style = canvas.dash(styles.index((step, sampler)))
        handles += axes[0][0].plot([], [], color=canvas.colour(model), linewidth=2, linestyle=style)
        how = (f", {labels.sampler(sampler)}" if sampler else "") + f", {step:,} training steps" * (not kind.joined)
        names.append((named.get(model) or labels.model(model)) + how)
    sheet.legend(handles, names, loc="outside lower center", ncols=canvas.legend_columns(names, width), fontsize=8)
    return sheet


def _panel(axis: Axes, kind: Curves, panel: Panel, runs: list[Run], styles: list[tuple[int, str]]) -> None:
    for run in runs:
        x, style = [row[kind.columns[0]] for row in run.rows], canvas.dash(styles.index((run.of.step, run.of.sampler)))
        look = {"color": canvas.colour(run.of.model), "linestyle": style}
        axis.plot(x, [panel.value(row) for row in run.rows], linewidth=0.8 if kind.joined else 1.4, alpha=0.9, **look)
        if panel.floor is not None:
            axis.plot(x, [panel.floor(row) for row in run.rows], linewidth=0.6, alpha=0.5, **look)
    axis.set_xlabel(kind.x)
    axis.set_ylabel(panel.text)
    if panel.logarithmic:
        axis.set_yscale("log")
    elif panel.middle is not None:
        axis.axhline(panel.middle, color=canvas.SOFT, linewidth=0.8)
        axis.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    else:
        axis.set_ylim(bottom=0)
