"""Grids of sample images, pixel by pixel, a csv of what each row shows and where, and the way back from both."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ipdiff.errors import UserError
from ipdiff.report import labels
from ipdiff.report.figures import canvas
from ipdiff.report.origin import Place, identify
from ipdiff.report.tables.entries import write_rows

IMAGE_PIXELS = 64
"""Height that a sample image is enlarged to, at least."""
LINE, GAP = 16, 3
"""Images of a line at most, and the pixels between two."""
SHAPE = "samples/DATASET/MODEL/sSEED/STEP/SAMPLER/samples.npz"
COLUMNS = (
    *("row", "dataset", "model", "seed", "step", "sampler", "first", "last", "source"),
    *("left", "top", "side", "scale"),
)
"""Of the csv; `left` and `top` are where the row's first image begins in the PNG, `side` is how many pixels an image is
high and wide there, `scale` how many of them show one pixel of the image."""


def draw(inputs: list[Path], images: int, out: Path, named: Mapping[str, str]) -> None:
    """Write out/figure.png and out/figure.csv from samples.npz files, a row of so many `images` each.

    `named` says how models are called; others go by `labels.model`.

    Raises:
        UserError: a file is no sample set or holds too few images.
    """
    found = [identify(path, SHAPE) for path in inputs]
    shown = [_images(path, images) for path in inputs]
    blocks = [_tile(enlarged) for enlarged, _ in shown]
    sheet, places = _compose(blocks, [_row_label(item, found, named) for item in found])
    canvas.save(sheet, out)
    rows = [
        [
            *(row, one.dataset, one.model, one.seed, one.step, one.sampler, 0, images - 1, one.source),
            *(*place, enlarged.shape[1], scale),
        ]
        for row, (one, place, (enlarged, scale)) in enumerate(zip(found, places, shown, strict=True))
    ]
    write_rows(out / "figure.csv", COLUMNS, rows)


def read(folder: Path) -> Iterator[tuple[Place, NDArray[np.uint8]]]:
    """What each row of a drawn grid shows: whose images, and they themselves, [N, H, W, 3] uint8 as they were drawn.

    Raises:
        UserError: the PNG and the csv are none that `draw` wrote.
    """
    try:
        with (folder / "figure.csv").open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        with Image.open(folder / "figure.png") as image:
            sheet = np.asarray(image.convert("RGB"))
        for row in rows:
            left, top, side, scale, last = (int(row[key]) for key in ("left", "top", "side", "scale", "last"))
            corners = (divmod(place, LINE) for place in range(last + 1))
            at = [(top + line * (side + GAP), left + column * (side + GAP)) for line, column in corners]
            images = np.stack([sheet[y : y + side, x : x + side] for y, x in at])
            if images.shape[1:] != (side, side, 3):
                raise ValueError(f"the picture is {sheet.shape[1]} x {sheet.shape[0]} pixels")
            yield identify(Path(row["source"]), SHAPE), images[:, ::scale, ::scale]
    except (OSError, KeyError, ValueError, TypeError, UnidentifiedImageError) as error:
        raise UserError(
            f"{folder}: expected a grid of images and its csv ({error!r:.80}); make the figure again"
        ) from error


def _images(path: Path, count: int) -> tuple[NDArray[np.uint8], int]:
    """The first `count` images of a set: [count, H, W, 3] uint8, enlarged without smoothing; and how often."""
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
    return np.broadcast_to(shown, (*shown.shape[:3], 3)), scale


def _tile(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images side by side, `LINE` a line at most, on white: [height, width, 3] uint8."""
    count, height, width, _ = images.shape
    columns = min(count, LINE)
    lines = math.ceil(count / columns)
    sheet = np.full((lines * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for place, image in enumerate(images):
        top, left = (place // columns) * (height + GAP), (place % columns) * (width + GAP)
        sheet[top : top + height, left : left + width] = image
    return sheet


def _compose(
    blocks: Sequence[NDArray[np.uint8]], names: Sequence[tuple[str, str]]
) -> tuple[Canvas, list[tuple[int, int]]]:
    """Blocks below each other, pixel for pixel, their labels on the left; and where each begins: left, top."""
    margin, gap, dpi = 16, 14, canvas.DPI
    label = 14 + round(max(8.0 * len(text) + 6 for pair in names for text in pair) * dpi / 100)
    heights = [max(block.shape[0], 50) for block in blocks]
    height = sum(heights) + gap * (len(blocks) - 1) + 2 * margin
    width = label + max(block.shape[1] for block in blocks) + margin
    sheet = canvas.new(width / dpi, height / dpi)
    top, places = margin, list[tuple[int, int]]()
    for block, room, (head, tail) in zip(blocks, heights, names, strict=True):
        low = height - top - (room + block.shape[0]) // 2
        sheet.figimage(block, xo=label, yo=low, origin="upper", resize=False)
        places.append((label, height - low - block.shape[0]))
        middle = 1 - (top + room / 2) / height
        sheet.text(margin / width, middle, head, weight="bold", fontsize=8, va="bottom", color=canvas.INK)
        sheet.text(margin / width, middle, tail, fontsize=6.5, va="top", color=canvas.SOFT)
        top += room + gap
    return sheet, places


def _row_label(item: Place, found: Sequence[Place], named: Mapping[str, str]) -> tuple[str, str]:
    """The model, and below it the sampler and whatever else differs between the rows."""
    differs = {
        labels.dataset(item.dataset): {one.dataset for one in found},
        f"{item.step:,} steps": {one.step for one in found},
        f"seed {item.seed}": {one.seed for one in found},
    }
    tail = [labels.sampler(item.sampler), *(text for text, values in differs.items() if len(values) > 1)]
    return named.get(item.model) or labels.model(item.model), ", ".join(tail)
