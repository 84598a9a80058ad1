"""LSUN's database in a zip."""

import io
import zipfile

import numpy as np
import pytest
from archives import blobs, encoded, write_lmdb, write_lsun, write_zip
from PIL import Image
from unit.raw_data import prepared, refusal, source

from ipdiff.data.formats import decode
from ipdiff.data.formats.resize import box_crop


def test_images_in_the_order_of_the_keys(tmp_path, monkeypatch):
    path = tmp_path / "tower_train_lmdb.zip"
    values = write_lsun(path, 25)
    pictures = [Image.open(io.BytesIO(value)) for value in values]
    assert {picture.format for picture in pictures} == {"JPEG", "WEBP"}
    expected = np.stack([box_crop(picture, 64) for picture in pictures])
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "unpacked")
    for raw, block in ((path, 256), (path, 8), (tmp_path / "unpacked", 25), (tmp_path / "unpacked", 1)):
        monkeypatch.setattr(decode, "BLOCK", block)
        images, labels = prepared(source("lsun", raw, num_images=25))
        np.testing.assert_array_equal(images, expected)
        assert (labels == -1).all()
    assert sorted(p.name for p in (tmp_path / "unpacked" / "tower_train_lmdb").iterdir()) == ["data.mdb", "lock.mdb"]


def test_a_database_that_is_none_or_incomplete(tmp_path):
    write_lmdb(tmp_path / "data.mdb", [(b"%03d" % i, encoded(blobs(1, 70, 70, 3, i)[0], "PNG")) for i in range(20)])
    good = (tmp_path / "data.mdb").read_bytes()
    for content, message in [
        (
            good[: len(good) - 4096],
            "has 102400 bytes of 106496: it is incomplete",
        ),
        (
            good[: 3 * 4096],
            "has 12288 bytes of 106496: it is incomplete",
        ),
        (good[:100], ""),
        (bytes(len(good)), ""),
        (b"", ""),
        (b"<html>" * 9999, ""),
    ]:
        (tmp_path / "data.mdb").write_bytes(content)
        assert f"data.mdb: is no LMDB database, or a damaged one: {message}" in refusal(source("lsun", tmp_path))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"no image", "is a text that begins with 'no image', not PNG or JPEG or WEBP"),
        (encoded(blobs(1, 70, 70, 1, 0)[0], "JPEG"), "is L, not RGB"),
        (encoded(blobs(1, 70, 70, 3, 0)[0], "JPEG")[:500], "is damaged: "),
        (encoded(blobs(1, 70, 70, 3, 0)[0], "GIF"), "is a GIF image, not PNG or JPEG or WEBP"),
        (b"", "is empty"),
    ],
)
def test_a_value_that_is_no_image_is_named_by_its_key(tmp_path, value, message):
    write_lmdb(tmp_path / "data.mdb", [(b"0a", encoded(blobs(1, 70, 70, 3, 0)[0], "WEBP")), (b"0b", value)])
    write_zip(tmp_path / "a.zip", [("x/data.mdb", (tmp_path / "data.mdb").read_bytes())])
    text = refusal(source("lsun", tmp_path / "a.zip"))
    assert "a.zip: x/data.mdb 0b: " in text
    assert message in text


def test_a_forged_database_crashes_only_the_process_that_reads_it(tmp_path):
    write_lmdb(tmp_path / "data.mdb", [(b"%040d" % i, encoded(blobs(1, 70, 70, 3, i)[0], "WEBP")) for i in range(50)])
    good = (tmp_path / "data.mdb").read_bytes()
    lying = bytearray(good)
    for start in range(0, len(good), 4096):
        if good[start + 10 : start + 12] == b"\x02\x00":  # a leaf page: its first entry is said to lie outside
            lying[start + 16 : start + 18] = b"\xff\xff"
    (tmp_path / "data.mdb").write_bytes(lying)
    assert "data.mdb: is no LMDB database, or a damaged one: reading it crashed" in refusal(source("lsun", tmp_path))


def test_a_zip_without_a_database_or_with_two(tmp_path):
    write_zip(tmp_path / "a.zip", [("x/readme", b"text")])
    assert "no data.mdb; expected an LSUN database" in refusal(source("lsun", tmp_path / "a.zip"))
    write_zip(tmp_path / "a.zip", [("x/data.mdb", b"1"), ("y/data.mdb", b"1")])
    assert "there is another data.mdb as well" in refusal(source("lsun", tmp_path / "a.zip"))
    write_lmdb(tmp_path / "data.mdb", [])
    write_zip(tmp_path / "a.zip", [("x/data.mdb", (tmp_path / "data.mdb").read_bytes())])
    assert "a.zip: holds no images" in refusal(source("lsun", tmp_path / "a.zip"))
