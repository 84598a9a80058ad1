"""Files from outside: what they are is said in words wherever they are read, and nothing is read before it is known."""

import contextlib
import io
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from archives import encoded, write_zip
from inception import write_inception
from unit.params_factory import put, small, write
from unit.raw_data import refusal, source

from ipdiff import cli
from ipdiff.data.arrays import load_npz, save_npz
from ipdiff.data.formats import filekind
from ipdiff.data.npy import load_npy
from ipdiff.device.spec import Compute
from ipdiff.errors import UserError, brief
from ipdiff.metrics.features.inception import InceptionFeatures
from ipdiff.metrics.features.pixels import pixels
from ipdiff.metrics.outside import compare

HTML = b"\xef\xbb\xbf\n<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title>" + b"x" * 20_000
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
RNG = np.random.default_rng(0)


def zipped(names, method=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name in names:
            archive.writestr(name, b"content")
    return file.getvalue()


def torch_saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


IMAGE = RNG.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)[0]
MANY = [f"a/rather/long/folder/of/images/{i:06d}.png" for i in range(300)]
KINDS = {
    "page": (HTML, "html", "an HTML page: a login, confirmation or error page was saved instead of the file"),
    "pointer": (LFS, "lfs", "a pointer of Git LFS; get the file itself with git lfs pull"),
    "dvc": (b"outs:\n- md5: 00\n  path: x.npz\n", "dvc", "a pointer of DVC"),
    "error": (b'<?xml version="1.0"?><Error><Code>NoSuchKey', "xml", "XML: if it was downloaded, a server's error"),
    "nothing": (b"", "empty", "an empty file"),
    "sparse": (bytes(9000), "zeros", "nothing but zero bytes at its start"),
    "pickle": (pickle.dumps({"images": [1, 2]}), "pickle", "a pickle, which may run code"),
    "pngs": (zipped(MANY), "zip", "a zip archive of 300 .png files"),
    "mixed": (zipped(["b/readme", "c.txt"]), "zip", "a zip archive of 2 files such as b/readme"),
    "cut": (zipped(MANY)[:5000], "damaged", "a damaged or truncated zip archive"),
    "png": (encoded(IMAGE, "PNG"), "png", "a PNG image"),
    "gif": (encoded(IMAGE, "GIF"), "gif", "a GIF image"),
    "gzip": (b"\x1f\x8b\x08rest", "gzip", "a gzip file"),
    "hdf5": (b"\x89HDF\r\n\x1a\nrest", "hdf5", "an HDF5 file"),
    "script": (zipped(["n/data.pkl", "n/constants.pkl", "n/code/a.py"]), "torchscript", "a program of TorchScript"),
    "text": ("größe,label\n".encode() * 99, "text", "a text that begins with 'größe,label\\ngröß'"),
    "noise": (b"\x9c\x01\xfe\x80 random", "unknown", "of no known kind (it begins with b'\\x9c\\x01\\xfe\\x80 ran')"),
}
NPY = {"npy": (npy(np.zeros(3)), "npy", "an npy file of numpy")}
NPZ = {"npz": (zipped(["arr_0.npy"]), "npz", "an npz file of numpy")}
SAVED = {"saved": (torch_saved({"w": torch.zeros(2)}), "torch", "a file of torch.save")}
SAFE = {"safe": (b"\x02\0\0\0\0\0\0\0{}", "safetensors", "a safetensors file")}


@pytest.mark.parametrize("name", [*KINDS, *NPY, *NPZ, *SAVED, *SAFE])
def test_a_file_is_known_by_its_first_bytes(tmp_path, name):
    data, kind, words = {**KINDS, **NPY, **NPZ, **SAVED, **SAFE}[name]
    (tmp_path / "file.jpeg").write_bytes(data)  # a name says nothing
    found = filekind.look(tmp_path / "file.jpeg")
    assert found.name == kind
    assert found.words.startswith(words)
    assert found.stand_in == (name in ("page", "pointer", "dvc", "error", "nothing"))
    assert len(found.words) <= 130


def test_what_is_no_file_is_named(tmp_path):
    for path, said in ((tmp_path / "x", "is missing"), (tmp_path, "is a directory"), (Path("/dev/null"), "no plain")):
        with pytest.raises(UserError, match=said):
            filekind.look(path)


def test_brief_is_one_printable_line():
    assert brief("a\n  b\x1b[31m") == "a b?[31m"
    assert brief(ValueError()) == "ValueError"
    assert brief("x" * 500, 20) == "x" * 17 + "..."


