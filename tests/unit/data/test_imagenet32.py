"""The downsampled ImageNet's npz batches."""

import io
import zipfile

import numpy as np
import pytest
from archives import write_imagenet32, write_zip
from unit.raw_data import prepared, refusal, source


def npz(compress=False, **arrays):
    file = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(file, **arrays)
    return file.getvalue()


ROWS = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
LABELS = np.array([1, 1000, 3, 4])
GOOD = npz(data=ROWS, labels=LABELS, mean=np.zeros(3072))


def test_batches_in_the_order_of_their_numbers(tmp_path):
    path = tmp_path / "Imagenet32_train_npz.zip"
    images, labels = write_imagenet32(path, 41)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist()[1].endswith("train_data_batch_10.npz")
        archive.extractall(tmp_path / "unpacked")
    for raw in (path, tmp_path / "unpacked"):
        got_images, got_labels = prepared(source("imagenet32", raw, num_images=41))
        np.testing.assert_array_equal(got_images, images)
        np.testing.assert_array_equal(got_labels, labels)
    assert (tmp_path / "unpacked" / "Imagenet32_train_npz" / "train_data_batch_1.npz").exists()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (npz(data=ROWS.astype(object), labels=LABELS), "data.npy: cannot be read: holds Python objects (a pickle)"),
        (npz(data=ROWS, labels=LABELS.astype(object)), "labels.npy: cannot be read: holds Python objects"),
        (npz(data=ROWS[:, :-3], labels=LABELS), "data is uint8 [4, 3069]; expected uint8 [4, 3072]"),
        (npz(data=ROWS[:3], labels=LABELS), "data is uint8 [3, 3072]; expected uint8 [4, 3072]"),
        (npz(data=ROWS.astype(np.float32), labels=LABELS), "data is float32"),
        (npz(data=np.asfortranarray(ROWS), labels=LABELS), "is in Fortran order"),
        (npz(data=ROWS, labels=LABELS - 1), "one outside 1..1000"),
        (npz(data=ROWS, labels=LABELS[:, None]), "labels are int64 [4, 1]"),
        (npz(data=ROWS[:0], labels=LABELS[:0]), "there are no labels"),
        (npz(labels=LABELS), "no data.npy"),
        (npz(compress=True, data=np.zeros((6000, 3072), np.uint8), labels=np.ones(6000, int)), "over 100 times"),
        (GOOD[:-100], "train_data_batch_2.npz: cannot be read"),
        (b"<html>log in", "train_data_batch_2.npz: neither a directory nor a readable .zip or .tar.gz; it is an HTML"),
    ],
)
def test_a_batch_is_refused(tmp_path, batch, message):
    path = tmp_path / "all.zip"
    write_zip(path, [("a/train_data_batch_1.npz", GOOD), ("a/train_data_batch_2.npz", batch)], zipfile.ZIP_STORED)
    text = refusal(source("imagenet32", path))
    assert "all.zip: a/train_data_batch_2.npz: " in text
    assert message in text


def test_a_header_that_promises_more_than_there_is(tmp_path):
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (10**15, 3072)}
    np.lib.format.write_array_header_1_0(file, header)
    write_zip(tmp_path / "train_data_batch_1.npz", [("data.npy", file.getvalue()), ("labels.npy", file.getvalue())])
    assert "its header says 3072000000000000128" in refusal(source("imagenet32", tmp_path))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train_data_batch_1", "train_data_batch_2"], "is the edition in pickles, which may run code"),
        (["train_data_batch_1.npz", "train_data_batch_3.npz"], "has batches [1, 3]; expected 1, 2, 3"),
        (["a/train_data_batch_1.npz", "b/train_data_batch_1.npz"], "there is another train_data_batch_1.npz"),
        (["val_data.npz"], "no train_data_batch_1.npz; expected Imagenet32_train_npz.zip"),
    ],
)
def test_another_set_of_batches(tmp_path, names, message):
    write_zip(tmp_path / "all.zip", [(name, GOOD) for name in names])
    assert message in refusal(source("imagenet32", tmp_path / "all.zip"))
