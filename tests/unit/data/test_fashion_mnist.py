"""Fashion-MNIST's idx files."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from archives import write_fashion_mnist
from unit.raw_data import prepared, refusal, source

from ipdiff.data import prepare
from ipdiff.data.readers import fashion_mnist
from ipdiff.data.readers.fashion_mnist import IMAGES, LABELS
from ipdiff.data.spec import Source


def test_a_directory_and_two_archives_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "BLOCK", 7)
    images, labels = write_fashion_mnist(tmp_path, 20)
    got_images, got_labels = prepared(source("fashion_mnist", tmp_path, num_images=20))
    np.testing.assert_array_equal(got_images, images)
    np.testing.assert_array_equal(got_labels, labels)
    (tmp_path / "out").mkdir()
    archives = Source("fashion_mnist", 28, 1, archives={LABELS: None, IMAGES: None})
    prepare.run(archives, tmp_path / "out", [tmp_path / LABELS, tmp_path / IMAGES])
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "images.npy"), images)


def idx(kind: int, *shape: int, data: bytes | None = None) -> bytes:
    header = struct.pack(f">{1 + len(shape)}I", kind, *shape)
    return gzip.compress(header + (bytes(np.prod(shape)) if data is None else data))


def _noise(count: int) -> bytes:
    return np.random.default_rng(0).bytes(count)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IMAGES, idx(0x803, 3, 32, 32), "has shape [3, 32, 32]; expected [3, 28, 28]"),
        (IMAGES, idx(0x803, 2, 28, 28), "has shape [2, 28, 28]; expected [3, 28, 28]"),
        (IMAGES, idx(0x801, 3), "has magic number 2049; expected 2051"),
        (IMAGES, idx(0x803, 3, 28, 28, data=_noise(100)), "it ends early"),
        (IMAGES, idx(0x803, 3, 28, 28, data=_noise(3 * 784 + 1)), "goes on after its shape"),
        (IMAGES, idx(0x803, 3, 28, 28, data=_noise(3 * 784))[:-20], "cannot be read"),
        (IMAGES, b"<!doctype html>", "is no gzip file; it is an HTML page"),
        (IMAGES, b"", "is no gzip file"),
        (IMAGES, gzip.compress(b"12"), "cannot be read"),
        (LABELS, idx(0x801, 3, data=bytes([1, 10, 2])), "one outside 0..9"),
        (LABELS, idx(0x801, 0), "there are no labels"),
        (LABELS, idx(0x801, 2**31, data=b""), "over 100 times its own size"),
    ],
)
def test_a_file_is_refused(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / IMAGES).write_bytes(idx(0x803, 3, 28, 28, data=_noise(3 * 784)))
    (tmp_path / LABELS).write_bytes(idx(0x801, 3))
    assert len(prepared(source("fashion_mnist", tmp_path))[0]) == 3
    (tmp_path / name).write_bytes(content)
    text = refusal(source("fashion_mnist", tmp_path))
    assert f"{name}: cannot be read: " in text
    assert message in text


def test_a_directory_without_the_files(tmp_path):
    assert f"no {IMAGES}; expected {IMAGES} and {LABELS}" in refusal(source("fashion_mnist", tmp_path))
