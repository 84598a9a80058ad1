"""Figures from metrics files (lines) or sample sets (grids of images): a PNG and a csv of what it shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ipdiff.errors import UserError
from ipdiff.report import labels, origin, paper
from ipdiff.report.figures import canvas, error_curves, samples
from ipdiff.report.origin import Recipe
from ipdiff.report.results import Record, Results, load
from ipdiff.report.spec import Figure, Point, wanted
from ipdiff.report.tables.entries import Entry, value, write_csv
from ipdiff.sample_sets.spec import Sampler

DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))


def run(name: str, figure: Figure, inputs: list[Path], out: Path, recipes: Sequence[Recipe] = ()) -> None:
    """Write out/figure.png and out/figure.csv.

    Args:
        name: the figure's key in params.yaml, for messages.
        figure: what was asked for.
        inputs: metrics files (kind lines) or samples.npz files in the order of their rows (kind samples), as
            samples/{dataset}/{model}/s{seed}/{step}/{sampler}/samples.npz.
        out: directory to write into.
        recipes: of every artifact behind the metrics, where a figure of the paper is named (see `table.run`).

    Raises:
        UserError: a point that was asked for has no record, a file is malformed, or figures that were
            measured in different ways would share a panel.
    """
    out.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(canvas.STYLE)
        if figure.kind == "lines":
            found = load(inputs)
            _lines(name, figure, origin.attach(found, recipes) if recipes else found, out)
        else:
            kind = samples if figure.kind == "samples" else error_curves
            kind.draw(name, figure, inputs, out)


@dataclass(frozen=True)
class Line:
    """One curve: a model, and what of its sampler or step does not vary along it."""

    model: str
    part: str

    def text(self, parts: int) -> str:
        """Its legend; the part is said where several stand in the figure."""
        return labels.model(self.model) + (f", {self.part}" if parts > 1 and self.part else "")


def _lines(name: str, figure: Figure, found: list[Record], out: Path) -> None:
    results = Results(f"figure '{name}'", found)
    theirs = paper.select(figure.paper, paper.values())
    made = [
        value(results.get(Point(dataset, model, sampler, step)), figure.metric, theirs)
        for dataset in figure.datasets
        for model in figure.models
        for sampler in figure.samplers
        for step in (wanted(figure.steps, figure.until, model) or [None])
    ]
    if not made:
        raise UserError(f"figure '{name}' asks for no point; give datasets, models and samplers")
    _check_panels(name, made)
    canvas.save(_draw(figure, made, theirs), out)
    write_csv(made, out / "figure.csv")


def _check_panels(name: str, made: list[Entry]) -> None:
    first: dict[str, Entry] = {}
    for entry in made:
        other = first.setdefault(entry.dataset, entry)
        if other.protocol != entry.protocol:
            raise UserError(
                f"figure '{name}': {entry.dataset} has figures measured with {other.protocol.text()} "
                f"({other.model} {other.sampler}) and with {entry.protocol.text()} ({entry.model} "
                f"{entry.sampler}); one panel holds one kind, draw them in two figures"
            )


def _draw(figure: Figure, made: list[Entry], theirs: paper.PaperTable | None) -> Canvas:
    datasets = list(dict.fromkeys(entry.dataset for entry in made))
    columns = min(len(datasets), 3)
    rows = math.ceil(len(datasets) / columns)
    width = 1.2 + 4.3 * columns if columns > 1 else 6.4
    sheet = canvas.new(width, 3.7 * rows + 0.5, layout="constrained")
    axes = sheet.subplots(rows, columns, squeeze=False).flat
    for axis, dataset in zip(axes, datasets, strict=False):
        _panel(axis, figure, [entry for entry in made if entry.dataset == dataset], theirs)
    for axis in list(axes)[len(datasets) :]:
        axis.set_visible(False)
    handles: dict[str, Any] = {}
    for axis in sheet.axes:
        handles |= {str(label): handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    sheet.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(len(handles), 4 if columns > 1 else 3),
        handlelength=3,
        fontsize=8,
    )
    return sheet


def _panel(axis: Axes, figure: Figure, made: list[Entry], theirs: paper.PaperTable | None) -> None:
    lines: dict[Line, list[Entry]] = {}
    for entry in made:
        lines.setdefault(Line(entry.model, _part(figure, entry)), []).append(entry)
    parts = list(dict.fromkeys(line.part for line in lines))
    several = any(entry.sd is not None for entry in made)
    unequal = len({entry.seeds for entry in made}) > 1
    for line, entries in lines.items():
        entries = sorted(entries, key=lambda entry: _x(figure, entry))
        _line(axis, figure, line, entries, parts, seeds=unequal)
        _paper_line(axis, figure, line, entries, theirs)
    axis.set_title(labels.dataset(made[0].dataset), loc="left", pad=16)
    axis.text(0, 1.015, made[0].protocol.text(), transform=axis.transAxes, fontsize=7, color=canvas.SOFT)
    spread = ", mean \N{PLUS-MINUS SIGN} sd over seeds" if several else ""
    axis.set_ylabel(f"{made[0].label} ({labels.better({made[0].label: figure.metric})}{spread})")
    _x_axis(axis, figure, sorted({_x(figure, entry) for entry in made}), made)


def _line(axis: Axes, figure: Figure, line: Line, entries: list[Entry], parts: list[str], *, seeds: bool) -> None:
    """One curve; `seeds`: its legend names its training seeds, for they are not those of the others."""
    over = f" ({_seeds(entries)})" if seeds else ""
    x, mean = [_x(figure, entry) for entry in entries], [entry.mean for entry in entries]
    shade, dash = canvas.colour(line.model), DASHES[parts.index(line.part) % len(DASHES)]
    axis.plot(
        x,
        mean,
        color=shade,
        linestyle=dash,
        marker=canvas.marker(line.model),
        markersize=4.5,
        linewidth=1.6,
        label=line.text(len(parts)) + over,
        zorder=3,
    )
    if any(entry.sd is not None for entry in entries):
        axis.errorbar(
            x,
            mean,
            yerr=[entry.sd or 0.0 for entry in entries],
            fmt="none",
            ecolor=shade,
            elinewidth=1,
            capsize=2.5,
            zorder=2,
        )
        dots = [(at, one) for at, entry in zip(x, entries, strict=True) for one in entry.values]
        axis.scatter(
            [at for at, _ in dots],
            [one for _, one in dots],
            s=9,
            color=shade,
            alpha=0.35,
            linewidths=0,
            zorder=2,
        )


def _seeds(entries: list[Entry]) -> str:
    found = dict.fromkeys(entry.seeds for entry in entries)
    return " or ".join(f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}" for seeds in found)


def _paper_line(axis: Axes, figure: Figure, line: Line, entries: list[Entry], theirs: paper.PaperTable | None) -> None:
    """The paper's whole curve, where one of its points at least may stand beside ours."""
    if theirs is None or not any(entry.comparable for entry in entries):
        return
    sampler = Sampler.parse(entries[0].sampler)
    points = sorted(
        (point.step, point.metrics[figure.metric])
        for point in theirs.entries
        if point.same_sampler(sampler)
        and point.step is not None
        and figure.metric in point.metrics
        and (point.dataset, point.model) == (entries[0].dataset, line.model)
    )
    axis.plot(
        [step for step, _ in points],
        [fid for _, fid in points],
        color=canvas.colour(line.model),
        linewidth=1,
        linestyle=(0, (2, 2)),
        marker="x",
        markersize=4,
        alpha=0.7,
        label=f"{labels.model(line.model)}, paper",
    )