# ipdiff evaluate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier of the pipeline, which is quicker than Inception, and nine images for it."""
    out = tmp_path_factory.mktemp("foreign")
    with contextlib.chdir(out):
        write(out, small())
        for verb in ("prepare", "classifier"):
            assert cli.main([verb, "--dataset", "tiny"]) == 0
    np.save(out / "real.npy", RNG.integers(0, 256, (9, 8, 8, 1), dtype=np.uint8))
    return out


@pytest.fixture
def evaluate(folder, capsys, monkeypatch):
    """Run the command; exit code, stdout and stderr."""
    monkeypatch.chdir(folder)

    def run(samples, reference="real.npy", *options):
        options = ("--features", "features/tiny/classifier.safetensors", "--threads", "1", *options)
        argv = ["evaluate", samples, "--reference", reference, *options]
        code = cli.main(argv)
        said = capsys.readouterr()
        assert len(said.err) <= 300
        return code, said.out, said.err

    return run


ARCHIVES = {
    "pngs": "a/rather/long/folder/of/images/000000.png cannot be read as an image; it is a text that ",
    "mixed": "is a zip archive of 2 files such as b/readme, without images; expected an npz with images",
    "gzip": "cannot be read: Compressed file ended",
}
"""What may be a set of images by its first bytes, and is none."""


@pytest.mark.parametrize("suffix", ["npz", "npy"])
@pytest.mark.parametrize("name", [name for name in (*KINDS, *SAVED, *SAFE) if name not in ARCHIVES])
def test_evaluate_says_what_a_file_is_and_what_to_give(evaluate, folder, name, suffix):
    data, _, words = {**KINDS, **SAVED, **SAFE}[name]
    (folder / f"{name}.{suffix}").write_bytes(data)
    for files in ((f"{name}.{suffix}", "real.npy"), ("real.npy", f"{name}.{suffix}")):
        code, _, said = evaluate(*files)
        assert (code, said.count("\n")) == (2, 1)
        assert said.startswith(f"ipdiff: {name}.{suffix}: is {words}")
        assert said.endswith(
            "; expected an npz with images (arr_0) or statistics (mu, sigma, mu_s, sigma_s), an npy of images, or a "
            "folder or zip of them\n"
        )


@pytest.mark.parametrize("name", ARCHIVES)
def test_evaluate_looks_for_images_in_an_archive(evaluate, folder, name):
    (folder / name).write_bytes(KINDS[name][0])
    for files in ((name, "real.npy"), ("real.npy", name)):
        code, _, said = evaluate(*files)
        assert (code, said.count("\n")) == (2, 1)
        assert said.startswith(f"ipdiff: {name}: {ARCHIVES[name]}")


