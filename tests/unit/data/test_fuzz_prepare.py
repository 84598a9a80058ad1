"""Whatever a directory or an archive of images holds: an exit code, at most 300 characters, at most 1 GiB."""

import contextlib
import gzip
import io
import shutil
import tarfile
import warnings
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from unit.fuzzed import Fuzzed
from unit.params_factory import put, small, write

from ipdiff.data.formats import decode
from ipdiff.data.spec import Source

SIDES = [(8, 8), (5, 70), (16_000, 1)]
WRITTEN = [
    ("PNG", {}, "1 L LA P RGB RGBA I;16"),
    ("PNG", {"transparency": 0}, "L P I;16"),
    ("JPEG", {}, "L RGB CMYK"),
    ("JPEG", {"progressive": True}, "RGB"),
    ("WEBP", {}, "RGB RGBA"),
    ("WEBP", {"lossless": True}, "RGBA"),
    ("GIF", {}, "1 L P"),
    ("BMP", {}, "1 L P RGB"),
    ("TIFF", {}, "1 L P RGB RGBA CMYK I;16 I F"),
    ("TIFF", {"compression": "tiff_deflate"}, "L RGB"),
    ("TIFF", {"compression": "tiff_lzw"}, "L RGB"),
    ("TIFF", {"compression": "jpeg"}, "L RGB"),
    ("TIFF", {"compression": "group4"}, "1"),
    ("PPM", {}, "1 L RGB I"),
    ("AVIF", {}, "RGB RGBA"),
]
"""Format, options and modes of the images to damage."""


@cache
def whole():
    """These images in each shape."""
    exif = Image.Exif()
    exif[274] = 6
    found = []
    for width, height in SIDES:
        grey = Image.fromarray(np.random.default_rng(width).integers(0, 255, (height, width), dtype=np.uint8))
        for kind, options, modes in WRITTEN:
            for mode in modes.split():
                image = (grey.convert("RGB") if mode in ("RGBA", "CMYK") else grey).convert(mode)
                file = io.BytesIO()
                image.save(file, kind, **options, **({} if kind == "PPM" else {"exif": exif}))
                found.append(file.getvalue())
    return found


