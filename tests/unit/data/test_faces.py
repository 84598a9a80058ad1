"""CelebA and FFHQ: zips of images."""

import io
import zipfile

import numpy as np
import pytest
from archives import blobs, encoded, write_celeba, write_ffhq, write_zip
from PIL import Image
from unit.raw_data import prepared, refusal, source

from ipdiff.data.formats.resize import PREPROCESS


@pytest.mark.parametrize("rule", [None, "resize", "crop128", "center-crop"])
def test_celeba(tmp_path, rule):
    path = tmp_path / "img_align_celeba.zip"
    values = write_celeba(path, 4)
    apply = PREPROCESS[rule or "resize"]
    expected = np.stack([apply(Image.open(io.BytesIO(value)), 64) for value in values])
    images, labels = prepared(source("celeba", path, preprocessing=rule, num_images=4))
    np.testing.assert_array_equal(images, expected)
    assert (labels == -1).all()
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
    unpacked = source("celeba", tmp_path / "img_align_celeba", preprocessing=rule)
    np.testing.assert_array_equal(prepared(unpacked)[0], expected)


def test_celeba_of_another_size(tmp_path):
    image = encoded(blobs(1, 178, 178, 3, 0)[0], "JPEG")
    write_zip(tmp_path / "a.zip", [("img_align_celeba/000001.jpg", image)])
    text = refusal(source("celeba", tmp_path / "a.zip"))
    assert "img_align_celeba/000001.jpg: is 178x178 pixels, not 178x218" in text


def test_ffhq(tmp_path):
    images = write_ffhq(tmp_path / "thumbnails128x128.zip", 5)
    with zipfile.ZipFile(tmp_path / "thumbnails128x128.zip") as archive:
        archive.extractall(tmp_path)
    for raw in ("thumbnails128x128.zip", "thumbnails128x128"):
        got, labels = prepared(source("ffhq", tmp_path / raw, num_images=5))
        np.testing.assert_array_equal(got, images)
        assert labels.tolist() == [-1] * 5


def test_ffhq_of_another_size(tmp_path):
    write_ffhq(tmp_path / "a.zip", 2, size=64)
    assert "00000.png: is 64x64 pixels, not 128x128" in refusal(source("ffhq", tmp_path / "a.zip"))
    assert prepared(source("ffhq", tmp_path / "a.zip", image_size=64))[0].shape == (2, 64, 64, 3)


def test_ffhq_order_goes_over_sub_directories(tmp_path):
    images = blobs(3, 128, 128, 3, 1)
    names = ["01000/01000.png", "00000/00001.png", "00000/00000.png"]
    write_zip(tmp_path / "a.zip", [(n, encoded(i, "PNG")) for n, i in zip(names, images, strict=True)])
    np.testing.assert_array_equal(prepared(source("ffhq", tmp_path / "a.zip"))[0], images[::-1])
