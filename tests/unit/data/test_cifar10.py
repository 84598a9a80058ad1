"""CIFAR-10: both published formats, and pickles that are not followed."""

import pickle
import pickletools
import shutil
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from archives import planes, python2_batch, write_cifar10_binary, write_cifar10_python, write_tar_gz
from unit.raw_data import prepared, refusal, source

from ipdiff.data.formats import pickled

WRITERS = {"binary": write_cifar10_binary, "python": write_cifar10_python}


def unpack(archive: tarfile.TarFile, folder: Path) -> None:
    """Unpack without the warning of newer Pythons; older ones know no filter."""
    archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))


@pytest.mark.parametrize("version", WRITERS)
def test_archive_and_its_directory(tmp_path, version):
    path = tmp_path / "cifar.tar.gz"
    images, labels = WRITERS[version](path, 23)
    with tarfile.open(path) as archive:
        unpack(archive, tmp_path / "unpacked")
    for raw in (path, tmp_path / "unpacked"):
        got_images, got_labels = prepared(source("cifar10", raw, num_images=23))
        np.testing.assert_array_equal(got_images, images)
        np.testing.assert_array_equal(got_labels, labels)
    np.testing.assert_array_equal(prepared(source("cifar10", path, limit=7))[0], images[:7])


def test_the_tests_batch_is_a_pickle_of_python_2():
    images, labels = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072), np.array([9, 0])
    data = python2_batch(images, labels, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy has moved the function that the pickle names
        whole = pickle.loads(data, encoding="bytes")  # noqa: S301 - written by this test
    np.testing.assert_array_equal(whole[b"data"], images)
    assert (whole[b"labels"], whole[b"batch_label"]) == ([9, 0], b"training batch 1 of 5")
    got, got_labels = pickled.read_batch(data)
    np.testing.assert_array_equal(got, images)
    assert got_labels.tolist() == [9, 0]


def test_many_labels_use_long_memos():
    labels = np.arange(700) % 10
    images = np.zeros((700, 3072), np.uint8)
    assert b"r" in {op.code.encode() for op, _, _ in pickletools.genops(python2_batch(images, labels, 1))}
    np.testing.assert_array_equal(pickled.read_batch(python2_batch(images, labels, 1))[1], labels)


BATCH = python2_batch(np.zeros((2, 3072), np.uint8), np.array([1, 2]), 1)


class Runs:
    """Unpickling this would run a command."""

    def __reduce__(self):
        return (print, ("it ran",))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps(Runs(), 2), "asks for __builtin__ print; only numpy arrays are read"),
        (BATCH.replace(b"cnumpy\nndarray", b"cposix\nsystem\n"), "asks for posix system"),
        (pickle.dumps({"data": 1}, 4), "has the instruction"),
        (pickle.dumps([1, 2], 2), "no dict with 'data' and 'labels'"),
        (BATCH.replace(b"U\x02u1", b"U\x02u2"), "no array of uint8"),
        (BATCH.replace(b"U\x02u1", b"U\x02O8"), "no array of uint8"),
        (BATCH.replace(b"b\x89T", b"b\x88T"), "no numpy array in C order"),
        (BATCH.replace(b"K\x02M\x00\x0c", b"K\x03M\x00\x0c"), "cannot reshape"),
        (BATCH.replace(b"K\x01K\x02e", b"K\x01K\x0be"), "has a label outside 0..9"),
        (BATCH.replace(b"K\x01K\x02e", b"K\x01e"), "data is uint8 [2, 3072] with 1 labels"),
        (BATCH[: len(BATCH) // 2], "cannot be read"),
        (BATCH[:-1], "cannot be read"),
        (b"\x80\x02e.", "APPENDS finds nothing to work on"),
        (b"\x80\x02q\x01.", "BINPUT finds nothing to work on"),
        (b"\x80\x02K\x01K\x02.", "it does not end with one value"),
        (b"", "cannot be read"),
    ],
)
def test_a_batch_that_is_not_followed(tmp_path, capsys, data, message):
    for n in range(1, 6):
        (tmp_path / f"data_batch_{n}").write_bytes(data if n == 3 else BATCH)
    text = refusal(source("cifar10", tmp_path))
    assert "data_batch_3" in text
    assert message in text
    assert capsys.readouterr().out == ""


def test_what_is_missing_or_damaged(tmp_path):
    write_cifar10_binary(tmp_path / "cifar.tar.gz", 10)
    with tarfile.open(tmp_path / "cifar.tar.gz") as archive:
        unpack(archive, tmp_path)
    raw = tmp_path / "cifar-10-batches-bin"
    third = raw / "data_batch_3.bin"
    good = third.read_bytes()
    for content, message in [
        (good[:-1], "has 6145 bytes, no whole number of records of 3073"),
        (b"", "has 0 bytes"),
        (b"\x0a" + good[1:], "has a label outside 0..9"),
    ]:
        third.write_bytes(content)
        assert f"data_batch_3.bin: {message}" in refusal(source("cifar10", raw))
    third.unlink()
    assert "no data_batch_1; expected data_batch_1.bin to data_batch_5.bin" in refusal(source("cifar10", raw))
    shutil.copytree(raw, tmp_path / "twice" / "a")
    shutil.copytree(raw, tmp_path / "twice" / "b")
    assert "there is another" in refusal(source("cifar10", tmp_path / "twice"))
    write_tar_gz(tmp_path / "other.tar.gz", [("readme", b"text")])
    assert "no data_batch_1" in refusal(source("cifar10", tmp_path / "other.tar.gz"))


def test_planes_are_red_first():
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[0, 0, 1] = (1, 2, 3)
    assert np.flatnonzero(planes(image)).tolist() == [1, 1025, 2049]