def test_the_bytes_of_a_file_decide_not_its_name(evaluate, folder):
    real = np.load(folder / "real.npy")
    (folder / "misnamed.npz").write_bytes(npy(real))
    save_npz(folder / "misnamed.zip", arr_0=real)
    found = [json.loads(evaluate(name, "real.npy", "--json")[1]) for name in ("misnamed.npz", "misnamed.zip")]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((6, 8, 8, 4), "images have 4 channels; expected 1 or 3"),
        ((6, 8, 8, 2), "images have 2 channels; expected 1 or 3"),
        ((6, 8, 8, 0), "images have 0 channels; expected 1 or 3"),
        ((6, 3, 8, 8), "expected images uint8 [N, H, W, C], found uint8 [6, 3, 8, 8]; the channels stand last"),
        ((6, 8, 8), "found uint8 [6, 8, 8]; grey images need one axis more"),
        ((6, 0, 8, 3), "found uint8 [6, 0, 8, 3], which have no pixels"),
        ((6,), "expected images uint8 [N, H, W, C], found uint8 [6]"),
        ((1, 8, 8, 3), "a Frechet distance needs 2 images or more; got 1"),
        ((0, 8, 8, 3), "a Frechet distance needs 2 images or more; got 0"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("with_shape", [False, True])
def test_images_of_another_layout(evaluate, folder, shape, said, with_shape):
    images = np.full(shape, 7, np.uint8)
    about = {"image_shape": np.array([8, 8, 4])} if with_shape else {}
    save_npz(folder / "odd.npz", arr_0=images)
    save_npz(folder / "reference.npz", mu=np.zeros(32), sigma=np.eye(32), **about)
    np.save(folder / "odd.npy", images)
    for files in (("odd.npz", "reference.npz"), ("real.npy", "odd.npz"), ("odd.npy", "reference.npz")):
        code, _, text = evaluate(*files)
        assert (code, text.count("\n")) == (2, 1)
        assert said in text


def test_floats_are_told_how_to_become_bytes(evaluate, folder):
    save_npz(folder / "floats.npz", arr_0=np.zeros((6, 8, 8, 3), np.float32))
    assert "found float32 [6, 8, 8, 3]; floats in [-1, 1] become ((x + 1) * 127.5)" in evaluate("floats.npz")[2]


def test_images_of_any_size_are_measured(evaluate, folder):
    for shape, features in (((9, 1, 64, 3), 96), ((9, 64, 1, 3), 96), ((9, 1, 1, 1), 1), ((9, 70, 3, 3), 69)):
        assert pixels(RNG.integers(0, 256, shape, dtype=np.uint8)).shape == (9, features)
    np.save(folder / "long.npy", RNG.integers(0, 256, (9, 1, 64, 3), dtype=np.uint8))
    write_inception(folder / "net.pt", seed=1, width=1 / 64, classes=4)
    code, out, said = evaluate("long.npy", "long.npy", "--json", "--metrics", "pixel_fd", "--features", "net.pt")
    assert code == 0, said
    assert abs(json.loads(out)["pixel_fd"]) < 1e-6


def test_few_images_give_the_metrics_that_they_permit(evaluate, folder):
    np.save(folder / "two.npy", np.load(folder / "real.npy")[:2])
    for files in (("two.npy", "real.npy"), ("real.npy", "two.npy")):
        code, out, said = evaluate(*files, "--json")
        assert code == 0, said
        assert list(json.loads(out))[:3] == ["fid", "sfid", "pixel_fd"]
        assert not {"precision", "recall"} & json.loads(out).keys()
    code, out, said = evaluate("two.npy", "real.npy", "--metrics", "fid,recall")
    assert (code, out) == (2, "")
    assert "no recall: it needs the images of both (arr_0), 4 or more" in said


def test_what_cannot_be_is_refused_before_anything_is_computed(evaluate, folder):
    save_npz(folder / "stats.npz", mu=np.zeros(32), sigma=np.eye(32))
    code, _, said = evaluate("real.npy", "stats.npz", "--features", "nowhere.pt", "--metrics", "precision")
    assert (code, "no precision: it needs the images of both" in said) == (2, True)


def test_fewer_images_than_features_is_warned_of_with_both_numbers(evaluate, folder):
    code, out, said = evaluate("real.npy", "real.npy", "--metrics", "fid,sfid", "--json")
    assert code == 0
    assert said == (
        "ipdiff: warning: fewer images than features, so the distance is biased: images: samples 9, reference 9; "
        "features: fid 16, sfid 256\n"
    )
    assert json.loads(out)["n"] == 9
    save_npz(folder / "told.npz", mu=np.zeros(32), sigma=np.eye(32), n=np.array(31))
    save_npz(folder / "enough.npz", mu=np.zeros(32), sigma=np.eye(32), n=np.array(32))
    save_npz(folder / "untold.npz", mu=np.zeros(32), sigma=np.eye(32))
    assert "images: samples 31, reference 32; features: fid 32\n" in evaluate("told.npz", "enough.npz")[2]
    for name in ("enough.npz", "untold.npz"):
        assert evaluate(name, "enough.npz")[2] == ""


@pytest.mark.parametrize(
    ("values", "warned"),
    [([0, 1], True), ([0], True), ([1], True), ([0, 1, 255], True), ([0, 255], False), ([0, 1, 2], False)],
)
def test_values_to_which_floats_are_cut_off(values, warned):
    images = np.full((200, 8, 8, 3), values[0], np.uint8)
    images[-1] = np.resize(np.array(values, np.uint8), (8, 8, 3))  # the last block decides
    assert compare.is_cut_off(images) == warned


def test_images_of_0_and_1_only_are_warned_of(evaluate, folder):
    np.save(folder / "cast.npy", np.load(folder / "real.npy") > 127)
    save_npz(folder / "cast.npz", arr_0=np.load(folder / "cast.npy").astype(np.uint8))
    line = "ipdiff: warning: hardly a value but 0 and 1 in {}: floats cast to uint8? expected 0..255"
    for files, where in (
        (("cast.npz", "real.npy"), "samples"),
        (("real.npy", "cast.npz"), "reference"),
        (("cast.npz", "cast.npz"), "samples and reference"),
    ):
        code, _, said = evaluate(*files)
        assert code == 0
        assert said.splitlines()[1:] == [line.format(where)]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"mu": np.zeros(3)}, "found mu"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "holds mu float64 [3] and sigma float64 [4, 4]; expected real"),
        ({"mu": np.zeros((1, 3)), "sigma": np.eye(3)}, "holds mu float64 [1, 3] and sigma float64 [3, 3]"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "holds mu float64 [0] and sigma float64 [0, 0]"),
        ({"mu": np.zeros(3), "sigma": np.eye(3) * 1j}, "sigma complex128 [3, 3]; expected real numbers"),
        ({"mu": np.array(["a"]), "sigma": np.eye(1)}, "holds mu <U1 [1]"),
        ({"mu": np.array([np.nan, 0, 1]), "sigma": np.eye(3)}, "mu has 1 values that are not finite, of 3"),
        ({"mu": np.zeros(3), "sigma": np.full((3, 3), -np.inf)}, "sigma has 9 values that are not finite, of 9"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "mu_s": np.zeros(3)}, "holds mu_s alone; expected both"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "n": np.zeros(2)}, "n is float64 [2]; expected 1 whole number"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "image_shape": np.array([8])}, "image_shape is int64 [1]; expected 3"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "features": np.zeros(())}, "features is float64 []; expected a text"),
        ({"mu": np.full(3, 1e300), "sigma": np.eye(3)}, "a metric came out as inf"),
        ({f"name_{i}": np.zeros(1) for i in range(900)}, "found name_0, name_1"),
    ],
)  # fmt: skip
def test_statistics_that_are_none(evaluate, folder, arrays, said):
    np.savez(folder / "bad.npz", **arrays)
    save_npz(folder / "good.npz", mu=np.zeros(3), sigma=np.eye(3))
    for files in (("bad.npz", "good.npz"), ("good.npz", "bad.npz")):
        code, _, text = evaluate(*files)
        assert (code, text.count("\n")) == (2, 1)
        assert said in text


