"""Figures of the prediction error over t: nu_t, and in how many pixels it is not normal."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ipdiff.errors import UserError
from ipdiff.report import labels
from ipdiff.report.figures import canvas
from ipdiff.report.origin import Place, identify
from ipdiff.report.tables.entries import write_rows

COLUMNS = ("dataset", "model", "seed", "step", "t", "nu", "mean", "rejected")
SHAPE = "analysis/DATASET/MODEL/sSEED/STEP/errors.csv"
STATISTICS = {"nu": "\N{GREEK SMALL LETTER NU}, error of the predicted x0", "rejected": "share of pixels not normal"}
"""What the two panels of a data set show."""


@dataclass(frozen=True)
class Run:
    """One checkpoint's errors.csv: whose it is, and its lines."""

    of: Place
    rows: tuple[dict[str, float], ...]


def draw(inputs: list[Path], out: Path) -> None:
    """Write out/figure.png and out/figure.csv from analysis/{dataset}/{model}/s{seed}/{step}/errors.csv files.

    Raises:
        UserError: a file is malformed.
    """
    runs = [read(path) for path in inputs]
    canvas.save(_draw(runs), out)
    rows = [
        [*(getattr(run.of, key) for key in COLUMNS[:4]), f"{row['t']:g}", *(f"{row[key]:.9g}" for key in COLUMNS[5:])]
        for run in runs
        for row in run.rows
    ]
    write_rows(out / "figure.csv", COLUMNS, rows)


def read(path: Path) -> Run:
    """One file of the stage analyse; UserError where it is none."""
    of = identify(path, SHAPE)
    try:
        with path.open(newline="") as stream:
            rows = tuple({key: float(row[key]) for key in COLUMNS[4:]} for row in csv.DictReader(stream))
        if not rows or not all(map(math.isfinite, (x for row in rows for x in row.values()))):
            raise ValueError("no finite numbers")
    except (OSError, ValueError, KeyError, TypeError) as error:
        columns = ", ".join(COLUMNS[4:])
        raise UserError(f"{path}: expected {SHAPE} with {columns} ({error}); make the analysis again") from error
    return Run(of, rows)


def _draw(runs: list[Run]) -> Canvas:
    datasets = list(dict.fromkeys(run.of.dataset for run in runs))
    sheet = canvas.new(8.6, 3.2 * len(datasets) + 0.5, layout="constrained")
    axes = sheet.subplots(len(datasets), len(STATISTICS), squeeze=False)
    for line, dataset in zip(axes, datasets, strict=True):
        for axis, (key, text) in zip(line, STATISTICS.items(), strict=True):
            _panel(axis, key, text, [run for run in runs if run.of.dataset == dataset])
            axis.set_title(labels.dataset(dataset), loc="left")
    models = list(dict.fromkeys((run.of.model, run.of.step) for run in runs))
    handles = [axes[0][0].plot([], [], color=canvas.colour(model), linewidth=2)[0] for model, _ in models]
    names = [f"{labels.model(model)}, {step:,} training steps" for model, step in models]
    sheet.legend(handles, names, loc="outside lower center", ncols=min(len(names), 3), fontsize=8)
    return sheet


def _panel(axis: Axes, key: str, text: str, runs: list[Run]) -> None:
    for run in runs:
        t, values = [row["t"] for row in run.rows], [row[key] for row in run.rows]
        axis.plot(t, values, color=canvas.colour(run.of.model), linewidth=1.4, alpha=0.9)
    axis.set_xlabel("t")
    axis.set_ylabel(text)
    axis.set_ylim(bottom=0)
