"""Data sets that are published as files of single images: CelebA, FFHQ, and anybody's own directory or .zip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ipdiff.data import decode, files
from ipdiff.errors import UserError
from ipdiff.spec import Source

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
BLOCK = 256
"""Images decoded before they are handed on."""
CELEBA_SIZE = (178, 218)
"""Width and height of the aligned CelebA images."""

_Blocks = Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]


def read_folder(source: Source, paths: Sequence[Path], scratch: Path) -> _Blocks:
    """The png, jpg and webp images of a directory or .zip, in the sorted order of their paths.

    The label is the index of the first-level sub-directory where all images lie in sub-directories, else
    -1. Hidden files and `__MACOSX` are passed over.
    """
    with files.opened(paths[0]) as found:
        chosen = _chosen(paths[0], found, SUFFIXES)
        yield from _blocks(source, chosen, _labels(list(chosen)))


def read_celeba(source: Source, paths: Sequence[Path], scratch: Path) -> _Blocks:
    """img_align_celeba.zip, or its directory: 202,599 jpg of 178x218, in the order of their numbers.

    The first 162,770 are the training split of list_eval_partition.txt (`limit`); the paper uses all.
    """
    with files.opened(paths[0]) as found:
        yield from _blocks(source, _chosen(paths[0], found, (".jpg",)), size=CELEBA_SIZE)


def read_ffhq(source: Source, paths: Sequence[Path], scratch: Path) -> _Blocks:
    """thumbnails128x128, a .zip or a directory: 70,000 png, 1000 a sub-directory, in the order of their numbers."""
    with files.opened(paths[0]) as found:
        yield from _blocks(source, _chosen(paths[0], found, (".png",)))


def _chosen(raw: Path, found: files.Files, suffixes: tuple[str, ...]) -> files.Files:
    """The images among the files, sorted by path; UserError if there are none."""
    names = sorted(name for name in found if _is_image(name, suffixes))
    if not names:
        raise UserError(f"{raw}: no images; expected files ending in {', '.join(suffixes)}")
    return {name: found[name] for name in names}


def _is_image(name: str, suffixes: tuple[str, ...]) -> bool:
    parts = PurePosixPath(name).parts
    return name.lower().endswith(suffixes) and not any(p[0] == "." or p == "__MACOSX" for p in parts)


def _labels(names: list[str]) -> NDArray[np.int64]:
    """Index of each name's first directory among all; -1 for all names where one has no directory."""
    if not all("/" in name for name in names):
        return np.full(len(names), -1, np.int64)
    tops = [name.split("/", 1)[0] for name in names]
    index = {top: label for label, top in enumerate(sorted(set(tops)))}
    return np.array([index[top] for top in tops], np.int64)


def _blocks(
    source: Source,
    chosen: files.Files,
    labels: NDArray[np.int64] | None = None,
    size: tuple[int, int] | None = None,
) -> _Blocks:
    entries = list(chosen.values())
    labels = np.full(len(entries), -1, np.int64) if labels is None else labels
    for start in range(0, len(entries), BLOCK):
        part = slice(start, start + BLOCK)
        yield np.stack([decode.entry(entry, source, size) for entry in entries[part]]), labels[part]