def _film():
    file = io.BytesIO()
    frames = [Image.new("L", (8, 8), value) for value in (0, 100, 200)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


OTHERS = [
    b"",
    b"<!DOCTYPE html><html>",
    b"version https://git-lfs.github.com/spec/v1\n",
    b"\x80\x04}.",
    b"\x93NUMPY\x01\x00",
    b"PK\x03\x04",
    gzip.compress(bytes(100_000)),
    bytes(5000),
    _film(),
]
NAMES = [
    "a.png",
    "b.jpg",
    "c/d.tif",
    "e/f.gif",
    "g",
    "h.txt",
    ".i.png",
    "j.heic",
    "k.NEF",
    "c\\l.png",
    "c/./m.webp",
    "\xe9.ppm",
]
ODD = [
    "../o.png",
    "/p.png",
    "C:q.png",
    "r\ns.png",
    "__MACOSX/t.png",
    "u" * 5000 + ".png",
    "v/" * 300 + "w.png",
    "\u2603" * 90,
]


@st.composite
def contents(draw):
    """Bytes of a file: a whole image, a damaged one, or none."""
    data = bytearray(draw(st.sampled_from(whole()) | st.sampled_from(OTHERS) | st.binary(max_size=300)))
    for damage in draw(st.lists(st.sampled_from(["cut", "flip", "huge", "magic", "twice"]), max_size=2)):
        place = draw(st.integers(0, min(len(data), 200)))
        if damage == "cut":
            del data[draw(st.integers(0, len(data))) :]
        elif damage == "flip":
            data[place : place + 1] = bytes([draw(st.integers(0, 255))])
        elif damage == "huge":  # where a format has its sides, counts and lengths
            value = draw(st.sampled_from([b"\xff\xff\xff\x7f", b"\x00\x00\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x01"]))
            data[place : place + len(value)] = value
        elif damage == "magic":
            other = draw(st.sampled_from(whole()))
            data[: len(other[:12])] = other[:12]
        else:
            data = data * 2
    return bytes(data)


def _zip(files, method):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that stand there twice
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return file.getvalue()


def _tar(files):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


SOURCES = st.fixed_dictionaries(
    {
        "reader": st.just("folder"),
        "raw": st.just("raw/x"),
        "image_size": st.sampled_from([8, 8, 64]),
        "channels": st.sampled_from([1, 3]),
        "preprocessing": st.sampled_from(["none", "center-crop", "center-crop"]),
        "modes": st.sampled_from(["refuse", "convert", "convert"]),
        "skip_broken": st.booleans(),
        "labels": st.sampled_from(["folders", "none"]),
        "limit": st.sampled_from([None, None, 2]),
    }
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A directory, and the process that runs ipdiff there."""
    directory = tmp_path_factory.mktemp("fuzzed")
    (directory / "raw").mkdir()
    process = Fuzzed(directory)
    yield directory, process
    process.close()


def check(project, source):
    directory, process = project
    write(directory, put(small(), "datasets.photos.source", source))
    made = directory / "data" / "photos"
    shutil.rmtree(made, ignore_errors=True)
    answer = process.run(["prepare", "--dataset", "photos"])
    said = answer["said"]
    assert answer["code"] in (0, 2, 3), answer
    assert len(said) <= 300, said
    assert said.count("\n") == 1
    assert "Traceback" not in said
    assert "object at 0x" not in said
    assert answer["peak"] < 2**30
    assert (made / "recipe.json").exists() == (answer["code"] == 0)
    assert not list((directory / "work" / "staging").glob("*"))
    if answer["code"] == 0:
        images = np.load(made / "images.npy")
        assert images.shape == (len(images), source["image_size"], source["image_size"], source["channels"])
        assert len(images) >= 1


def replace(raw: Path):
    """Room for another `raw`."""
    if raw.is_dir():
        shutil.rmtree(raw)
    raw.unlink(missing_ok=True)


many = settings(max_examples=100, deadline=None)


@many
@given(files=st.dictionaries(st.sampled_from(NAMES), contents(), max_size=3), source=SOURCES)
def test_directories(project, files, source):
    raw = project[0] / "raw" / "x"
    replace(raw)
    raw.mkdir()
    for name, data in files.items():
        path = raw / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    check(project, source)


@many
@given(
    files=st.lists(st.tuples(st.sampled_from(NAMES), contents()), max_size=3),
    odd=st.none() | st.tuples(st.sampled_from(ODD) | st.text(max_size=20), contents()),
    method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, None]),
    source=SOURCES,
)
def test_archives(project, files, odd, method, source):
    try:
        held = [odd] if odd else files  # one file may have a name of any length
        packed = _tar(held) if method is None else _zip(held, method)
    except (UnicodeEncodeError, ValueError):  # no packer writes such a name
        return
    raw = project[0] / "raw" / "x"
    replace(raw)
    raw.write_bytes(packed)
    check(project, source)


@many
@given(data=st.data(), source=SOURCES)
def test_damaged_archives(project, data, source):
    files = [("a/1.png", whole()[0]), ("b/2.jpg", whole()[-1])]
    packed = bytearray(data.draw(st.sampled_from([_zip(files, zipfile.ZIP_DEFLATED), _tar(files)])))
    kind = data.draw(st.sampled_from(["cut", "flip", "random"]))
    if kind == "cut":
        del packed[data.draw(st.integers(0, len(packed))) :]
    elif kind == "flip":
        for place in data.draw(st.lists(st.integers(0, len(packed) - 1), min_size=1, max_size=4)):
            packed[place] = data.draw(st.integers(0, 255))
    else:
        packed = bytearray(data.draw(st.sampled_from([b"", b"PK\x03\x04", b"\x1f\x8b\x08"]) | st.binary(max_size=200)))
    raw = project[0] / "raw" / "x"
    replace(raw)
    raw.write_bytes(packed)
    check(project, source)


def test_the_images_that_are_damaged_are_read_when_they_are_not():
    """Else the other tests would try one kind of refusal only."""
    source = Source("folder", 8, 3, "x", preprocessing="center-crop", modes="convert")
    read = set()
    for data in whole():
        with Image.open(io.BytesIO(data)) as picture:
            kind = picture.format
        with contextlib.suppress(decode.Unusable):  # 32-bit ones
            assert decode.own(data, source)[0].shape == (8, 8, 3)
            read.add(kind)
    assert read == set(decode.FORMATS)