def _x(figure: Figure, entry: Entry) -> int:
    return entry.step if figure.x == "step" else Sampler.parse(entry.sampler).steps


def _part(figure: Figure, entry: Entry) -> str:
    """Name what tells a model's lines apart: the sampler over steps; its kind (and the step) over T'."""
    if figure.x == "step":
        return labels.sampler(entry.sampler)
    sampler = Sampler.parse(entry.sampler)
    grid = f" ({sampler.grid})" if sampler.grid else ""
    kind = sampler.kind if sampler.eta is None else f"eta = {sampler.eta:g}{grid}"
    return kind + (f", {entry.step:,} training steps" if len(figure.steps) > 1 else "")


def _x_axis(axis: Axes, figure: Figure, ticks: list[int], made: list[Entry]) -> None:
    kinds = {Sampler.parse(entry.sampler).kind for entry in made}
    if figure.x == "step":
        axis.set_xlabel("training steps (optimiser updates)")
        axis.xaxis.set_major_formatter(FuncFormatter(_thousands))
        return
    axis.set_xlabel("reverse steps of the full chain" if kinds == {"exposure"} else "sampling steps T'")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:g}"))


def _thousands(at: float, _: int | None) -> str:
    return f"{at / 1000:g}k" if abs(at) >= 1000 else f"{at:g}"
