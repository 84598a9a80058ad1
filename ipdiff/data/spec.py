"""Where a data set comes from and what its images are."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from ipdiff.parameters import FORBID, Range, Record, check

Quantise = Literal["truncate", "round"]


Preprocessing = Literal["none", "center-crop", "box-crop", "resize", "crop128"]


@dataclass(frozen=True)
class ReaderKind:
    """One kind of raw data.

    Attributes:
        read: the generator that reads it: module:function.
        image_size: of its images; None where `Source` chooses.
        channels: of its images; None where `Source` chooses.
        preprocessings: what it can make of an image of another size, its default first.
        files: raw files it reads: 0 for embedded data, 1, or None for as many as there are.
        own: whether its images are a user's own, in any mode and layout.
        labelled: whether its images can have labels.
    """

    read: str
    image_size: int | None = None
    channels: int | None = None
    preprocessings: tuple[str, ...] = ("none",)
    files: int | None = 1
    own: bool = False
    labelled: bool = True


READERS = {
    "digits": ReaderKind("ipdiff.data.readers.digits:read", 8, 1, files=0),
    "folder": ReaderKind("ipdiff.data.readers.images:read_folder", preprocessings=("none", "center-crop"), own=True),
    "cifar10": ReaderKind("ipdiff.data.readers.cifar10:read", 32, 3),
    "imagenet32": ReaderKind("ipdiff.data.readers.imagenet32:read", 32, 3),
    "lsun": ReaderKind("ipdiff.data.readers.lsun:read", None, 3, ("box-crop",), labelled=False),
    "celeba": ReaderKind(
        "ipdiff.data.readers.images:read_celeba", None, 3, ("resize", "crop128", "center-crop"), labelled=False
    ),
    "ffhq": ReaderKind("ipdiff.data.readers.images:read_ffhq", None, 3, labelled=False),
    "fashion_mnist": ReaderKind("ipdiff.data.readers.fashion_mnist:read", 28, 1, files=None),
}
"""Kinds of raw data by name; a new one is a row here and its function."""

if TYPE_CHECKING:
    Reader = str
else:
    Reader = Literal[tuple(READERS)]


@dataclass(frozen=True, kw_only=True)
class Download(Record):
    """How a published file is got. Changes no byte of any artifact."""

    __pydantic_config__: ClassVar = FORBID
    size: Annotated[int | None, "its size in bytes", Range(1)] = None
    url: Annotated[str | None, "where it may be downloaded from without asking anybody"] = None
    mirrors: Annotated[list[str], "other places of the same file, tried in turn where the one before fails"] = field(
        default_factory=list
    )
    how: Annotated[str, "a sentence that says how to get it, where there is no url"] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.url is not None or not self.mirrors, "mirrors are given, but no url; give the first of them as url")


@dataclass(frozen=True, kw_only=True)
class Archive(Download):
    """A published file: its name, its digest, and how it is got."""

    file: Annotated[str, "its name in raw/"]
    sha256: Annotated[str | None, "digest of its bytes; not checked if empty"] = None


@dataclass(frozen=True)
class Source(Record):
    """Where a data set comes from and what its images are."""

    __pydantic_config__: ClassVar = FORBID
    reader: Annotated[Reader, "which reader of `ipdiff.data` opens the raw data"]
    image_size: Annotated[int, "height and width in pixels", Range(1)]
    channels: Annotated[int, "1 (grey) or 3 (RGB)", Range(values=(1, 3))]
    raw: Annotated[str | None, "path of the raw archive or directory, an input of both engines"] = None
    limit: Annotated[int | None, "use only the first so many images; all if empty", Range(2)] = None
    archives: Annotated[
        dict[str, str | None],
        "instead of `raw`: published files by name, each with its sha256 (unknown if empty); `downloads` says how "
        "they are got",
    ] = field(default_factory=dict)
    preprocessing: Annotated[
        Preprocessing | None,
        "what is made of images of another size; the reader's first choice if empty",
    ] = None
    num_images: Annotated[int | None, "how many images the raw data must hold; not checked if empty", Range(1)] = None
    modes: Annotated[
        Literal["refuse", "convert"],
        "reader folder, images that are not grey or RGB as `channels` says: refuse them (all are counted, the first "
        "named), or convert them: transparency on white, palette, grey and CMYK to RGB, colour to grey, 16 bits to 8",
    ] = "refuse"
    skip_broken: Annotated[
        bool, "reader folder: pass over images that cannot be read, and name them in the recipe, not refuse them"
    ] = False
    labels: Annotated[
        Literal["folders", "none"],
        "reader folder: the folders that images lie in are their labels, or images have none",
    ] = "folders"

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = READERS[self.reader]
        for key in ("image_size", "channels"):
            its = getattr(kind, key)
            check(
                its in (None, getattr(self, key)), f"{key} is {getattr(self, key)}; images of {self.reader} have {its}"
            )
        check(
            self.preprocessing in (None, *kind.preprocessings),
            f"preprocessing is {self.preprocessing}; reader {self.reader} has {', '.join(kind.preprocessings)}",
        )
        for key, default in (("modes", "refuse"), ("skip_broken", False), ("labels", "folders")):
            check(
                kind.own or getattr(self, key) == default,
                f"{key} is {getattr(self, key)}; reader {self.reader} takes its images as they are published",
            )
        if kind.files == 0:
            check(self.raw is None and not self.archives, f"reader {self.reader} needs no `raw` and no `archives`")
        else:
            check(
                (self.raw is None) == bool(self.archives),
                f"reader {self.reader} needs one of `raw` (the path of its archive or directory) and `archives`",
            )
        for file, digest in self.archives.items():
            check(
                bool(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", file)),
                f"archives has '{file}'; use the plain name of a file, without a directory",
            )
            check(
                digest is None or bool(re.fullmatch("[0-9a-f]{64}", digest)),
                f"archives.{file} is '{digest}'; use a sha256: 64 hexadecimal digits in lower case",
            )

    @property
    def chosen_preprocessing(self) -> str:
        """`preprocessing`, or the reader's first choice."""
        return self.preprocessing or READERS[self.reader].preprocessings[0]

    @property
    def expected_images(self) -> int | None:
        """How many images there will be, where that is known before they are read."""
        return min((number for number in (self.limit, self.num_images) if number is not None), default=None)
