"""What is in a user's own directory or archive of images, before a data set is made of it: every file is looked at.

Each image is decoded by the functions that `read_folder` decodes with, so what is found here is what `prepare` will do.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ipdiff.data.formats import decode, files
from ipdiff.data.readers.images import SUFFIXES, bytes_of, labels_of, sorted_out
from ipdiff.data.spec import Source
from ipdiff.errors import UserError

GREY = ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes without colour."""


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        usable: images that can be read and brought to the wanted size.
        sizes: (width, height) of the usable ones, upright -> how many.
        modes: their mode, as `decode.mode` names it -> how many.
        broken: images that cannot be read: their names, and why.
        refused: images that can be read, but not used: their names, and why.
        passed_over: files that are no images: the end of their names or "hidden" -> how many.
        labels: folders that images are labelled by -> how many usable ones each has; empty where there are no labels.
        grey: usable images without colour once decoded, however they are stored.
        seconds: that it took to look at all of them.
    """

    usable: int
    sizes: Mapping[tuple[int, int], int]
    modes: Mapping[str, int]
    broken: Mapping[str, str]
    refused: Mapping[str, str]
    passed_over: Mapping[str, int]
    labels: Mapping[str, int]
    grey: int
    seconds: float

    @property
    def channels(self) -> int:
        """1 where every usable image is grey, else 3."""
        return 1 if all(mode.partition(" with ")[0] in GREY for mode in self.modes) else 3

    @property
    def mixed(self) -> bool:
        """Whether some image has another mode than its data set will have, and must be converted."""
        return set(self.modes) != {decode.MODES[self.channels]}

    def fits(self, size: int) -> bool:
        """Whether every usable image has size x size pixels already."""
        return set(self.sizes) == {(size, size)}


def survey(
    raw: Path,
    size: int,
    labels: Literal["folders", "none"] = "folders",
    progress: Callable[[int], None] = lambda done: None,
) -> Survey:
    """Look at every file of a directory, .zip or .tar.gz.

    Args:
        raw: the directory or archive.
        size: side in pixels that images will be brought to.
        labels: whether the folders are labels; see `Source.labels`.
        progress: is told how many images were looked at.

    Raises:
        UnusableImages: some images lie beside the folders that are the labels.
        UserError: there are no images, none that can be used, or the archive is refused.
    """
    asked = Source("folder", size, 3, raw=str(raw), preprocessing="center-crop", modes="convert", labels=labels)
    sizes, modes, per_label = Counter[tuple[int, int]](), Counter[str](), Counter[int]()
    broken: dict[str, str] = {}
    refused: dict[str, str] = {}
    grey, start = 0, time.perf_counter()
    with files.opened(raw) as found:
        chosen, passed_over = sorted_out(found)
        if not chosen:
            raise UserError(f"{raw}: no images; expected files ending in {', '.join(SUFFIXES)}")
        numbers, folders = labels_of(raw, list(chosen), asked)
        for done, ((name, entry), label) in enumerate(zip(chosen.items(), numbers, strict=True), 1):
            try:
                data = bytes_of(name, entry)
                pixels, mode = decode.own(data, asked)
                sizes[decode.upright_size(data)] += 1
                modes[mode] += 1
                grey += bool((pixels == pixels[:, :, :1]).all())
                per_label[label] += 1
            except decode.Unusable as fault:
                (broken if fault.fault == "unreadable" else refused)[name] = str(fault)
            progress(done)
    if not modes:
        name, why = next(iter((broken | refused).items()))
        raise UserError(f"{raw}: none of {len(chosen)} images can be used; the first: {files.shown(name)} {why}")
    known = {folder: per_label[label] for label, folder in enumerate(folders)}
    seconds = time.perf_counter() - start
    return Survey(modes.total(), dict(sizes), dict(modes), broken, refused, passed_over, known, grey, seconds)