def test_statistics_of_other_code_are_read(evaluate, folder):
    """float32, Fortran order, compressed, and beside an array that nobody asked for."""
    factor = RNG.normal(size=(5, 5))
    sigma = factor @ factor.T
    np.savez(folder / "plain.npz", mu=np.arange(5.0), sigma=sigma)
    np.savez_compressed(
        folder / "other.npz", mu=np.arange(5), sigma=np.asfortranarray(sigma), notes=np.array([{}], dtype=object)
    )
    code, out, said = evaluate("other.npz", "plain.npz", "--json")
    assert code == 0, said
    assert abs(json.loads(out)["fid"]) < 1e-9


def test_nothing_is_read_before_its_header_is_known(tmp_path):
    """A header may claim anything; only what the file has room for is made."""
    for shape, said in (
        ((10**6, 10**6), "its header says 8000000000"),
        ((-2, 3), "negative"),
        ((10**30,), "says 8000"),
    ):
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
        (tmp_path / "x.npy").write_bytes(file.getvalue() + bytes(48))
        write_zip(tmp_path / "x.npz", [("mu.npy", file.getvalue() + bytes(48))])
        for load, name in ((load_npy, "x.npy"), (load_npz, "x.npz")):
            with pytest.raises(UserError, match=said) as caught:
                load(tmp_path / name)
            assert len(str(caught.value)) < 200 + len(str(tmp_path))


def test_an_npz_that_expands_without_bound_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", arr_0=np.zeros((40, 512, 512, 3), np.uint8))
    np.savez_compressed(tmp_path / "small.npz", arr_0=np.zeros((20, 64, 64, 3), np.uint8))
    with pytest.raises(
        UserError,
        match="over 100 times its own size; if you trust it, pack it without compression",
    ):
        load_npz(tmp_path / "bomb.npz")
    assert load_npz(tmp_path / "small.npz")["arr_0"].shape == (20, 64, 64, 3)


def test_a_changed_byte_of_an_npz_is_seen(tmp_path):
    save_npz(tmp_path / "a.npz", x=np.arange(1000))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[3000] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.npz: x\.npy: cannot be read: Bad CRC-32"):
        load_npz(tmp_path / "a.npz")


