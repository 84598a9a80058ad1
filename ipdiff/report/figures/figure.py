"""Figures from metrics files (lines) or sample sets (grids of images): a PNG and a csv of what it shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from ipdiff.errors import UserError
from ipdiff.report import labels, origin, paper
from ipdiff.report.figures import canvas, curves, samples
from ipdiff.report.origin import Recipe
from ipdiff.report.results import Result, Results, grouped, load
from ipdiff.report.spec import Figure, Gamma, Point, product
from ipdiff.report.tables.entries import Entry, names, value, write_csv
from ipdiff.report.tables.table import by_gamma
from ipdiff.sample_sets.spec import Sampler

WIDE = 8
"""Largest over smallest mean of a panel above which its axis is logarithmic: else small ones cannot be told apart."""


def run(
    name: str,
    figure: Figure,
    inputs: list[Path],
    out: Path,
    recipes: Sequence[Recipe] = (),
    gammas: Mapping[tuple[str, str], Gamma] | None = None,
) -> None:
    """Write out/figure.png and out/figure.csv.

    Args:
        name: the figure's key in params.yaml, for messages.
        figure: what was asked for.
        inputs: metrics files (lines, monitor) or samples.npz files in the order of their rows (kind samples), as
            samples/{dataset}/{model}/s{seed}/{step}/{sampler}/samples.npz.
        out: directory to write into.
        recipes: of every artifact behind the metrics, where a figure of the paper is named (see `table.run`).
        gammas: by data set and model, how strong its input perturbation is: models are named by it.

    Raises:
        UserError: a point that was asked for has no record, a file is malformed, or figures that were
            measured in different ways would share a panel.
    """
    out.mkdir(parents=True, exist_ok=True)
    named = labels.models((model, strength) for (_, model), strength in (gammas or {}).items())
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(canvas.STYLE)
        if figure.is_curve:
            found = load(inputs, gammas)
            _lines(name, figure, found if figure.paper is None else origin.attach(found, recipes), out)
        elif figure.kind == "samples":
            samples.draw(inputs, figure.images, out, named)
        else:
            curves.draw(figure.kind, inputs, out, named)


def _lines(name: str, figure: Figure, found: list[Result], out: Path) -> None:
    results = Results(f"figure '{name}'", found)
    theirs = paper.select(figure.paper)
    every = [Point(one.dataset, one.model, one.sampler, one.step) for one in found]  # of a watch, what was measured
    points = dict.fromkeys(every if figure.kind == "monitor" else product(figure))
    made = [value(results.get(point), figure.metric, theirs) for point in by_gamma(results, list(points))]
    _check_panels(name, made)
    canvas.save(_draw(figure, made, theirs), out)
    write_csv(made, out / "figure.csv")


def _check_panels(name: str, made: list[Entry]) -> None:
    for dataset, entries in grouped(made, lambda entry: entry.dataset).items():
        first, *others = grouped(entries, lambda entry: entry.protocol).values()
        if others:
            one, other = first[0], others[0][0]
            raise UserError(
                f"figure '{name}': {dataset} has figures measured with {one.protocol.text()} "
                f"({one.model} {one.sampler}) and with {other.protocol.text()} ({other.model} "
                f"{other.sampler}); one panel holds one kind, draw them in two figures"
            )


def _draw(figure: Figure, made: list[Entry], theirs: paper.PaperTable | None) -> Canvas:
    panels = list(grouped(made, lambda entry: entry.dataset).values())
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    width = 1.2 + 4.3 * columns if columns > 1 else 6.4
    sheet = canvas.new(width, 3.7 * rows + 0.5, layout="constrained")
    axes = sheet.subplots(rows, columns, squeeze=False).flat
    for axis, entries in zip_longest(axes, panels):
        if entries:
            _panel(axis, figure, entries, theirs, names(made))
        else:
            axis.set_visible(False)
    handles: dict[str, Any] = {}
    for axis in sheet.axes:
        handles |= {str(label): handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    sheet.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=canvas.legend_columns(handles, width),
        handlelength=5,
        fontsize=8,
    )
    return sheet


def _panel(
    axis: Axes, figure: Figure, made: list[Entry], theirs: paper.PaperTable | None, named: Mapping[str, str]
) -> None:
    lines = grouped(made, lambda entry: (entry.model, _part(figure, entry)))
    parts = list(dict.fromkeys(part for _, part in lines))
    several = any(entry.sd is not None for entry in made)
    unequal = len({entry.seeds for entry in made}) > 1
    for (model, part), entries in lines.items():
        entries.sort(key=lambda entry: _x(figure, entry))
        name = named[model] + (f", {part}" if len(parts) > 1 else "") + (_seeds(entries) if unequal else "")
        _line(axis, [_x(figure, entry) for entry in entries], entries, canvas.dash(parts.index(part)), name)
        _paper_line(axis, figure, entries, theirs)
    axis.set_title(labels.dataset(made[0].dataset), loc="left", pad=16)
    axis.text(0, 1.015, made[0].protocol.text(), transform=axis.transAxes, fontsize=7, color=canvas.SOFT)
    spread = ", mean \N{PLUS-MINUS SIGN} sd over seeds" if several else ""
    better = labels.better({made[0].label: figure.metric}) + spread
    axis.set_ylabel(made[0].label + (f" ({better.removeprefix(', ')})" if better else ""))
    if _is_wide(made):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(_plain))
        axis.yaxis.set_minor_locator(NullLocator())
    _x_axis(axis, figure, sorted({_x(figure, entry) for entry in made}), made)


def _is_wide(made: list[Entry]) -> bool:
    """Whether a panel's figures are of several sizes; none that a logarithm cannot show, its spread included."""
    lowest = min(entry.mean - (entry.sd or 0.0) for entry in made)
    means = [entry.mean for entry in made]
    return lowest > 0 and max(means) > WIDE * min(means)


