"""Small archives in exactly the published formats of the paper's data sets: `python tests/archives.py DIR`.

The images are smooth blobs of colour, their hue decided by the label; the same arguments give the same bytes.
"""

from __future__ import annotations

import gzip
import io
import itertools
import struct
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import lmdb
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

_EPOCH = (1980, 1, 1, 0, 0, 0)
_BLOBS = 3


def blobs(n: int, height: int, width: int, channels: int, seed: int, labels: Labels | None = None) -> Images:
    """Images of three soft blobs each: [n, height, width, channels] uint8."""
    rng = np.random.default_rng(seed)
    hue = (rng.random(n) if labels is None else labels / 10)[:, None] + rng.normal(0, 0.03, (n, _BLOBS))
    colour = 0.5 + 0.5 * np.cos(2 * np.pi * (hue[:, :, None] - np.array([0, 1, 2])[:channels] / 3))
    y, x = rng.random((2, n, _BLOBS, 1))
    radius = rng.uniform(0.1, 0.35, (n, _BLOBS, 1))
    rows = np.exp(-(((np.linspace(0, 1, height) - y) / radius) ** 2))
    columns = np.exp(-(((np.linspace(0, 1, width) - x) / radius) ** 2))
    light = np.einsum("nby,nbx,nbc->nyxc", rows, columns, colour)
    ground = rng.uniform(0.1, 0.4, (n, 1, 1, channels))
    return np.rint(255 * np.clip(ground + light, 0, 1)).astype(np.uint8)


def classes(n: int, seed: int, count: int = 10) -> Labels:
    """Labels 0..count-1: [n]."""
    return np.random.default_rng([seed, 1]).integers(0, count, n)


