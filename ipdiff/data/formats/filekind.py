"""What a file is, by its first bytes and in words: for whoever reads files of others and has to refuse one.

No more than the first bytes are read, and of a zip archive the names of what is in it.
"""

from __future__ import annotations

import codecs
import struct
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ipdiff.errors import UserError, brief

HEAD = 512
"""First bytes by which a file is known."""

_MAX_SAFETENSORS_HEADER = 100_000_000


@dataclass(frozen=True)
class Kind:
    """What a file is.

    Attributes:
        name: for programs: `npy`, `zip`, `npz`, `torch`, `torchscript`, `safetensors`, `pickle`, `html`, ...
        words: for people, to stand after "is": `an HTML page: a login, ...`.
        stand_in: whether it stands where another file was expected to be: a web page, a pointer, nothing at all.
    """

    name: str
    words: str
    stand_in: bool = False


_EMPTY = Kind("empty", "an empty file", stand_in=True)
_HTML = Kind(
    "html",
    "an HTML page: a login, confirmation or error page was saved instead of the file; download the file itself",
    stand_in=True,
)
_STAND_INS = {
    b"<?xml": Kind("xml", "XML: if it was downloaded, a server's error instead of the file", stand_in=True),
    b"version https://git-lfs": Kind(
        "lfs", "a pointer of Git LFS; get the file itself with git lfs pull", stand_in=True
    ),
    b"/annex/objects/": Kind("annex", "a pointer of git-annex; get the file itself with git annex get", stand_in=True),
    b"outs:\n- md5:": Kind("dvc", "a pointer of DVC; get the file itself with dvc pull", stand_in=True),
}
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script")

_MAGIC = {
    b"\x93NUMPY": Kind("npy", "an npy file of numpy"),
    b"PK\x03\x04": Kind("zip", "a zip archive"),
    b"PK\x05\x06": Kind("zip", "an empty zip archive"),
    b"\x1f\x8b": Kind("gzip", "a gzip file (.gz or .tar.gz)"),
    b"BZh": Kind("bzip2", "a bzip2 file"),
    b"\xfd7zXZ\x00": Kind("xz", "an xz file"),
    b"\x28\xb5\x2f\xfd": Kind("zstd", "a zstd file"),
    b"7z\xbc\xaf\x27\x1c": Kind("7z", "a 7z archive"),
    b"Rar!\x1a\x07": Kind("rar", "a rar archive"),
    b"\x89HDF\r\n\x1a\n": Kind("hdf5", "an HDF5 file"),
    b"\x89PNG\r\n\x1a\n": Kind("png", "a PNG image"),
    b"\xff\xd8\xff": Kind("jpeg", "a JPEG image"),
    b"GIF8": Kind("gif", "a GIF image"),
    b"II*\x00": Kind("tiff", "a TIFF image"),
    b"MM\x00*": Kind("tiff", "a TIFF image"),
    b"8BPS": Kind("psd", "a Photoshop file"),
    b"%PDF-": Kind("pdf", "a PDF document"),
    b"\x7fELF": Kind("elf", "a program"),
}
_BOXES = {
    (b"avif", b"avis"): Kind("avif", "an AVIF image"),
    (b"heic", b"heix", b"hevc", b"mif1", b"msf1"): Kind("heic", "a HEIC image"),
}
"""Brands of the ISO container `ftyp`; what has another is taken for a video."""
_LMDB = (16, b"\xde\xc0\xef\xbe")
_TAR = (257, b"ustar")
_PICKLE = Kind("pickle", "a pickle, which may run code when it is read")


def of(head: bytes) -> Kind:
    """What a file is that begins with these bytes, `HEAD` of them or all.

    Of the same first bytes are several formats that are zip archives; `look` tells these apart.
    """
    if not head:
        return _EMPTY
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.lower().startswith(_PAGES):
        return _HTML
    for start, kind in _STAND_INS.items():
        if text.startswith(start):
            return kind
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return Kind("webp", "a WebP image")
    if head.startswith(b"BM") and head[6:10] == bytes(4):
        return Kind("bmp", "a BMP image")
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        return next((kind for brands, kind in _BOXES.items() if brand in brands), Kind("video", "a video"))
    if head[_LMDB[0] :].startswith(_LMDB[1]):
        return Kind("lmdb", "an LMDB database")
    if head[_TAR[0] :].startswith(_TAR[1]):
        return Kind("tar", "a tar archive")
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return _PICKLE
    if head[8:9] == b"{" and 2 <= struct.unpack("<Q", head[:8])[0] < _MAX_SAFETENSORS_HEADER:
        return Kind("safetensors", "a safetensors file")
    if not any(head):
        return Kind("zeros", "nothing but zero bytes at its start; get it again")
    return _unknown(head)


def _unknown(head: bytes) -> Kind:
    """A text, or bytes of no known kind; either way with its first ones."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        text = ""
    if text and all(letter.isprintable() or letter in "\t\r\n" for letter in text):
        return Kind("text", f"a text that begins with {text[:16]!r}")
    return Kind("unknown", f"of no known kind (it begins with {head[:8]!r})")


def look(path: Path) -> Kind:
    """What a file is; of a zip archive, what is in it.

    Raises:
        UserError: it is missing, no plain file, or cannot be read.
    """
    kind = of(head_of(path))
    if kind.name != "zip":
        return kind
    try:
        with zipfile.ZipFile(path) as archive:
            return zipped(archive.namelist())
    except Exception as error:  # zipfile raises many kinds on damaged bytes
        return Kind("damaged", f"a damaged or truncated zip archive ({brief(error, 80)}); get it again")


def head_of(path: Path) -> bytes:
    """The first bytes of a file; see `look` for what is raised."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is {'a directory' if path.is_dir() else 'no plain file'}; expected a file")
        with path.open("rb") as stream:
            return stream.read(HEAD)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {brief(getattr(error, 'strerror', None) or error)}") from None


def zipped(names: Sequence[str]) -> Kind:
    """What a zip archive with files of these names is."""
    files = [name for name in names if not name.endswith("/")]
    if any(name.endswith("/data.pkl") for name in files):
        if any(name.endswith("/constants.pkl") for name in files):
            return Kind("torchscript", "a program of TorchScript (torch.jit.save)")
        return Kind("torch", "a file of torch.save")
    if any(name.endswith(".npy") for name in files):
        return Kind("npz", "an npz file of numpy")
    if not files:
        return Kind("zip", "an empty zip archive")
    suffix, count = Counter(PurePosixPath(name).suffix.lower() for name in files).most_common(1)[0]
    if count == len(files) and suffix:
        return Kind("zip", f"a zip archive of {count} {brief(suffix, 10)} files")
    return Kind("zip", f"a zip archive of {len(files)} files such as {brief(files[0], 40)}")
