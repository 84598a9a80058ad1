"""Readers, arrays on disk and the conversion of images."""

import io
import stat
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ipdiff import prepare
from ipdiff.data import readers
from ipdiff.data.arrays import load_npz, save_npz
from ipdiff.data.images import load_images, to_network, to_uint8
from ipdiff.data.readers import read
from ipdiff.errors import IntegrityError, UserError
from ipdiff.spec import Source

DIGITS = Source("digits", 8, 1)


def picture(value=0, size=(8, 8), mode="L", kind="PNG", **options):
    """Bytes of an image of one grey value."""
    file = io.BytesIO()
    Image.new("L", size, value).convert(mode).save(file, kind, **options)
    return file.getvalue()


def folder(raw: Path, channels=1, limit=None):
    return Source("folder", 8, channels, str(raw), limit)


def refusal(source):
    """The one line with which `source` is refused."""
    with pytest.raises(UserError) as caught:
        read(source)
    text = str(caught.value)
    assert "\n" not in text
    assert source.raw is None or source.raw in text
    return text


def test_digits():
    images, labels = read(DIGITS)
    assert images.shape == (1797, 8, 8, 1)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    assert labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert (images.min(), images.max(), len(np.unique(images))) == (0, 255, 17)
    assert images[0, 0, :, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_limit_and_refusal():
    images, labels = read(Source("digits", 8, 1, limit=10))
    assert (len(images), labels.tolist()) == (10, list(range(10)))
    assert "digits are 8x8 with 1 channel; image_size is 16" in refusal(Source("digits", 16, 1))


def test_prepare_writes_equal_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        prepare.run(DIGITS, tmp_path / name)
    for file in ("images.npy", "labels.npy"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    images = load_images(tmp_path / "a" / "images.npy")
    assert isinstance(images, np.memmap)
    assert images.shape == (1797, 8, 8, 1)
    assert np.load(tmp_path / "a" / "labels.npy").dtype == np.int64


def write_tree(root: Path):
    """Three images in two sub-directories, and what must be passed over."""
    for name, value in {"b/1.png": 30, "a/2.png": 20, "a/10.PNG": 10}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(value))
    (root / "a" / "notes.txt").write_text("no image")
    (root / "a" / "._2.png").write_bytes(b"resource fork")


def test_folder_order_and_labels(tmp_path):
    write_tree(tmp_path)
    images, labels = read(folder(tmp_path))
    assert images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert labels.tolist() == [0, 0, 1]
    assert (images.shape, images.dtype, labels.dtype) == ((3, 8, 8, 1), np.uint8, np.int64)
    (tmp_path / "top.png").write_bytes(picture(40))
    images, labels = read(folder(tmp_path, limit=2))
    assert (images[:, 0, 0, 0].tolist(), labels.tolist()) == ([10, 20], [-1, -1])


def test_zip_is_the_same_as_its_directory(tmp_path):
    write_tree(tmp_path / "tree")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in (tmp_path / "tree").rglob("*"):
            archive.write(path, path.relative_to(tmp_path / "tree"))
        archive.writestr("__MACOSX/a/2.png", b"resource fork")
    for got, expected in zip(read(folder(tmp_path / "all.zip")), read(folder(tmp_path / "tree")), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_folder_reads_jpeg_and_webp_in_colour(tmp_path):
    (tmp_path / "1.jpg").write_bytes(picture(100, mode="RGB", kind="JPEG"))
    (tmp_path / "2.webp").write_bytes(picture(200, mode="RGB", kind="WEBP", lossless=True))
    images, labels = read(folder(tmp_path, channels=3))
    assert images.shape == (2, 8, 8, 3)
    assert abs(int(images[0].mean()) - 100) <= 2
    assert (images[1] == 200).all()
    assert labels.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("content", "channels", "message"),
    [
        (picture(size=(9, 8)), 1, "is 9x8 pixels; expected 8x8 (image_size)"),
        (picture(mode="RGB"), 1, "has mode RGB; expected L (channels is 1)"),
        (picture(), 3, "has mode L; expected RGB (channels is 3)"),
        (picture(mode="RGBA"), 3, "has mode RGBA; expected RGB"),
        (picture(mode="P"), 3, "has mode P; expected RGB"),
        (b"this is no image", 1, "cannot be read as an image"),
        (b"", 1, "cannot be read as an image"),
        (picture(7, size=(8, 8))[:-30], 1, "cannot be read as an image"),
    ],
)
def test_folder_refuses_an_image(tmp_path, content, channels, message):
    (tmp_path / "0.png").write_bytes(picture(mode="L" if channels == 1 else "RGB"))
    (tmp_path / "bad.png").write_bytes(content)
    text = refusal(folder(tmp_path, channels))
    assert "bad.png: " + message in text


def test_folder_refuses_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (0, 255)]
    frames[0].save(tmp_path / "film.png", save_all=True, append_images=frames[1:])
    assert "film.png: has more than one frame" in refusal(folder(tmp_path, 3))


