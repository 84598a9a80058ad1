"""What all figures share: style, sheet, file, and each model's colour and marker."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from ipdiff.report.labels import MODELS

DPI = 160
INK, SOFT = "#1f2430", "#5b6270"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.grid": True,
    "grid.color": "#e4e7ec",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "savefig.facecolor": "white",
}
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (9, 2, 1, 2, 1, 2)), (0, (2, 4)))
"""Of lines that share a colour."""
EXTRA = ("#882255", "#44AA99", "#999933", "#332288", "#AA4499", "#117733", "#661100", "#888888")


def new(width: float, height: float, **options: Any) -> Canvas:
    """A sheet of that many inches."""
    made = Canvas(figsize=(width, height), dpi=DPI, **options)
    FigureCanvasAgg(made)
    return made


def save(canvas: Canvas, out: Path) -> None:
    """Write out/figure.png, the same bytes each time."""
    canvas.savefig(out / "figure.png", dpi=DPI, metadata={"Software": None})


def dash(index: int) -> Any:
    """The dashes of the index-th of the lines that share a colour."""
    return DASHES[index % len(DASHES)]


def legend_columns(names: Iterable[str], width: float) -> int:
    """Columns of a legend of 8 points below a canvas of `width` inches, by the longest of its names."""
    found = list(names)
    return max(1, min(len(found), 4, int(width * 14 // (max(map(len, found)) + 10))))


def colour(model: str) -> str:
    """A model's colour; unknown models take one by their name."""
    return MODELS[model].colour if model in MODELS else EXTRA[_index(model) % len(EXTRA)]


def marker(model: str) -> str:
    """A model's marker; unknown models take one by their name."""
    return MODELS[model].marker if model in MODELS else "oshD^v"[_index(model) % 6]


def _index(name: str) -> int:
    return sum((place + 1) * ord(letter) for place, letter in enumerate(name))
