"""Data sets that are published as files of single images: CelebA, FFHQ, and anybody's own directory or archive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipdiff.data.formats import decode, files
from ipdiff.data.spec import Source
from ipdiff.errors import UserError

SUFFIXES = tuple(suffix for suffixes in decode.FORMATS.values() for suffix in suffixes)
"""Ends of the names of images that are read."""
NOT_READ = frozenset(
    ".heic .heif .jxl .jp2 .j2k .jpx .psd .svg .eps .xcf .tga .ico .icns .cur .pcx .qoi .exr .hdr .dds .fits .pfm .wmf "
    ".emf .sgi .ras .xbm .xpm .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .pef .srw".split()
)
"""Ends of the names of images that are not: refused, not passed over."""
NAMED = 10
"""Images that a refusal names, fewer where each has another reason."""
NAMES = 100
"""Characters that these names may take together; the first is given whatever its length."""
REASONS = 90
"""Characters that the reasons of such a refusal may take together; the first is given whatever its length."""
CELEBA_SIZE = (178, 218)
"""Width and height of the aligned CelebA images."""

_SEEN = ("png", "jpeg", "gif", "webp")
"""What counts as an image under any name."""
_Blocks = Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]


class UnusableImages(UserError):
    """Images that cannot be used.

    Attributes:
        found: it without what there is to do in a data set's settings.
    """

    def __init__(self, found: str, remedies: Iterable[str]) -> None:
        super().__init__("; ".join([found, *remedies]))
        self.found = found


def read_folder(source: Source, paths: Sequence[Path], scratch: Path, notes: dict[str, Any]) -> _Blocks:
    """The images of a directory, .zip or .tar.gz, in the sorted order of their paths; docs/inputs.md has the rules.

    Labels are the indices of the folders in which the images part; -1 where all lie in one. Files that are no images
    are passed over. Images that cannot be used are refused together, after all were looked at.

    Args:
        source: what the images must be, and what becomes of others.
        paths: the directory or archive.
        scratch: not used.
        notes: gets images (how many), passed_over (end of the name or "hidden" -> how many), converted (mode -> how
            many), broken (names of those skipped) and labels (their folders, in order).
    """
    with files.opened(paths[0]) as found:
        chosen, passed_over = sorted_out(found)
        if not chosen:
            raise UserError(f"{paths[0]}: no images; expected files ending in {', '.join(SUFFIXES)}")
        labels, folders = labels_of(paths[0], list(chosen), source)
        notes |= {"images": 0, "passed_over": passed_over, "converted": {}, "broken": [], "labels": folders}
        yield from decode.blocks(_own(paths[0], chosen, labels, source, notes), source)


def read_celeba(source: Source, paths: Sequence[Path], scratch: Path, notes: dict[str, Any]) -> _Blocks:
    """img_align_celeba.zip, or its directory: 202,599 jpg of 178x218, in the order of their numbers.

    The first 162,770 are the training split of list_eval_partition.txt (`limit`); the paper uses all.
    """
    yield from _published(source, paths[0], ".jpg", CELEBA_SIZE)


def read_ffhq(source: Source, paths: Sequence[Path], scratch: Path, notes: dict[str, Any]) -> _Blocks:
    """thumbnails128x128, a .zip or a directory: 70,000 png, 1000 a sub-directory, in the order of their numbers."""
    yield from _published(source, paths[0], ".png")


def _published(source: Source, raw: Path, suffix: str, size: tuple[int, int] | None = None) -> _Blocks:
    with files.opened(raw) as found:
        names = sorted(name for name in found if name.lower().endswith(suffix) and not _is_hidden(name))
        if not names:
            raise UserError(f"{raw}: no images; expected files ending in {suffix}")
        entries = (found[name] for name in names)
        yield from decode.blocks(
            ((decode.image(entry.read(), entry.where, source, size), -1) for entry in entries), source
        )


def _is_hidden(name: str) -> bool:
    return any(part[0] == "." or part == "__MACOSX" for part in PurePosixPath(name).parts)


def sorted_out(found: files.Files) -> tuple[files.Files, dict[str, int]]:
    """The images among the files, sorted by path; how many others there are, by the end of their names."""
    chosen: files.Files = {}
    passed_over: dict[str, int] = {}
    for name in sorted(found):
        suffix = _suffix(name)
        if _is_hidden(name):
            what = "hidden"
        elif suffix in SUFFIXES or suffix in NOT_READ or _kind(found[name]) in _SEEN:
            chosen[name] = found[name]
            continue
        else:
            what = suffix if 1 < len(suffix) <= 8 and suffix[1:].isalnum() else "others"
        passed_over[what] = passed_over.get(what, 0) + 1
    return chosen, passed_over


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _kind(entry: files.Entry) -> str:
    try:
        return entry.kind().name
    except UserError:  # no plain file, or damaged: nothing says that it is an image
        return ""


def labels_of(raw: Path, names: Sequence[str], source: Source) -> tuple[list[int], list[str]]:
    """Each image's label, and the folders that the labels stand for.

    Raises:
        UnusableImages: some images lie beside those folders.
    """
    none = [-1] * len(names)
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    first, last = min(folders), max(folders)
    depth = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    if source.labels == "none" or len(last) == depth:
        return none, []
    tops = sorted({folder[depth] for folder in folders if len(folder) > depth})
    strays = [name for name, folder in zip(names, folders, strict=True) if len(folder) == depth]
    if strays:
        more = f" and {len(strays) - 1} more images lie" if len(strays) > 1 else " lies"
        beside = ", ".join(map(files.shown, tops[:3])) + (", ..." if len(tops) > 3 else "")
        found = f"{raw}: {files.shown(strays[0])}{more} beside the folders that are the labels ({beside})"
        raise UnusableImages(found, ["move it into one of them or away, or set source.labels: none"])
    index = {top: label for label, top in enumerate(tops)}
    return [index[folder[depth]] for folder in folders], tops


def _own(
    raw: Path, chosen: files.Files, labels: Sequence[int], source: Source, notes: dict[str, Any]
) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """A user's images with their labels; at the end UserError for all that cannot be used."""
    faults: list[tuple[str, decode.Unusable]] = []
    for (name, entry), label in zip(chosen.items(), labels, strict=True):
        if notes["images"] + len(faults) == source.limit:
            break
        try:
            pixels, mode = decode.own(bytes_of(name, entry), source)
        except decode.Unusable as fault:
            if source.skip_broken and fault.fault == "unreadable":
                notes["broken"].append(name)
            else:
                faults.append((name, fault))
            continue
        notes["images"] += 1
        if mode != decode.MODES[source.channels]:
            notes["converted"][mode] = notes["converted"].get(mode, 0) + 1
        if not faults:
            yield pixels, label
    if faults:
        looked = notes["images"] + len(faults) + len(notes["broken"])
        remedies = _remedies({fault.fault for _, fault in faults}, source)
        raise UnusableImages(f"{raw}: {_complaint(faults, looked)}", remedies)
    if not notes["images"]:
        raise UserError(
            f"{raw}: none of {len(chosen)} images can be read; the first: {files.shown(notes['broken'][0])}"
        )