def test_folder_refuses_what_is_no_folder(tmp_path):
    assert "no such file or directory" in refusal(folder(tmp_path / "missing"))
    (tmp_path / "readme.txt").write_text("text")
    assert "no images; expected files ending in .png" in refusal(folder(tmp_path))
    assert "neither a directory nor a readable .zip" in refusal(folder(tmp_path / "readme.txt"))


def link(name):
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    ("entry", "content", "message"),
    [
        ("../out.png", picture(), "../out.png: path leaves the archive ('..')"),
        ("a\\..\\..\\out.png", picture(), "path leaves the archive"),
        ("/etc/x.png", picture(), "/etc/x.png: absolute path"),
        ("C:/x.png", picture(), "absolute path"),
        (link("a.png"), b"/etc/passwd", "a.png: is a link"),
        ("bomb.png", bytes(4 * 2**20), "over 100 times its own size"),
    ],
)
def test_zip_refuses_an_entry(tmp_path, entry, content, message):
    path = tmp_path / "raw.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", picture())
        archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    assert message in refusal(folder(path))
    assert [child.name for child in tmp_path.iterdir()] == ["raw.zip"]


def test_zip_refuses_large_double_and_damaged_entries(tmp_path, monkeypatch):
    path = tmp_path / "raw.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.png", picture())
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("0.png", picture())
    assert "names are there twice" in refusal(folder(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.png", picture())
    raw = bytearray(path.read_bytes())
    raw[60] ^= 255
    path.write_bytes(raw)
    assert "0.png: cannot be read as an image: Bad CRC-32" in refusal(folder(path))
    monkeypatch.setattr(readers, "MAX_ENTRY", 10)
    assert "0.png: expands to" in refusal(folder(path))


def test_npz_bytes_depend_on_nothing_but_the_arrays(tmp_path):
    arrays = {"b": np.arange(6, dtype=np.float64).reshape(2, 3).T, "arr_0": np.zeros((2, 4, 4, 1), np.uint8)}
    save_npz(tmp_path / "first.npz", **arrays)
    time.sleep(2.1)  # a zip's time stamps count in two seconds
    save_npz(tmp_path / "second.npz", **dict(reversed(arrays.items())))
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "second.npz").read_bytes()
    with np.load(tmp_path / "first.npz", allow_pickle=False) as file:
        assert file.files == ["arr_0", "b"]
    for name, array in load_npz(tmp_path / "first.npz").items():
        np.testing.assert_array_equal(array, arrays[name])
    with zipfile.ZipFile(tmp_path / "first.npz") as archive:
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def test_npz_refusals(tmp_path):
    with pytest.raises(ValueError, match="Object arrays"):
        save_npz(tmp_path / "x.npz", x=np.array([{}], dtype=object))
    (tmp_path / "bad.npz").write_bytes(b"PK no zip")
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name in ("bad.npz", "missing.npz", "one.npy"):
        with pytest.raises(UserError, match=name):
            load_npz(tmp_path / name)


def test_images_to_the_network_and_back():
    images = np.arange(256, dtype=np.uint8).reshape(2, 8, 16, 1)
    x = to_network(images)
    assert (x.shape, x.dtype, x.is_contiguous()) == ((2, 1, 8, 16), torch.float32, True)
    assert (x.min().item(), x.max().item()) == (-1, 1)
    assert torch.equal(x, to_network(torch.from_numpy(images)))
    back = to_uint8(x)
    assert (back.shape, back.dtype) == (images.shape, np.uint8)
    lost = images.astype(int) - back
    assert set(np.unique(lost)) <= {0, 1}  # truncation, as in the official code
    np.testing.assert_array_equal(to_uint8(x + 1e-4), images)


def test_to_uint8_clamps_and_truncates():
    x = torch.tensor([-7.0, -1.0, 0.0, 0.999, 1.0, 3.0]).reshape(1, 3, 1, 2)
    got = to_uint8(x)
    assert got.shape == (1, 1, 2, 3)
    assert got[0, 0].T.ravel().tolist() == [0, 0, 127, 254, 255, 255]


def test_load_images_refusals(tmp_path):
    np.save(tmp_path / "float.npy", np.zeros((2, 4, 4, 1)))
    np.save(tmp_path / "flat.npy", np.zeros((2, 4), np.uint8))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    save_npz(tmp_path / "archive.npy", x=np.zeros(1))
    (tmp_path / "text.npy").write_text("text")
    for name in ("float", "flat", "object", "archive", "text", "missing"):
        with pytest.raises(UserError, match=f"{name}.npy"):
            load_images(tmp_path / f"{name}.npy")


def test_integrity_error_is_one_line():
    error = IntegrityError(Path("runs/a"), "md5 1", "md5 2")
    assert str(error) == "runs/a: expected md5 1, found md5 2; the file was changed or damaged"
    assert not isinstance(error, UserError)
