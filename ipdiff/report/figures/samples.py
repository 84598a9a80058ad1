"""Grids of sample images, pixel by pixel, and a csv of what each row shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from ipdiff.errors import UserError
from ipdiff.report import labels
from ipdiff.report.figures import canvas
from ipdiff.report.origin import Place, identify
from ipdiff.report.tables.entries import write_rows

IMAGE_PIXELS = 64
"""Height that a sample image is enlarged to, at least."""
COLUMNS = ("row", "dataset", "model", "seed", "step", "sampler", "first", "last", "source")


def draw(inputs: list[Path], images: int, out: Path, named: Mapping[str, str]) -> None:
    """Write out/figure.png and out/figure.csv from samples.npz files, a row of so many `images` each.

    `named` says how models are called; others go by `labels.model`.

    Raises:
        UserError: a file is no sample set or holds too few images.
    """
    found = [identify(path, "samples/DATASET/MODEL/sSEED/STEP/SAMPLER/samples.npz") for path in inputs]
    blocks = [_tile(_images(path, images)) for path in inputs]
    canvas.save(_compose(blocks, [_row_label(item, found, named) for item in found]), out)
    rows = [
        [row, one.dataset, one.model, one.seed, one.step, one.sampler, 0, images - 1, one.source]
        for row, one in enumerate(found)
    ]
    write_rows(out / "figure.csv", COLUMNS, rows)


def _images(path: Path, count: int) -> NDArray[np.uint8]:
    """The first `count` images of a set: [count, H, W, 3] uint8, enlarged without smoothing."""
    try:
        with np.load(path, allow_pickle=False) as data:
            images = data["arr_0"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: expected a sample set with the array arr_0 ({error})") from error
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3) or len(images) < count:
        raise UserError(
            f"{path}: expected {count} images or more, uint8 [N, H, W, 1 or 3]; found "
            f"{images.dtype} {list(images.shape)}"
        )
    scale = max(1, math.ceil(IMAGE_PIXELS / images.shape[1]))
    shown = images[:count].repeat(scale, axis=1).repeat(scale, axis=2)
    return np.broadcast_to(shown, (*shown.shape[:3], 3))


def _tile(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images side by side, 16 a line at most, on white: [height, width, 3] uint8."""
    count, height, width, _ = images.shape
    columns = min(count, 16)
    lines, gap = math.ceil(count / columns), 3
    sheet = np.full((lines * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for place, image in enumerate(images):
        top, left = (place // columns) * (height + gap), (place % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def _compose(blocks: Sequence[NDArray[np.uint8]], names: Sequence[tuple[str, str]]) -> Canvas:
    """Blocks below each other, pixel for pixel, their labels on the left."""
    margin, gap, dpi = 16, 14, canvas.DPI
    label = 14 + round(max(8.0 * len(text) + 6 for pair in names for text in pair) * dpi / 100)
    heights = [max(block.shape[0], 50) for block in blocks]
    height = sum(heights) + gap * (len(blocks) - 1) + 2 * margin
    width = label + max(block.shape[1] for block in blocks) + margin
    sheet = canvas.new(width / dpi, height / dpi)
    top = margin
    for block, room, (head, tail) in zip(blocks, heights, names, strict=True):
        low = height - top - (room + block.shape[0]) // 2
        sheet.figimage(block, xo=label, yo=low, origin="upper", resize=False)
        middle = 1 - (top + room / 2) / height
        sheet.text(margin / width, middle, head, weight="bold", fontsize=8, va="bottom", color=canvas.INK)
        sheet.text(margin / width, middle, tail, fontsize=6.5, va="top", color=canvas.SOFT)
        top += room + gap
    return sheet


def _row_label(item: Place, found: Sequence[Place], named: Mapping[str, str]) -> tuple[str, str]:
    """The model, and below it the sampler and whatever else differs between the rows."""
    differs = {
        labels.dataset(item.dataset): {one.dataset for one in found},
        f"{item.step:,} steps": {one.step for one in found},
        f"seed {item.seed}": {one.seed for one in found},
    }
    tail = [labels.sampler(item.sampler), *(text for text, values in differs.items() if len(values) > 1)]
    return named.get(item.model) or labels.model(item.model), ", ".join(tail)