def encoded(image: Images, kind: str, **options: object) -> bytes:
    """An image as the bytes of a file."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, kind, **options)
    return file.getvalue()


def planes(images: Images) -> Images:
    """[n, h, w, 3] as flat rows of colour planes."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def _parts(n: int, count: int) -> list[slice]:
    edges = [n * part // count for part in range(count + 1)]
    return [slice(*pair) for pair in itertools.pairwise(edges)]


def write_tar_gz(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """A .tar.gz without times or owners."""
    with path.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def write_zip(path: Path, members: Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> None:
    """A .zip without times."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, data, method)


def write_cifar10_binary(path: Path, n: int, seed: int = 0) -> tuple[Images, Labels]:
    """cifar-10-binary.tar.gz with n training images in five batches; returns what it holds."""
    labels = classes(n, seed)
    images = blobs(n, 32, 32, 3, seed, labels)
    records = np.concatenate([labels.astype(np.uint8)[:, None], planes(images)], axis=1)
    batches = {f"data_batch_{i + 1}.bin": records[part].tobytes() for i, part in enumerate(_parts(n, 5))}
    order = ["data_batch_1.bin", "batches.meta.txt", "data_batch_3.bin", "data_batch_4.bin", "test_batch.bin"]
    order += ["readme.html", "data_batch_5.bin", "data_batch_2.bin"]
    others = {"batches.meta.txt": b"airplane\n", "readme.html": b"<html></html>", "test_batch.bin": bytes(3073)}
    write_tar_gz(path, [(f"cifar-10-batches-bin/{name}", (batches | others)[name]) for name in order])
    return images, labels


def write_cifar10_python(path: Path, n: int, seed: int = 0) -> tuple[Images, Labels]:
    """cifar-10-python.tar.gz with the images of `write_cifar10_binary`."""
    labels = classes(n, seed)
    images = blobs(n, 32, 32, 3, seed, labels)
    batches = {
        f"data_batch_{i + 1}": python2_batch(planes(images[part]), labels[part], i + 1)
        for i, part in enumerate(_parts(n, 5))
    }
    order = ["data_batch_4", "readme.html", "test_batch", "data_batch_3", "batches.meta", "data_batch_2"]
    order += ["data_batch_5", "data_batch_1"]
    others = {"readme.html": b"<html></html>", "batches.meta": b"\x80\x02}q\x01.", "test_batch": b"\x80\x02}q\x01."}
    write_tar_gz(path, [(f"cifar-10-batches-py/{name}", (batches | others)[name]) for name in order])
    return images, labels


def python2_batch(data: Images, labels: Labels, number: int) -> bytes:
    """A batch as Python 2's cPickle wrote it: protocol 2, every text and container put into the memo."""
    out = bytearray(b"\x80\x02")
    memo = 0

    def put() -> None:
        nonlocal memo
        memo += 1
        out.extend(b"q" + bytes([memo]) if memo < 256 else b"r" + struct.pack("<i", memo))

    def text(value: bytes) -> None:
        out.extend(b"U" + bytes([len(value)]) + value)
        put()

    def whole(value: int) -> None:
        out.extend(b"K" + bytes([value]) if 0 <= value < 256 else b"M" + struct.pack("<H", value))

    def name(module: str, attribute: str) -> None:
        out.extend(f"c{module}\n{attribute}\n".encode())
        put()

    def after(code: bytes) -> None:
        out.extend(code)
        put()

    def listed(key: bytes, values: list[bytes] | list[int]) -> None:
        text(key)
        after(b"]")
        for start in range(0, len(values), 1000):
            out.extend(b"(")
            for value in values[start : start + 1000]:
                text(value) if isinstance(value, bytes) else whole(value)
            out.extend(b"e")

    after(b"}")
    out.extend(b"(")
    text(b"batch_label")
    text(b"training batch %d of 5" % number)
    listed(b"labels", labels.tolist())
    text(b"data")
    name("numpy.core.multiarray", "_reconstruct")
    name("numpy", "ndarray")
    whole(0)
    after(b"\x85")
    text(b"b")
    after(b"\x87")
    after(b"R")
    out.extend(b"(")
    whole(1)
    for length in data.shape:
        whole(length)
    after(b"\x86")
    name("numpy", "dtype")
    text(b"u1")
    whole(0)
    whole(1)
    after(b"\x87")
    after(b"R")
    out.extend(b"(")
    whole(3)
    text(b"|")
    out.extend(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff")
    whole(0)
    after(b"t")
    out.extend(b"b\x89T" + struct.pack("<i", data.size) + data.tobytes())
    put()
    after(b"t")
    out.extend(b"b")
    listed(b"filenames", [b"blob_s_%06d.png" % i for i in range(len(labels))])
    out.extend(b"u.")
    return bytes(out)


def write_imagenet32(path: Path, n: int, seed: int = 0, batches: int = 10) -> tuple[Images, Labels]:
    """Imagenet32_train_npz.zip: batches with data, labels 1..1000 and the mean; returns labels from 0."""
    labels = classes(n, seed, 1000)
    images = blobs(n, 32, 32, 3, seed, labels % 10)
    members: list[tuple[str, bytes]] = []
    for i, part in enumerate(_parts(n, batches)):
        file = io.BytesIO()
        rows = planes(images[part])
        np.savez_compressed(file, data=rows, labels=labels[part] + 1, mean=rows.mean(axis=0))
        members.append((f"Imagenet32_train_npz/train_data_batch_{i + 1}.npz", file.getvalue()))
    write_zip(path, sorted(members), zipfile.ZIP_STORED)  # as text, batch 10 stands before batch 2
    return images, labels


def write_lsun(path: Path, n: int, seed: int = 0, side: int = 96) -> list[bytes]:
    """tower_train_lmdb.zip: an LMDB of webp and jpeg images, shorter side `side`; returns them in the keys' order."""
    rng = np.random.default_rng([seed, 2])
    values: list[tuple[bytes, bytes]] = []
    for i in range(n):
        longer = int(rng.integers(side, 2 * side))
        height, width = (side, longer) if i % 3 else (longer, side)
        image = blobs(1, height, width, 3, seed * 1_000_003 + i)[0]
        value = encoded(image, "JPEG", quality=75) if i % 4 == 3 else encoded(image, "WEBP", quality=75)
        values.append((rng.bytes(20).hex().encode(), value))
    values.sort()
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "data.mdb"
        write_lmdb(database, values)
        members = [("tower_train_lmdb/data.mdb", database.read_bytes()), ("tower_train_lmdb/lock.mdb", bytes(8192))]
        write_zip(path, members)
    return [value for _, value in values]


def write_lmdb(path: Path, values: list[tuple[bytes, bytes]]) -> None:
    """An LMDB database in one file."""
    room = 2**20 + 3 * sum(len(key) + len(value) + 4096 for key, value in values)
    with lmdb.open(str(path), subdir=False, map_size=room, lock=False) as environment:
        with environment.begin(write=True) as transaction:
            for key, value in values:
                transaction.put(key, value)


def write_celeba(path: Path, n: int, seed: int = 0) -> list[bytes]:
    """img_align_celeba.zip: jpeg images of 178x218, numbered from 1; returns them."""
    values = [encoded(image, "JPEG", quality=90) for image in blobs(n, 218, 178, 3, seed)]
    members = [(f"img_align_celeba/{i + 1:06d}.jpg", value) for i, value in enumerate(values)]
    write_zip(path, members, zipfile.ZIP_STORED)
    return values


def write_ffhq(path: Path, n: int, seed: int = 0, size: int = 128) -> Images:
    """thumbnails128x128.zip: png images in sub-directories of 1000; returns the images."""
    images = blobs(n, size, size, 3, seed)
    members = [
        (f"thumbnails128x128/{i // 1000 * 1000:05d}/{i:05d}.png", encoded(image, "PNG", compress_level=1))
        for i, image in enumerate(images)
    ]
    write_zip(path, [("thumbnails128x128/LICENSE.txt", b"CC BY-NC-SA 4.0\n"), *members], zipfile.ZIP_STORED)
    return images


def write_fashion_mnist(directory: Path, n: int, seed: int = 0) -> tuple[Images, Labels]:
    """The four idx.gz files of Fashion-MNIST, n training images; returns these."""
    labels = classes(n, seed)
    images = blobs(n, 28, 28, 1, seed, labels)
    _write_idx(directory / "train-images-idx3-ubyte.gz", images[..., 0])
    _write_idx(directory / "train-labels-idx1-ubyte.gz", labels.astype(np.uint8))
    _write_idx(directory / "t10k-images-idx3-ubyte.gz", images[:1, ..., 0])
    _write_idx(directory / "t10k-labels-idx1-ubyte.gz", labels[:1].astype(np.uint8))
    return images, labels


def _write_idx(path: Path, array: Images) -> None:
    header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


def write_all(directory: Path, n: int = 64) -> None:
    """Every archive under its published name."""
    directory.mkdir(parents=True, exist_ok=True)
    write_cifar10_binary(directory / "cifar-10-binary.tar.gz", n)
    write_cifar10_python(directory / "cifar-10-python.tar.gz", n)
    write_imagenet32(directory / "Imagenet32_train_npz.zip", n)
    write_lsun(directory / "tower_train_lmdb.zip", n)
    write_celeba(directory / "img_align_celeba.zip", n)
    write_ffhq(directory / "thumbnails128x128.zip", n)
    write_fashion_mnist(directory, n)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python tests/archives.py DIR")
    write_all(Path(sys.argv[1]))
