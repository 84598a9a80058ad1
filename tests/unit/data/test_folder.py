"""A user's own images: which files count, what the folders mean, what becomes of odd images."""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from archives import write_lmdb, write_zip
from PIL import Image, ImageOps
from unit.raw_data import prepared, refusal, source

from ipdiff.data import prepare
from ipdiff.data.formats import decode
from ipdiff.data.formats.resize import MAX_PIXELS

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
"""Red, green; blue, yellow: no two of the eight ways to lay it are equal."""


def laid(side=8):
    """The four colours as quarters of an image."""
    return Image.fromarray(COLOURS.repeat(side // 2, 0).repeat(side // 2, 1))


def grey(value, mode="L", size=(8, 8)):
    return Image.new("L", size, value).convert(mode)


def data(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def fill(root, **files):
    """Files by name (`__` stands for a slash, `_` before the end for a dot): bytes, or an image to save as png."""
    for name, content in files.items():
        path = root / ".".join(name.replace("__", "/").rsplit("_", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else data(content))
    return root


def folder(raw, channels=3, **fields):
    return source("folder", raw, channels=channels, **fields)


def noted(chosen, tmp_path):
    """What `prepare` returns to be recorded."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    return prepare.run(chosen, out, [chosen.raw and type(tmp_path)(chosen.raw)])


WRITTEN = {
    "1.png": "PNG",
    "2.jfif": "JPEG",
    "3.JPG": "JPEG",
    "4.webp": "WEBP",
    "5.bmp": "BMP",
    "6.tif": "TIFF",
    "7.tiff": "TIFF",
    "8.ppm": "PPM",
    "9.avif": "AVIF",
}


def test_every_format_is_read_and_the_rest_is_counted(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for i, (name, kind) in enumerate(WRITTEN.items()):
        (raw / name).write_bytes(data(grey(20 * i, "RGB"), kind))
    fill(raw, a_txt=b"1", b_txt=b"2", c_Mov=b"3")
    (raw / "LICENSE").write_bytes(b"5")
    (raw / ".DS_Store").write_bytes(b"6")
    (raw / "photo").write_bytes(data(grey(180, "RGB")))  # its bytes say that it is one
    images, labels = prepared(folder(raw))
    assert len(images) == 10
    np.testing.assert_allclose(images[:, 4, 4, 0], 20 * np.arange(10), atol=3)
    assert labels.tolist() == [-1] * 10
    notes = noted(folder(raw), tmp_path)
    assert notes == {
        "images": 10,
        "passed_over": {".txt": 2, ".mov": 1, "hidden": 1, "others": 1},
        "converted": {},
        "broken": [],
        "labels": [],
    }
    assert prepare.summary(notes) == "10 images read; passed over: 1 .mov, 2 .txt, 1 hidden, 1 others; no labels"


@pytest.mark.parametrize("name", ["a.heic", "a.NEF", "a.psd", "a.svg"])
def test_what_looks_like_an_image_and_is_not_read_is_refused(tmp_path, name):
    (tmp_path / "0.png").write_bytes(data(grey(0, "RGB")))
    (tmp_path / name).write_bytes(data(grey(0, "RGB"), "TIFF"))  # as raw photos are, around a small preview
    text = refusal(folder(tmp_path))
    assert f"{name}: is a {name[2:].lower()} file, which is not read" in text


def test_a_still_gif_is_read_under_any_name_and_an_animation_is_not(tmp_path):
    fill(tmp_path, a_gif=data(laid(), "GIF"), b_png=data(laid(), "GIF"))
    text = refusal(folder(tmp_path))
    assert "2 of 2 images cannot be used: a.gif, b.png are P, not RGB (channels: 3); convert" in text
    images, _ = prepared(folder(tmp_path, modes="convert"))
    np.testing.assert_array_equal(images, np.stack([np.asarray(laid())] * 2))
    fill(tmp_path, c_gif=data(grey(0), "GIF", save_all=True, append_images=[grey(255)]))
    assert "c.gif: has more than one frame" in refusal(folder(tmp_path, modes="convert"))
    assert len(prepared(folder(tmp_path, modes="convert", skip_broken=True))[0]) == 2


def test_the_first_picture_of_a_jpeg_with_others_behind_it_is_read(tmp_path):
    fill(tmp_path, a_jpg=data(grey(200, "RGB"), "MPO", save_all=True, append_images=[grey(0, "RGB")]))
    assert (prepared(folder(tmp_path))[0] == 200).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.png: is empty"),
        (b"<!DOCTYPE html><p>Sign in", "x.png: is an HTML page: a login"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "x.png: is a pointer of Git LFS; get the file itself with git lfs",
        ),
        (b"\x00\x00\x00\x18ftypheic", "x.png: is a HEIC image, not PNG"),
        (b"PK\x03\x04", "x.png: is a zip archive, not PNG"),
        (b"\x89PNG\r\n\x1a\n", "x.png: is damaged: its header"),
        (b"text", "x.png: is a text that begins with 'text', not PNG or JPEG or WEBP"),
        (data(grey(0, "RGB"))[:-30], "x.png: is damaged: "),
    ],
    ids=["empty", "html", "lfs", "heic", "zip", "header", "text", "truncated"],
)
def test_what_an_unreadable_file_is(tmp_path, content, message):
    text = refusal(folder(fill(tmp_path, x_png=content)))
    assert message in text
    assert text.endswith("; mend or remove, or set source.skip_broken: true")
    assert "object at" not in text
    assert "none of 1 images can be read; the first: x.png" in refusal(folder(tmp_path, skip_broken=True))


def test_all_that_cannot_be_used_is_counted_and_the_first_ten_named(tmp_path):
    raw = fill(tmp_path / "raw", good_png=grey(9, "RGB"), small_png=grey(1, "RGB", (4, 4)), torn_png=b"\x89PNG")
    for i in range(12):
        (raw / f"{i:02d}.png").write_bytes(data(grey(i, "RGBA" if i % 2 else "L")))
    text = refusal(folder(raw))
    assert text == (
        f"{raw}: 14 of 15 images cannot be used: 00.png, 02.png, 04.png, 06.png, 08.png are L, not RGB (channels: 3); "
        "01.png, 03.png, 05.png, 07.png, 09.png are RGBA, not RGB (channels: 3); and 4 more; convert, or set "
        "source.modes: convert; resize, or choose a preprocessing; mend or remove, or set source.skip_broken: true"
    )
    images, _ = prepared(folder(raw, modes="convert", skip_broken=True, preprocessing="center-crop"))
    assert images[:, 0, 0, 0].tolist() == [*range(12), 9, 1]
    notes = noted(folder(raw, modes="convert", skip_broken=True, preprocessing="center-crop"), tmp_path)
    assert (notes["images"], notes["broken"], notes["converted"]) == (14, ["torn.png"], {"L": 6, "RGBA": 6})
    assert prepare.summary(notes) == ("14 images read (6 L, 6 RGBA converted); broken and skipped: torn.png; no labels")


def test_images_beyond_the_limit_are_not_looked_at(tmp_path):
    fill(tmp_path, a_png=b"", b_png=grey(1, "RGB"), c_png=grey(2, "RGB"), d_png=grey(3, "RGBA"))
    assert prepared(folder(tmp_path, limit=2, skip_broken=True))[0][:, 0, 0, 0].tolist() == [1, 2]
    assert "a.png: is empty; mend" in refusal(folder(tmp_path, limit=3))


def sixteen(values, kind="PNG"):
    return data(Image.fromarray(np.full((8, 8), values, np.uint16)), kind)


def png(width, height, depth, colour, rows, *more):
    """A png by its parts: bits a value, type of colour, the rows with a zero before each, further chunks."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks)


def keyed(image, colour):
    """A png whose pixels of one colour are transparent."""
    return data(image, "PNG", transparency=colour)


CONVERTED = {
    "transparent": (data(Image.new("RGBA", (8, 8), (255, 0, 0, 0))), "RGBA", (255, 255, 255)),
    "half": (data(Image.new("RGBA", (8, 8), (255, 0, 0, 128))), "RGBA", (255, 127, 127)),
    "opaque": (data(Image.new("RGBA", (8, 8), (9, 8, 7, 255))), "RGBA", (9, 8, 7)),
    "webp": (data(Image.new("RGBA", (8, 8), (9, 8, 7, 0)), "WEBP", lossless=True, exact=True), "RGBA", (255,) * 3),
    "grey": (data(grey(77)), "L", (77, 77, 77)),
    "grey-alpha": (data(Image.new("LA", (8, 8), (77, 0))), "LA", (255, 255, 255)),
    "bits": (data(Image.new("1", (8, 8), 1)), "1", (255, 255, 255)),
    "palette": (data(Image.new("RGB", (8, 8), (1, 2, 3)).quantize(4)), "P", (1, 2, 3)),
    "cmyk": (data(Image.new("CMYK", (8, 8), (0, 255, 0, 0)), "TIFF"), "CMYK", (255, 0, 255)),
    "grey16-png": (sixteen(0x7FFF), "I;16", (0x7F,) * 3),
    "grey16-tif": (sixteen(0xFF00, "TIFF"), "I;16", (0xFF,) * 3),
    "grey16-pgm": (b"P5 8 8 65535\n" + b"\x12\xff" * 64, "I;16", (0x12,) * 3),
    "colour-key": (keyed(Image.new("RGB", (8, 8), (1, 2, 3)), (1, 2, 3)), "RGB with a transparent colour", (255,) * 3),
    "other-key": (keyed(Image.new("RGB", (8, 8), (1, 2, 3)), (1, 2, 4)), "RGB with a transparent colour", (1, 2, 3)),
    "grey-key": (keyed(grey(5), 5), "L with a transparent colour", (255, 255, 255)),
    "palette-key": (
        keyed(Image.new("RGB", (8, 8), (1, 2, 3)).quantize(4), 0),
        "P with a transparent colour",
        (255, 255, 255),
    ),
}


def test_16_bits_a_colour(tmp_path):
    colour = struct.pack(">3H", 0x12FF, 0x3400, 0xFFFF)
    rows = (b"\0" + colour * 8) * 8
    fill(tmp_path, x_png=png(8, 8, 16, 2, rows))
    assert (prepared(folder(tmp_path))[0] == [0x12, 0x34, 0xFF]).all()
    for modes in ("refuse", "convert"):
        fill(tmp_path, x_png=png(8, 8, 16, 2, rows, (b"tRNS", colour)))
        assert "x.png: has a transparent colour of 16 bits" in refusal(folder(tmp_path, modes=modes))


@pytest.mark.parametrize("kind", CONVERTED)
def test_modes(tmp_path, kind):
    content, mode, expected = CONVERTED[kind]
    fill(tmp_path, x_png=content)
    text = refusal(folder(tmp_path))
    assert f"x.png: is {mode}, not RGB (channels: 3); convert, or set source.modes: convert" in text
    images, _ = prepared(folder(tmp_path, modes="convert"))
    assert images[0, 0, 0].tolist() == list(expected)
    assert (images == images[0, 0, 0]).all()
    assert len(prepared(folder(tmp_path, channels=1, modes="convert"))[0]) == 1


def test_colour_to_grey_and_modes_without_a_rule(tmp_path):
    fill(tmp_path, x_png=Image.new("RGB", (8, 8), (255, 0, 0)))
    assert (prepared(folder(tmp_path, channels=1, modes="convert"))[0] == 76).all()
    fill(tmp_path, x_png=data(Image.new("F", (8, 8), 0.5), "TIFF"))
    assert "x.png: is F, of which no conversion is known" in refusal(folder(tmp_path, modes="convert"))
    fill(tmp_path, x_png=data(Image.new("I", (8, 8), 7), "TIFF"))
    assert "x.png: is I, of which no conversion is known" in refusal(folder(tmp_path, modes="convert"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path, kind, orientation):
    """For each orientation, the image that a viewer shows upright as red, green; blue, yellow."""
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = laid(16) if undo is None else laid(16).transpose(undo)
    exif = Image.Exif()
    exif[274] = orientation
    options = {"quality": 100} if kind in ("JPEG", "AVIF") else {"lossless": True} if kind == "WEBP" else {}
    content = data(stored, kind, exif=exif, **options)
    assert ImageOps.exif_transpose(Image.open(io.BytesIO(content))).size == (16, 16)
    fill(tmp_path, x_png=content)
    images, _ = prepared(folder(tmp_path, image_size=16))
    np.testing.assert_allclose(images[0][[3, 3, 12, 12], [3, 12, 3, 12]], COLOURS.reshape(4, 3), atol=40)
    with_mode = prepared(folder(tmp_path, image_size=16, channels=1, modes="convert"))[0]
    np.testing.assert_array_equal(with_mode[0], np.asarray(Image.fromarray(images[0]).convert("L"))[:, :, None])


def test_orientation_changes_the_sides(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    wide = Image.fromarray(np.repeat(np.arange(16, dtype=np.uint8)[None, :, None], 8, 0).repeat(3, 2))
    fill(tmp_path, x_png=data(wide, exif=exif))
    images, _ = prepared(folder(tmp_path, preprocessing="center-crop"))
    assert images[0, :, 0, 0].tolist() == list(range(4, 12))  # left to right became top to bottom
    exif[274] = 99
    fill(tmp_path, x_png=data(grey(3, "RGB"), exif=exif))
    assert (prepared(folder(tmp_path))[0] == 3).all()
    fill(tmp_path, x_png=data(grey(3, "RGB"), exif=b"Exif\0\0nonsense"))
    assert "x.png: has damaged EXIF data: " in refusal(folder(tmp_path))


TREE = {"c__3_png": grey(3), "a__1_png": grey(1), "b__2_png": grey(2)}


@pytest.mark.parametrize("wrapping", ["", "flowers__", "home__me__flowers__"])
def test_wrapping_folders_are_no_labels(tmp_path, wrapping):
    raw = fill(tmp_path / "raw", **{wrapping + name: image for name, image in TREE.items()})
    images, labels = prepared(folder(raw, 1))
    assert (images[:, 0, 0, 0].tolist(), labels.tolist()) == ([1, 2, 3], [0, 1, 2])
    assert noted(folder(raw, 1), tmp_path)["labels"] == ["a", "b", "c"]
    assert prepared(folder(raw, 1, labels="none"))[1].tolist() == [-1, -1, -1]


def test_an_archive_as_a_mac_packs_it(tmp_path):
    members = [(f"flowers/{kind}/x.png", data(grey(i))) for i, kind in enumerate("abc")]
    rest = [("flowers/", b""), ("__MACOSX/flowers/a/._x.png", b"fork"), ("flowers/.DS_Store", b""), ("flowers/a/", b"")]
    write_zip(tmp_path / "flowers.zip", members + rest)
    images, labels = prepared(folder(tmp_path / "flowers.zip", 1))
    assert (images[:, 0, 0, 0].tolist(), labels.tolist()) == ([0, 1, 2], [0, 1, 2])
    assert noted(folder(tmp_path / "flowers.zip", 1), tmp_path)["passed_over"] == {"hidden": 2}


def test_one_folder_of_images_is_no_label(tmp_path):
    fill(tmp_path, cats__1_png=grey(1), cats__2_png=grey(2))
    assert prepared(folder(tmp_path, 1))[1].tolist() == [-1, -1]


@pytest.mark.parametrize("wrapping", ["", "flowers__"])
def test_an_image_beside_the_labels_folders_is_named(tmp_path, wrapping):
    raw = fill(tmp_path, **{wrapping + name: image for name, image in {**TREE, "top_png": grey(4)}.items()})
    name = f"{wrapping}top.png".replace("__", "/")
    assert f"{name} lies beside the folders that are the labels (a, b, c); move it into one" in refusal(folder(raw, 1))
    images, labels = prepared(folder(raw, 1, labels="none"))
    assert (images[:, 0, 0, 0].tolist(), labels.tolist()) == ([1, 2, 3, 4], [-1] * 4)
    fill(tmp_path, **{f"{wrapping}second_png": grey(5)})
    assert "second.png and 1 more images lie beside the folders" in refusal(folder(raw, 1))


def test_keys_of_this_reader_only(tmp_path):
    for key, value in {"modes": "convert", "skip_broken": True, "labels": "none"}.items():
        with pytest.raises(ValueError, match=f"{key} is {value}; reader celeba takes its images as they are published"):
            source("celeba", tmp_path, **{key: value})


def test_names_in_archives(tmp_path):
    path = tmp_path / "raw.zip"
    odd = ["a\\1.png", "a\\sub\\2.png", "b/./3.png", "./b//4.png", "b/r\xe9 \u2603.png", "c/new\nline.png"]
    write_zip(path, [("a\\", b""), *((name, data(grey(i))) for i, name in enumerate(odd))])
    images, labels = prepared(folder(path, 1))
    assert (images[:, 0, 0, 0].tolist(), labels.tolist()) == ([0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 1, 2])
    for twin in ("a/1.png", "a/./1.png"):
        write_zip(path, [("a\\1.png", data(grey(0))), (twin, data(grey(0)))])
        assert "a/1.png: stands there twice" in refusal(folder(path, 1))
    write_zip(path, [("new\nline.png", b"")])
    assert "raw.zip: new\\nline.png: is empty" in refusal(folder(path, 1))
    write_zip(path, [("x" * 60000 + ".png", b"")])
    assert f"{'x' * 37}...{'x' * 36}.png: is empty" in refusal(folder(path, 1))


def test_a_repository_in_a_directory_is_no_part_of_it(tmp_path):
    """The digest of a raw directory leaves it out, and so does what the recipe says was read."""
    raw = tmp_path / "raw"
    (raw / ".git").mkdir(parents=True)
    (raw / ".git" / "config").write_text("")
    (raw / ".hidden").write_text("")
    (raw / "1.png").write_bytes(data(grey(1)))
    assert noted(folder(raw, 1), tmp_path)["passed_over"] == {"hidden": 1}


def test_names_that_are_not_utf8(tmp_path):
    path = tmp_path / "raw.zip"
    write_zip(path, [("r\xe9.png", data(grey(1)))])  # zipfile marks it as UTF-8
    whole = path.read_bytes()
    assert whole.count("r\xe9.png".encode()) == 2
    path.write_bytes(whole.replace("\xe9".encode(), b"\xe9\xff"))
    assert "raw.zip: cannot be read: 'utf-8' codec can't decode" in refusal(folder(path, 1))
    unmarked = bytearray(whole.replace("\xe9".encode(), b"\xe9\xff"))
    unmarked[7] &= ~8
    unmarked[whole.index(b"PK\x01\x02") + 9] &= ~8
    path.write_bytes(unmarked)  # as packers of the nineties: any bytes
    assert (prepared(folder(path, 1))[0] == 1).all()
    raw = tmp_path / "raw"
    raw.mkdir()
    with open(os.fsencode(raw) + b"/r\xe9.png", "wb") as file:
        file.write(data(grey(1)))
    assert "raw/r\udce9.png: the name is not UTF-8, so DVC cannot record it; rename" in refusal(folder(raw, 1))


TOO_LARGE = {
    "pixels": (png(8193, 6144, 8, 0, b""), "is 8193x6144 pixels, more than 50331648 or 65535 along a side"),
    "bomb": (png(100_000, 100_000, 8, 0, b""), "has more than 50331648 pixels"),
    "webp": (data(Image.new("RGB", (16000, 1600)), "WEBP"), "is 16000x1600 pixels, more than 25165824"),
    "side": (png(65_536, 1, 8, 0, b""), "is 65536x1 pixels, more than 50331648 or 65535 along a side"),
    "scaled": (
        data(Image.new("L", (1, 60_000))),
        "is 1x60000 pixels: 64x3840000 with a shorter side of 64, more",
    ),
}


@pytest.mark.parametrize("kind", TOO_LARGE)
@pytest.mark.parametrize("reader", ["folder", "lsun"])
def test_memory_is_bounded_by_the_pixels(tmp_path, kind, reader):
    content, message = TOO_LARGE[kind]
    if reader == "lsun":
        if kind == "scaled":
            content = data(Image.new("RGB", (1, 60_000)))
        write_lmdb(tmp_path / "data.mdb", [(b"x.png", content)])
        chosen = source("lsun", tmp_path)
    else:
        fill(tmp_path, x_png=content)
        chosen = folder(tmp_path, 1, image_size=64, preprocessing="center-crop")
    assert message in refusal(chosen)


def test_a_tiff_of_huge_tiles_is_not_decoded(tmp_path):
    side = 16384
    strip = zlib.compress(bytes(side * side))
    tags = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 200, 325: len(strip)}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4)
    fill(tmp_path, x_tif=header.ljust(200, b"\0") + strip)
    text = refusal(folder(tmp_path, 1))
    assert "x.tif: has tiles of 268435456 pixels, more than 50331648" in text


def test_files_of_too_many_bytes_are_not_read(tmp_path):
    fill(tmp_path, x_png=b"\x89PNG\r\n\x1a\n")
    os.truncate(tmp_path / "x.png", 2**40)
    assert "x.png: has 1099511627776 bytes, more than 67108864" in refusal(folder(tmp_path, 1))
    (tmp_path / "x.png").unlink()
    write_lmdb(tmp_path / "data.mdb", [(b"x", bytes(2**26 + 2))])
    assert "data.mdb x: has more than 67108864 bytes" in refusal(source("lsun", tmp_path))


LARGEST = """
import sys
from pathlib import Path
from ipdiff.data.formats import decode
from ipdiff.data.spec import Source
source = Source("folder", 8, 3, "x", preprocessing="center-crop", modes="convert")
decode.own(Path(sys.argv[1]).read_bytes(), source)
for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith("VmHWM"):
        print(int(line.split()[1]) * 1024)
"""


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "RGBA", {"compress_level": 1}),
        ("PNG", "P", {"compress_level": 1, "transparency": 0}),
        ("JPEG", "CMYK", {"progressive": True}),
        ("WEBP", "RGBA", {"lossless": True, "quality": 0, "method": 0}),
    ],
    ids=["png", "palette", "jpeg", "webp"],
)
@pytest.mark.slow
def test_the_largest_image_takes_less_than_a_gibibyte(tmp_path, kind, mode, options):
    width, height = 8192, 3072 if kind == "WEBP" else 6144
    assert width * height == (MAX_PIXELS // 2 if kind == "WEBP" else MAX_PIXELS)
    Image.new(mode, (width, height)).save(tmp_path / "x", kind, **options)
    command = [sys.executable, "-c", LARGEST, str(tmp_path / "x")]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert peak < 2**30


def test_images_of_a_large_set_are_handed_on_in_small_blocks(tmp_path):
    pictures = [(np.zeros((2048, 2048, 1), np.uint8), i) for i in range(20)]
    found = [
        (block.shape, labels.tolist()) for block, labels in decode.blocks(pictures, folder("x", 1, image_size=2048))
    ]
    assert [shape for shape, _ in found] == [(n, 2048, 2048, 1) for n in (8, 8, 4)]
    assert [label for _, labels in found for label in labels] == list(range(20))