# The other readers


@pytest.mark.parametrize("name", ["page", "pointer", "pngs", "cut", "png", "nothing", *NPY, *NPZ, *SAVED, *SAFE])
def test_the_inception_network_is_known_before_it_is_hashed(tmp_path, name, capsys, monkeypatch):
    data, _, words = {**KINDS, **NPY, **NPZ, **SAVED, **SAFE}[name]
    monkeypatch.chdir(tmp_path)
    Path("net.pt").write_bytes(data)
    with pytest.raises(UserError) as caught:
        InceptionFeatures(Path("net.pt"), Compute(), sha256="00")
    assert str(caught.value).startswith(f"net.pt: is {words}")
    np.save("real.npy", RNG.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8))
    monkeypatch.setenv("IPDIFF_INCEPTION", "net.pt")
    assert cli.main(["evaluate", "real.npy", "--reference", "real.npy"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"ipdiff: net.pt: is {words}")
    assert len(said) <= 300


@pytest.mark.parametrize("name", [*KINDS, *NPY, *NPZ])
def test_import_says_what_a_file_is(tmp_path, name, capsys, monkeypatch):
    data, kind, words = {**KINDS, **NPY, **NPZ}[name]
    monkeypatch.chdir(tmp_path)
    write(tmp_path, put(small(), "models.official", {"family": "adm", "imported": True}))
    Path("ema.pt").write_bytes(data)
    assert cli.main(["import", "ema.pt", "--as", "tiny/official", "--step", "8"]) == 2
    said = capsys.readouterr().err
    expected = "no file of torch.save" if kind == "pickle" else f"is {words}"
    assert said.startswith(f"ipdiff: ema.pt: {expected}")
    assert len(said) <= 300
    assert said.count("\n") == 1
    assert "weights_only" not in said


@pytest.mark.parametrize("name", ["page", "pointer", "error", "nothing"])
@pytest.mark.parametrize(
    ("reader", "files"),
    [
        ("cifar10", {f"data_batch_{n}.bin": bytes(3073) for n in range(1, 6)}),
        ("cifar10", {f"data_batch_{n}": b"" for n in range(1, 6)}),
        ("imagenet32", {"train_data_batch_1.npz": b""}),
        ("lsun", {"data.mdb": b""}),
        ("fashion_mnist", {"train-labels-idx1-ubyte.gz": b"", "train-images-idx3-ubyte.gz": b""}),
    ],
)
def test_an_official_archive_that_is_something_else(tmp_path, reader, files, name):
    data, _, words = KINDS[name]
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    first = next(iter(files))
    (tmp_path / first).write_bytes(data)
    text = refusal(source(reader, tmp_path))
    assert first in text
    assert f"it is {words}" in text
    assert len(text) <= 300 + len(str(tmp_path))


@pytest.mark.parametrize("reader", ["cifar10", "imagenet32", "lsun", "celeba", "ffhq"])
@pytest.mark.parametrize("name", ["page", "pointer", "pickle", "png", "nothing"])
def test_an_archive_that_is_none(tmp_path, reader, name):
    data, _, words = KINDS[name]
    (tmp_path / "raw.zip").write_bytes(data)
    assert f"raw.zip: neither a directory nor a readable .zip or .tar.gz; it is {words}" in refusal(
        source(reader, tmp_path / "raw.zip")
    )


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_compressed_in_another_way_is_refused(tmp_path, method):
    """A few bytes of bzip2 hold gigabytes, which Python unpacks at once."""
    write_zip(tmp_path / "raw.zip", [("data.mdb", bytes(100))], method)
    assert "data.mdb: is compressed by another method than deflate" in refusal(source("lsun", tmp_path / "raw.zip"))
    write_zip(tmp_path / "a.npz", [("x.npy", npy(np.zeros(3)))], method)
    with pytest.raises(UserError, match="compressed by another method than deflate"):
        load_npz(tmp_path / "a.npz")


# Anything at all


@pytest.mark.parametrize(("subject", "examples"), [("evaluate", 250), ("import", 250), ("network", 60)])
def test_any_file_ends_in_one_short_line_or_a_result(tmp_path, subject, examples):
    script = Path(__file__).with_name("fuzz_files.py")
    done = subprocess.run(
        [sys.executable, str(script), subject, str(examples)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    print(done.stdout)
    assert "exit codes {0: " in done.stdout  # some are read
    assert "2: " in done.stdout