def bytes_of(name: str, entry: files.Entry) -> bytes:
    """An image's bytes; decode.Unusable where they cannot be read, or are of a format that is not read."""
    if (suffix := _suffix(name)) in NOT_READ:
        raise decode.Unusable(f"is a {suffix[1:]} file, which is not read")
    try:
        return entry.read()
    except UserError as error:
        reason, _, detail = str(error).removeprefix(f"{entry.where}: ").partition(": ")
        raise decode.Unusable(reason, detail=detail) from error


def _complaint(faults: Sequence[tuple[str, decode.Unusable]], looked: int) -> str:
    """How many images cannot be used, and the first of them by reason."""
    if len(faults) == 1:
        name, fault = faults[0]
        return f"{files.shown(name)}: {fault}"
    named, reasons = _first(faults)
    said = f"{len(faults)} of {looked} images cannot be used: {reasons}"
    return f"{said}; and {len(faults) - named} more" if len(faults) > named else said


def _first(faults: Sequence[tuple[str, decode.Unusable]]) -> tuple[int, str]:
    """How many of the images are named, and their names by reason."""
    reasons: dict[str, list[str]] = {}
    taken = 0
    for name, fault in faults[:NAMED]:
        shown = files.shown(name, 40)
        taken += len(shown)
        if reasons and (taken > NAMES or len("".join({*reasons, fault.reason})) > REASONS):
            break
        reasons.setdefault(fault.reason, []).append(shown)
    said = "; ".join(
        f"{', '.join(names)} {reason if len(names) == 1 else _of_several(reason)}" for reason, names in reasons.items()
    )
    return sum(map(len, reasons.values())), said


def _of_several(reason: str) -> str:
    """A reason of one image, said of more."""
    verb, _, rest = reason.partition(" ")
    each = "each " if rest.startswith(("a ", "an ")) else ""
    return f"{ {'is': 'are', 'has': 'have'}.get(verb, verb) } {each}{rest}"


def _remedies(kinds: set[str], source: Source) -> Iterator[str]:
    if "mode" in kinds and source.modes == "refuse":
        yield "convert, or set source.modes: convert"
    if "size" in kinds and source.chosen_preprocessing == "none":
        yield "resize, or choose a preprocessing"
    if "unreadable" in kinds:
        yield "mend or remove, or set source.skip_broken: true"
