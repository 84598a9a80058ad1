"""The first screen of a report: which figure leads, and the images from the same noise, without and with."""

from __future__ import annotations

import io
import math
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ipdiff.report import labels
from ipdiff.report.figures import samples
from ipdiff.report.origin import Place
from ipdiff.report.pages.answer import LEADING
from ipdiff.report.results import grouped
from ipdiff.report.spec import Study

AXES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "sampler": ("sampler", labels.sampler),
    "dataset": ("data set", labels.dataset),
    "step": ("training steps", "{:,} training steps".format),
    "seed": ("training seed", "training seed {}".format),
}
"""What images are chosen by, where they differ in it: the attribute of a `Place`, its name, and that of a value."""


@dataclass(frozen=True)
class Block:
    """Images of one model: how it is called, whether its input was perturbed (None: not known), and a PNG of them."""

    model: str
    perturbed: bool | None
    count: int
    base64: str
    pixels: tuple[int, int]


@dataclass(frozen=True)
class Panel:
    """The models' images at one choice: what was chosen, in words and as the places of the options."""

    choice: str
    text: str
    blocks: list[Block]


@dataclass(frozen=True)
class Strips:
    """Images of models side by side, weaker input perturbation first; `options` are the names of what can be chosen."""

    options: dict[str, list[str]]
    panels: list[Panel]


def leading(study: Study, unperturbed: Mapping[str, str]) -> list[str]:
    """The names of the figures that stand on the first screen: a metric over T', and a grid of images.

    The first is one of lines over T' or network calls that shows a model with input perturbation and its like without,
    by the metric that answers (`answer.LEADING`). Where there is none, it is left out; so are images.
    """
    lines = [
        (LEADING.index(figure.metric), figure.x != "sample_steps", place, name)
        for place, (name, figure) in enumerate(study.figures.items())
        if figure.kind == "lines" and not figure.over_training and figure.metric in LEADING
        if len(figure.samplers) > 1 and any(unperturbed.get(model) in figure.models for model in figure.models)
    ]
    images = [name for name, figure in study.figures.items() if figure.kind == "samples"]
    return [name for *_, name in sorted(lines)[:1]] + images[:1]


def strips(folder: Path, named: Mapping[str, str], unperturbed: Mapping[str, str]) -> Strips:
    """The images of a figure of kind samples, as they are chosen from.

    Args:
        folder: of the figure.
        named: how models are called.
        unperturbed: by model with input perturbation, its like without.

    Raises:
        UserError: the figure is malformed.
    """
    rows = list(samples.read(folder))
    values = {axis: list(dict.fromkeys(getattr(place, axis) for place, _ in rows)) for axis in AXES}
    several = {axis: found for axis, found in values.items() if len(found) > 1}

    def choice(place: Place) -> tuple[Any, ...]:
        return tuple(getattr(place, axis) for axis in AXES)

    panels: list[Panel] = []
    for at, group in grouped(rows, lambda row: choice(row[0])).items():
        chosen = dict(zip(AXES, at, strict=True))
        group.sort(key=lambda row: row[0].model in unperturbed)
        said = [AXES[axis][1](chosen[axis]) for axis in AXES if axis == "sampler" or axis in several]
        panels.append(
            Panel(
                " ".join(str(several[axis].index(chosen[axis])) for axis in several),
                ", ".join(said),
                [_block(place, images, named, unperturbed) for place, images in group],
            )
        )
    options = {AXES[axis][0]: [AXES[axis][1](value) for value in found] for axis, found in several.items()}
    return Strips(options, panels)


def _block(place: Place, images: NDArray[np.uint8], named: Mapping[str, str], unperturbed: Mapping[str, str]) -> Block:
    known = {**dict.fromkeys(unperturbed.values(), False), **dict.fromkeys(unperturbed, True)}
    sheet = _sheet(images)
    stream = io.BytesIO()
    Image.fromarray(sheet).save(stream, "PNG", optimize=True)
    return Block(
        named.get(place.model) or labels.model(place.model),
        known.get(place.model),
        len(images),
        b64encode(stream.getvalue()).decode(),
        (sheet.shape[1], sheet.shape[0]),
    )


def _sheet(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images [n, H, W, 3] in as many columns as lines, a clear pixel between two of them: [height, width, 4] uint8."""
    count, height, width, _ = images.shape
    columns = math.ceil(math.sqrt(count))
    lines = math.ceil(count / columns)
    sheet = np.zeros((lines * (height + 1) - 1, columns * (width + 1) - 1, 4), np.uint8)
    for place, image in enumerate(images):
        top, left = (place // columns) * (height + 1), (place % columns) * (width + 1)
        sheet[top : top + height, left : left + width, :3] = image
        sheet[top : top + height, left : left + width, 3] = 255
    return sheet
