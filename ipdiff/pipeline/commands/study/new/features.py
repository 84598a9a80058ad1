"""Which features a new study's distances are taken on: what it asks for, or what its pictures allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ipdiff.data.readers.survey import Survey
from ipdiff.errors import UserError
from ipdiff.metrics.spec import FEATURES, Classifier, Inception, TorchScript
from ipdiff.pipeline import config

_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
"""Of red, green and blue: what most networks for pictures were trained with."""
_WITHOUT = [name for name, kind in FEATURES.items() if kind.file != "named"]
"""Features that need no file of the user's."""
MAP = 7 * 16 * 16
"""Spatial features of the classifier at most; Inception has as many, about."""


@dataclass(frozen=True)
class Chosen:
    """Features, and why.

    Attributes:
        name: a key of `FEATURES`.
        settings: of the network, where it has some.
        why: a sentence.
    """

    name: str
    settings: Classifier | TorchScript | None
    why: str

    def dimensions(self, channels: int, size: int) -> Sequence[int]:
        """Features of an image that each Frechet distance compares, at most."""
        pixels = channels * min(size, 32) ** 2
        if isinstance(self.settings, Classifier):
            return self.settings.features, MAP, pixels
        if isinstance(self.settings, TorchScript):
            return self.settings.width, pixels
        return (2048, MAP, pixels) if self.name == "inception" else (pixels, pixels)


def check(asked: str | None) -> None:
    """Refuse a word that is neither one of `FEATURES` nor the path of a file; see `choose`."""
    if asked not in (None, *_WITHOUT) and not Path(asked).is_file():
        near = config.nearest(asked, _WITHOUT)
        raise UserError(f"--features is '{asked}': no such file, and none of {', '.join(_WITHOUT)}{near}")


def choose(asked: str | None, found: Survey, side: int) -> Chosen:
    """The features that were asked for, or the best that there are.

    Args:
        asked: classifier, inception, pixels, or the path of a TorchScript file; None to choose.
        found: the pictures.
        side: pixels to which images are resized for a TorchScript network.

    Raises:
        UserError: what was asked for is not to be had.
    """
    filled = [folder for folder, count in found.labels.items() if count]
    if asked == "classifier" or (asked is None and len(filled) > 1):
        if len(filled) < 2:
            raise UserError(
                f"--features classifier needs pictures in two folders or more, one for each label; found "
                f"{len(filled)} such folders"
            )
        least = min(found.labels[folder] for folder in filled)
        few = f" (the smallest folder has {least}, which is few)" if least < 50 else ""
        return Chosen("classifier", Classifier(), f"a small CNN is trained on the {len(filled)} labels{few}")
    if asked not in (None, *_WITHOUT):
        return _of_file(Path(asked), side)
    if asked == "inception" or (asked is None and (_inception() or "").startswith("its file is")):
        return Chosen("inception", None, f"Inception, as in the paper: {_inception()}")
    why = "no network at all: the pixels themselves"
    if asked is None:
        why += (
            f". There are no labels; Inception ({Inception().file} in raw/ or named by IPDIFF_INCEPTION) or a network "
            "of your own (--features FILE, TorchScript) would say more"
        )
    return Chosen("pixels", None, why)


def _inception() -> str:
    from ipdiff.metrics.features import inception_file

    spec = Inception()
    try:
        return f"its file is {inception_file.find(spec)}"
    except UserError:
        return f"put {spec.file} into raw/ (it is downloaded from {spec.url} where there is a network)"


def _of_file(path: Path, side: int) -> Chosen:
    """A TorchScript network, which is opened and shown one image to learn its width."""
    import torch

    from ipdiff.metrics.features.torchscript_file import first_line, open_file, unfused

    check(str(path))
    shown, remedy = f"images [2, 3, {side}, {side}]", "another side may be given with --feature-size"
    network, sha256 = open_file(path, torch.device("cpu"), None)
    try:
        with torch.no_grad(), unfused():
            shape = list(network(torch.zeros(2, 3, side, side)).shape)
    except Exception as error:  # a program may raise anything
        raise UserError(f"{path}: cannot take {shown} float32: {first_line(error)}; {remedy}") from None
    if len(shape) != 2 or shape[0] != 2:
        raise UserError(f"{path}: gives {shape} for {shown}; expected [2, width]; {remedy}")
    settings = TorchScript(
        config.project_path(str(path)), sha256, side, resize="bicubic", **_IMAGENET, width=int(shape[1])
    )
    why = f"{path}, {shape[1]} features of images resized to {side}x{side}, normalised as for ImageNet"
    return Chosen("torchscript", settings, why)