def _line(axis: Axes, x: list[int], entries: list[Entry], dash: Any, name: str) -> None:
    """One model's curve: its means, their spread, and each seed's value as a faint dot."""
    mean, model = [entry.mean for entry in entries], entries[0].model
    shade = canvas.colour(model)
    axis.plot(
        x,
        mean,
        color=shade,
        linestyle=dash,
        marker=canvas.marker(model),
        markersize=4.5,
        linewidth=1.6,
        label=name,
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
        axis.scatter(*zip(*dots, strict=True), s=9, color=shade, alpha=0.35, linewidths=0, zorder=2)


def _seeds(entries: list[Entry]) -> str:
    found = dict.fromkeys(entry.seeds for entry in entries)
    texts = (f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}" for seeds in found)
    return f" ({' or '.join(texts)})"


def _paper_line(axis: Axes, figure: Figure, entries: list[Entry], theirs: paper.PaperTable | None) -> None:
    """The paper's whole curve, where one of its points at least may stand beside ours."""
    if theirs is None or not any(entry.comparable for entry in entries):
        return
    ours = entries[0]
    points = sorted(
        (point.step, point.metrics[figure.metric])
        for point in theirs.entries
        if (point.dataset, point.model) == (ours.dataset, ours.model)
        and point.same_sampler(Sampler.parse(ours.sampler))
        and point.step is not None
        and figure.metric in point.metrics
    )
    axis.plot(
        [step for step, _ in points],
        [fid for _, fid in points],
        color=canvas.colour(ours.model),
        linewidth=1,
        linestyle=(0, (2, 2)),
        marker="x",
        markersize=4,
        alpha=0.7,
        label=f"{labels.model(ours.model)}, paper",
    )


def _x(figure: Figure, entry: Entry) -> int:
    if figure.over_training:
        return entry.step
    return entry.nfe if figure.x == "nfe" else Sampler.parse(entry.sampler).steps


def _part(figure: Figure, entry: Entry) -> str:
    """Name what tells a model's lines apart: the sampler over steps; its method (and the step) over T' or NFE."""
    if figure.over_training:
        return labels.sampler(entry.sampler)
    return Sampler.parse(entry.sampler).method + (f", {entry.step:,} training steps" if len(figure.steps) > 1 else "")


def _x_axis(axis: Axes, figure: Figure, ticks: list[int], made: list[Entry]) -> None:
    kinds = {Sampler.parse(entry.sampler).kind for entry in made}
    if figure.over_training:
        axis.set_xlabel("training steps (optimiser updates)")
        axis.xaxis.set_major_formatter(FuncFormatter(_thousands))
        return
    steps = "reverse steps of the full chain" if kinds == {"exposure"} else "sampling steps T'"
    axis.set_xlabel("network calls an image (NFE)" if figure.x == "nfe" else steps)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(_plain))


def _plain(at: float, _: int | None) -> str:
    return f"{at:g}"


def _thousands(at: float, _: int | None) -> str:
    return f"{at / 1000:g}k" if abs(at) >= 1000 else f"{at:g}"
