"""Stage prepare, arrays on disk and the conversion of images."""

import itertools
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from unit.raw_data import prepared, source
from unit.told import heard

from ipdiff.data import prepare
from ipdiff.data.arrays import load_npz, save_npz, stream_npz
from ipdiff.data.images import load_images, to_network, to_uint8
from ipdiff.data.npy import Header, npy_rows
from ipdiff.data.spec import Source
from ipdiff.errors import IntegrityError, UserError
from ipdiff.pipeline.store.artifact import file_digest

DIGITS = Source("digits", 8, 1)


def test_digits():
    images, labels = prepared(DIGITS)
    assert images.shape == (1797, 8, 8, 1)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    assert labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert (images.min(), images.max(), len(np.unique(images))) == (0, 255, 17)
    assert images[0, 0, :, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_limit_and_refusal():
    images, labels = prepared(Source("digits", 8, 1, limit=10))
    assert (len(images), labels.tolist()) == (10, list(range(10)))
    with pytest.raises(ValueError, match="image_size is 16; images of digits have 8"):
        Source("digits", 16, 1)


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


def test_limit_and_num_images(tmp_path):
    for i in range(5):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / f"{i}.png")
    assert prepared(source("folder", tmp_path, num_images=5))[0][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert prepared(source("folder", tmp_path, num_images=5, limit=3))[0][:, 0, 0, 0].tolist() == [0, 1, 2]
    with pytest.raises(UserError, match=r"holds 5 images; expected 6 \(num_images\): incomplete, or another edition"):
        prepared(source("folder", tmp_path, num_images=6))


def test_progress_counts_images(tmp_path):
    with heard() as told:
        prepare.run(DIGITS, tmp_path)
    assert (told.begun, told.done) == ([("images", DIGITS.expected_images, 0)], [1797])


@pytest.mark.parametrize("row", [(8, 8, 3), (), (5,)])
def test_npy_written_in_blocks_is_that_of_numpy(tmp_path, row):
    whole = np.arange(1000 * int(np.prod(row, dtype=int)), dtype=np.int32).reshape(1000, *row)
    with npy_rows(tmp_path / "blocks.npy", row, np.int32) as append:
        for part in (whole[:0], whole[:1], whole[1:998], whole[998:]):
            append(part)
    np.save(tmp_path / "whole.npy", whole)
    assert (tmp_path / "blocks.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    with (tmp_path / "whole.npy").open("rb") as stream:
        header = Header.read(stream, (tmp_path / "whole.npy").stat().st_size)
        np.testing.assert_array_equal(np.concatenate(list(header.blocks(stream, 7))), whole)


def test_npy_blocks_of_another_shape_or_dtype(tmp_path):
    with npy_rows(tmp_path / "x.npy", (2,), np.uint8) as append:
        for block in (np.zeros((1, 3), np.uint8), np.zeros((1, 2), np.int64)):
            with pytest.raises(ValueError, match="block is"):
                append(block)


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


def test_npz_bytes_are_those_that_every_python_writes(tmp_path):
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    save_npz(tmp_path / "saved.npz", arr_0=images, mu=np.arange(3.0))
    stream_npz(tmp_path / "streamed.npz", "arr_0", images.shape, [images[:1], images[1:]])
    # Seen with Python 3.11.2, whose zip64 headers differ, and 3.11.7.
    assert file_digest(tmp_path / "saved.npz") == "75199829e24189bd9c6cf12428d1571a"
    assert file_digest(tmp_path / "streamed.npz") == "eea5fc1ffc1d4139d6744bdb402e5675"


@pytest.mark.slow
def test_an_array_above_2_gib_is_written_too(tmp_path):
    part = np.zeros((1 << 14, 64, 64, 1), np.uint8)
    part[:, 0, 0, 0] = 7
    count = (1 << 31) // part.nbytes + 1
    stream_npz(tmp_path / "large.npz", "arr_0", (count * len(part), *part.shape[1:]), itertools.repeat(part, count))
    with zipfile.ZipFile(tmp_path / "large.npz") as archive:
        (entry,) = archive.infolist()
        assert entry.file_size > 1 << 31
        with archive.open(entry) as file:
            assert np.lib.format.read_magic(file) == (1, 0)


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


def test_the_ddim_codes_images_are_rounded():
    """Torchvision's save_image after (x + 1) / 2: each grey level is that of the nearest value, ties go up."""
    levels = torch.arange(256, dtype=torch.float64)
    x = torch.stack([levels - 0.49, levels, levels + 0.49], 1) / 127.5 - 1
    got = to_uint8(x.float().reshape(256, 3, 1, 1), "round")
    assert (got.dtype, got.shape) == (np.uint8, (256, 1, 1, 3))
    np.testing.assert_array_equal(got[:, 0, 0], np.repeat(np.arange(256)[:, None], 3, 1))
    outside = torch.tensor([-7.0, -1.0, 0.0, 1.0, 3.0, 1 / 255]).reshape(1, 3, 1, 2)
    assert to_uint8(outside, "round")[0, 0].T.ravel().tolist() == [0, 0, 128, 255, 255, 128]
    images = np.arange(256, dtype=np.uint8).reshape(2, 8, 16, 1)
    np.testing.assert_array_equal(to_uint8(to_network(images), "round"), images)


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
