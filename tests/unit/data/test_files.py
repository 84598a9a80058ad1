"""Anybody's directory or .zip of images, and the archives that are refused whoever reads them."""

import gzip
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from archives import encoded
from PIL import Image
from unit.raw_data import prepared, refusal, source

from ipdiff.data.formats import files
from ipdiff.errors import UserError


def picture(value=0, size=(8, 8), mode="L", kind="PNG", **options):
    """Bytes of an image of one grey value."""
    file = io.BytesIO()
    Image.new("L", size, value).convert(mode).save(file, kind, **options)
    return file.getvalue()


def folder(raw, channels=1, limit=None):
    return source("folder", raw, channels=channels, limit=limit)


def write_tree(root: Path):
    """Three images in two sub-directories, and what must be passed over."""
    for name, value in {"b/1.png": 30, "a/2.png": 20, "a/10.PNG": 10}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(value))
    (root / "a" / "notes.txt").write_text("no image")
    (root / "a" / "._2.png").write_bytes(b"resource fork")


def test_folder_order_and_labels(tmp_path):
    write_tree(tmp_path)
    images, labels = prepared(folder(tmp_path))
    assert images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert labels.tolist() == [0, 0, 1]
    assert (images.shape, images.dtype, labels.dtype) == ((3, 8, 8, 1), np.uint8, np.int64)
    assert prepared(folder(tmp_path, limit=2))[0][:, 0, 0, 0].tolist() == [10, 20]


def test_zip_is_the_same_as_its_directory(tmp_path):
    write_tree(tmp_path / "tree")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in (tmp_path / "tree").rglob("*"):
            archive.write(path, path.relative_to(tmp_path / "tree"))
        archive.writestr("__MACOSX/a/2.png", b"resource fork")
    for got, expected in zip(prepared(folder(tmp_path / "all.zip")), prepared(folder(tmp_path / "tree")), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_folder_reads_jpeg_and_webp_in_colour(tmp_path):
    (tmp_path / "1.jpg").write_bytes(picture(100, mode="RGB", kind="JPEG"))
    (tmp_path / "2.webp").write_bytes(picture(200, mode="RGB", kind="WEBP", lossless=True))
    images, labels = prepared(folder(tmp_path, channels=3))
    assert images.shape == (2, 8, 8, 3)
    assert abs(int(images[0].mean()) - 100) <= 2
    assert (images[1] == 200).all()
    assert labels.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("content", "channels", "message"),
    [
        (picture(size=(9, 8)), 1, "is 9x8 pixels, not 8x8 (image_size)"),
        (picture(mode="RGB"), 1, "is RGB, not L (channels: 1)"),
        (picture(), 3, "is L, not RGB (channels: 3)"),
        (picture(mode="RGBA"), 3, "is RGBA, not RGB"),
        (picture(mode="P"), 3, "is P, not RGB"),
        (b"this is no image", 1, "is a text that begins with 'this is no image', not PNG"),
        (b"", 1, "is empty"),
        (picture(7, size=(8, 8))[:-30], 1, "is damaged: "),
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
    assert "neither a directory nor a readable .zip or .tar.gz" in refusal(folder(tmp_path / "readme.txt"))


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
        ("bomb.png", bytes(17 * 2**20), "over 100 times its own size"),
    ],
)
def test_zip_refuses_an_entry(tmp_path, entry, content, message):
    path = tmp_path / "raw.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", picture())
        archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    assert message in refusal(folder(path))
    assert [child.name for child in tmp_path.iterdir()] == ["raw.zip"]


def test_zip_refuses_large_double_and_damaged_entries(tmp_path):
    path = tmp_path / "raw.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.png", picture())
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("0.png", picture())
    assert "0.png: stands there twice" in refusal(folder(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.png", picture())
    raw = bytearray(path.read_bytes())
    raw[60] ^= 255
    path.write_bytes(raw)
    assert "0.png: cannot be read: Bad CRC-32" in refusal(folder(path))
    raw[60] ^= 255
    path.write_bytes(raw)
    with files.opened(path, max_entry=10_000):
        pass
    with pytest.raises(UserError, match="0.png: expands to .* bytes, more than 10"), files.opened(path, max_entry=10):
        pass


def write_tar(path, *members, sparse=None):
    with tarfile.open(path, "w:gz") as archive:
        for info, data in members:
            info = tarfile.TarInfo(info) if isinstance(info, str) else info
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def tar_link(kind):
    info = tarfile.TarInfo("a.png")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("info", "data", "message"),
    [
        ("../out.png", picture(), "path leaves the archive ('..')"),
        ("/etc/x.png", picture(), "absolute path"),
        (tar_link(tarfile.SYMTYPE), b"", "a.png: is a link or no plain file"),
        (tar_link(tarfile.LNKTYPE), b"", "a.png: is a link or no plain file"),
        (tar_link(tarfile.FIFOTYPE), b"", "a.png: is a link or no plain file"),
        ("0.png", picture(), "0.png: stands there twice"),
        ("bomb.png", bytes(17 * 2**20), "over 100 times its own size"),
        ("big.png", bytes(65 * 2**20), "expands to 68157440 bytes, more than 67108864"),
    ],
)
def test_tar_refuses_an_entry(tmp_path, info, data, message):
    path = tmp_path / "raw.tar.gz"
    write_tar(path, ("./0.png", picture()), (info, data))
    assert message in refusal(folder(path))


def test_tar_is_read_in_any_order_and_its_header_is_no_bomb(tmp_path):
    path = tmp_path / "raw.tar.gz"
    write_tar(path, ("b.png", picture(2)), ("a.png", picture(1)))
    assert prepared(folder(path))[0][:, 0, 0, 0].tolist() == [1, 2]
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**32  # tarfile reads such a header whole
    path.write_bytes(gzip.compress(header.tobuf() + bytes(2**20)))
    assert "a piece of" in refusal(folder(path))


def test_truncated_archives(tmp_path):
    write_tar(tmp_path / "a.tar.gz", *((f"{i}.png", picture(i)) for i in range(200)))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in range(200):
            archive.writestr(f"{i}.png", picture(i))
    for name in ("a.tar.gz", "a.zip"):
        whole = (tmp_path / name).read_bytes()
        for length in (len(whole) // 2, len(whole) - 9):
            (tmp_path / name).write_bytes(whole[:length])
            assert f"{name}: cannot be read" in refusal(folder(tmp_path / name))


def test_a_web_page_instead_of_the_archive(tmp_path):
    path = tmp_path / "img_align_celeba.zip"
    for page in (b"<!DOCTYPE html><title>Google Drive", b"\xef\xbb\xbf\n <HTML>"):
        path.write_bytes(page)
        for reader in ("folder", "celeba", "lsun", "imagenet32", "cifar10", "ffhq"):
            assert "it is an HTML page" in refusal(source(reader, path))


def test_images_of_any_size_are_cropped_if_that_is_asked_for(tmp_path):
    for i, shape in enumerate([(20, 30, 3), (64, 8, 3), (9, 8, 3)]):
        (tmp_path / f"{i}.png").write_bytes(encoded(np.full(shape, 40 * i, np.uint8), "PNG"))
    text = refusal(folder(tmp_path, channels=3))
    assert "3 of 3 images cannot be used: 0.png is 30x20 pixels, not 8x8 (image_size); 1.png is 8x64" in text
    assert text.endswith("; resize, or choose a preprocessing")
    images, _ = prepared(source("folder", tmp_path, channels=3, preprocessing="center-crop"))
    assert images.shape == (3, 8, 8, 3)
    assert images.reshape(3, -1).tolist() == [[value] * 192 for value in (0, 40, 80)]


def test_a_copy_in_work_space_is_bounded(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.bin", bytes(1000))
    (tmp_path / "work").mkdir()
    with files.opened(tmp_path / "a.zip") as found:
        assert found["a.bin"].local(tmp_path / "work").read_bytes() == bytes(1000)
        monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("", (), {"free": 999}))
        with pytest.raises(UserError, match="a.bin: needs 1000 bytes of work space, 999 are free"):
            found["a.bin"].local(tmp_path / "work")


def test_links_and_pipes_in_a_directory(tmp_path):
    (tmp_path / "0.png").write_bytes(picture())
    (tmp_path / "latest").symlink_to("gone")
    (tmp_path / "1.png").symlink_to("0.png")
    os.mkfifo(tmp_path / "pipe")
    assert len(prepared(folder(tmp_path))[0]) == 2
    (tmp_path / "2.png").symlink_to("gone")
    assert "2.png: cannot be read: it is missing or no plain file" in refusal(folder(tmp_path))
    (tmp_path / "2.png").unlink()
    os.mkfifo(tmp_path / "2.png")
    assert "2.png: cannot be read: it is missing or no plain file" in refusal(folder(tmp_path))
