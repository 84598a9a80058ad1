"""`ipdiff.metrics.fid` and `kid` in somebody's own code: no project, any form of images, the command's figures."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from inception import write_inception
from PIL import Image

from ipdiff import cli, metrics
from ipdiff.data import readers
from ipdiff.data.arrays import save_npz
from ipdiff.data.spec import Source
from ipdiff.device.spec import Compute
from ipdiff.errors import UserError
from ipdiff.metrics import fid, kid, save_statistics
from ipdiff.metrics.features.inception import InceptionFeatures
from ipdiff.metrics.outside import cache, compare
from ipdiff.metrics.outside.sides import Side
from ipdiff.metrics.spec import KernelDistance

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images in every form, and a network."""
    out = tmp_path_factory.mktemp("library")
    write_inception(out / "net.pt", seed=1)
    for name in ("drawn", "real"):
        images = RNG.integers(0, 256 if name == "drawn" else 100, (20, 8, 8, 3), dtype=np.uint8)
        np.save(out / f"{name}.npy", images)
        save_npz(out / f"{name}.npz", arr_0=images)
        (out / name / "part").mkdir(parents=True)
        with zipfile.ZipFile(out / f"{name}.zip", "w") as archive:
            for number, image in enumerate(images):
                path = out / name / ("part" if number > 9 else "") / f"{number:02}.png"
                Image.fromarray(image).save(path)
                archive.write(path, f"a/{number:02}.png")
        (out / name / "notes.txt").write_text("no image")
    return out


@pytest.fixture
def net(folder, tmp_path, monkeypatch):
    """The network's path, seen from an empty directory: no project is there."""
    monkeypatch.chdir(tmp_path)
    return str(folder / "net.pt")


@pytest.mark.filterwarnings("ignore:fewer images than features")
@pytest.mark.parametrize("form", ["drawn", "drawn.zip", "drawn.npz", "drawn.npy"])
def test_every_form_of_images_gives_the_same_distance(folder, net, form):
    drawn, real = np.load(folder / "drawn.npy"), np.load(folder / "real.npy")
    first = fid(drawn, real, net, threads=1)
    assert first["fid"] > 0
    again = fid(folder / form, str(folder / form.replace("drawn", "real")), net, threads=1)
    assert again == first | {"fid": pytest.approx(first["fid"], rel=1e-8)}  # folders have another order
    assert (first["n"], first["reference_n"], first["features"], first["dimensions"]) == (
        *(20, 20, "other inception"),
        {"fid": 64},
    )


@pytest.mark.filterwarnings("ignore:fewer images than features")
def test_the_command_measures_the_same(folder, net, capsys):
    sides = [str(folder / "drawn.npz"), "--reference", str(folder / "real.npz")]
    assert cli.main(["evaluate", *sides, "--features", net, "--threads", "1"]) == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    one, other = fid(sides[0], sides[2], net, threads=1), kid(sides[0], sides[2], net, threads=1)
    assert (said["fid"], said["kid"]) == (str(one["fid"]), str(other["kid"]))
    assert said["dimensions"].startswith("fid 64, sfid 2023, pixel_fd 192")


def test_kid_takes_the_settings_of_its_subsets(folder, net):
    drawn, real = np.load(folder / "drawn.npy"), np.load(folder / "real.npy")
    got = kid(drawn, real, net, threads=1, subsets=5, subset_size=8, seed=3)
    settings = {"kid": KernelDistance(5, 8, 3)}
    again = compare.compare(drawn, real, net, Compute(threads=1), ["kid"], settings).values
    assert got == again
    assert got["kid_se"] > 0
    assert "kid_se" not in kid(drawn, real, net, threads=1)


def test_doubts_are_warnings(folder, net):
    drawn = np.load(folder / "drawn.npy")
    with pytest.warns(UserWarning, match="fewer images than features, so the distance is biased") as seen:
        fid(drawn, drawn, net, threads=1)
    assert seen[0].filename == __file__
    with pytest.warns(UserWarning, match="hardly a value but 0 and 1 in samples: floats cast to uint8"):
        fid(np.concatenate([drawn // 200] * 4), np.concatenate([drawn] * 4), net, threads=1)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (
            np.zeros((4, 8, 8), np.uint8),
            r"samples: expected images uint8 \[N, H, W, C\], found uint8 \[4, 8, 8\]; grey",
        ),
        (np.zeros((4, 8, 8, 3)), r"samples: expected images uint8 \[N, H, W, C\], found float64"),
        (np.zeros((1, 8, 8, 3), np.uint8), "samples: a Frechet distance needs 2 images or more; got 1"),
        (np.zeros((4, 9, 9, 3), np.uint8), r"samples: images are \[9, 9, 3\] \[H, W, C\]; those of .*real.npy are"),
        ("absent", "absent is missing"),
        ([[0]], "samples: found list; expected images as an array or tensor, or a path"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), r"the channels stand last: images.transpose\(0, 2, 3, 1\)"),
        (torch.zeros(4, 8, 8, 3), r"floats \[4, 8, 8, 3\]; expected \[N, C, H, W\] in \[-1, 1\], C 1 or 3"),
        (torch.rand(4, 3, 8, 8), r"expected \[-1, 1\]: x \* 2 - 1 if they are in \[0, 1\]"),
        (torch.full((4, 3, 8, 8), -3.0), r"floats from -3 to -3; expected \[-1, 1\]: clamp them, or scale them"),
        (torch.full((4, 3, 8, 8), torch.nan), r"floats from nan to nan; expected \[-1, 1\]"),
        (None, "samples: found NoneType; expected images as an array or tensor, or a path"),
        (b"drawn.npy", "samples: found bytes; expected images as an array or tensor, or a path"),
    ],
)
def test_refusals(folder, net, images, said):
    with pytest.raises(UserError, match=said):
        fid(images, folder / "real.npy", net)
    with pytest.raises(UserError, match="device is tpu; use cpu or cuda"):
        fid(folder / "real.npy", folder / "real.npy", net, device="tpu")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"subsets": 1}, "subsets is 1; use 2 or more"),
        ({"subset_size": 1}, "subset_size is 1; use 2 or more"),
        ({"subset_size": 20.0}, "subset_size is 20.0; use a whole number"),
        ({"seed": -1}, "seed is -1; use 0..2\\*\\*64-1"),
        ({"threads": -1}, "threads is -1; use 1..1024"),
        ({"threads": 0}, "threads is 0; use 1..1024"),
        ({"threads": "4"}, "threads is '4'; use a whole number"),
        ({"features": None}, "features is None; use inception, a network's path, a TorchScript record or a function"),
        (
            {"features": "incepton"},
            "features 'incepton': no such file; use inception or pixels, or a path of a network",
        ),
    ],
)
def test_arguments_that_cannot_be(folder, arguments, said):
    real = folder / "real.npy"
    with pytest.raises(UserError, match=f"^{said}$"):
        kid(real, real, **arguments)


@pytest.mark.filterwarnings("ignore:fewer images than features")
def test_a_device_of_torch_and_whole_numbers_of_numpy(folder, net):
    real = folder / "real.npy"
    got = kid(real, real, net, torch.device("cpu"), np.int64(1), subsets=np.int32(5), subset_size=np.int64(8))
    assert got == kid(real, real, net, "cpu", 1, subsets=5, subset_size=8)


def test_folders_that_are_no_set_of_images(folder, net, tmp_path):
    real = folder / "real.npy"

    def said(**files):
        for name, size in files.items():
            Image.new(
                "RGB" if isinstance(size, tuple) else "P", size if isinstance(size, tuple) else (size, size)
            ).save(tmp_path / f"{name}.png")
        with pytest.raises(UserError) as error:
            fid(tmp_path, real, net)
        assert "\n" not in str(error.value)
        return str(error.value).replace(str(tmp_path), "FOLDER")

    (tmp_path / ".hidden.png").write_bytes(b"")
    assert said().startswith("FOLDER: is a folder, without images; expected an npz with images (arr_0)")
    assert said(a=(8, 6)).startswith("FOLDER: the first image is 8x6 pixels; a folder's images have to be square, or")
    assert said(a=(8, 8), b=(9, 9)) == (  # no settings are here
        "FOLDER: b.png: is 9x9 pixels, not 8x8; --size N makes them one size"
    )
    assert (
        said(a=8, b=8) == "FOLDER: 2 of 2 images cannot be used: a.png, b.png are P, not RGB; --convert makes all RGB"
    )
    text = said(**{letter * 50: 8 for letter in "cdefgh"})
    assert len(text) < 300 - len(str(tmp_path))
    assert text.endswith("; --convert makes all RGB")  # how much of the names is left depends on the folder's
    for path in tmp_path.glob("[c-h]*.png"):
        path.unlink()
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:40])
    assert "b.png: is damaged" in (text := said(a=(8, 8)))
    assert "skip_broken" not in text
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    assert said() == "FOLDER: a.png cannot be read as an image; it is a PNG image"


def test_the_package_is_cheap_to_import():
    """params.yaml is read without torch, scipy and Pillow; the functions come when they are asked for."""
    code = "import sys, ipdiff.metrics, ipdiff.metrics.spec; print({'torch', 'scipy', 'PIL'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    assert {name: getattr(metrics, name).__name__ for name in metrics.__all__} == {
        name: name for name in ("fid", "frechet_distance", "kid", "save_statistics")
    }
    with pytest.raises(AttributeError, match="no attribute 'sfid'"):
        _ = metrics.sfid


@pytest.mark.filterwarnings("ignore:fewer images than features")
def test_images_of_mixed_modes_are_made_rgb_as_prepare_does(folder, net, tmp_path):
    (tmp_path / "mixed").mkdir()
    for number, mode in enumerate(("RGB", "L", "RGBA", "P")):
        noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).convert(mode).save(tmp_path / f"mixed/{number}.png")
    got = fid(tmp_path / "mixed", folder / "real.npy", net, threads=1, convert=True)
    source = Source("folder", 8, 3, raw=str(tmp_path / "mixed"), labels="none", modes="convert")
    (blocks,) = readers.read(source, [tmp_path / "mixed"], tmp_path, {})
    assert got == fid(blocks[0], folder / "real.npy", net, threads=1) | {"converted": "RGB"}
    grey = np.load(folder / "real.npy")[..., :1]
    assert Side.read(grey, "grey", convert=True).shape == [8, 8, 3]
    with pytest.raises(UserError, match=r"those of reference are \[8, 8, 1\]; --convert makes both RGB$"):
        fid(folder / "real.npy", grey, net, threads=1)
    with pytest.raises(UserError, match="1.png is L, not RGB; 2.png is RGBA, not RGB; .*; --convert makes all RGB$"):
        fid(tmp_path / "mixed", folder / "real.npy", net, threads=1)
    save_npz(tmp_path / "grey.npz", mu=np.zeros(2), sigma=np.eye(2), arr_0=grey)
    with pytest.raises(UserError, match="holds statistics of grey images; leave the conversion out"):
        Side.read(tmp_path / "grey.npz", "grey", convert=True)


def test_neither_side_is_read_where_the_other_is_missing(folder, net, monkeypatch):
    monkeypatch.setattr(Side, "read", None)
    for sides in ((folder / "drawn", "nowhere.npz"), ("nowhere.npz", folder / "drawn")):
        with pytest.raises(UserError, match="nowhere.npz is missing"):
            fid(*sides, net, threads=1)


# Tensors, sizes, functions, statistics, the cache


@pytest.mark.filterwarnings("ignore:fewer images than features")
def test_tensors_are_images_too(folder, net):
    drawn, real = np.load(folder / "drawn.npy"), np.load(folder / "real.npy")
    expected = fid(drawn, real, net, threads=1)
    assert fid(torch.from_numpy(drawn), torch.from_numpy(real), net, threads=1) == expected
    floats = torch.from_numpy(drawn).permute(0, 3, 1, 2).double() / 127.5 - 1  # as a network gives them
    assert fid(floats + 1e-9, real, net, threads=1) == expected


def centre_mean(x):
    """Features that know the image's place and colours."""
    assert x.dtype == torch.float32
    assert (x.ndim, x.shape[1]) == (4, 3)
    return torch.cat([x.mean((2, 3)), x[:, :, 0, 0]], 1)


def test_a_function_is_a_network(folder, tmp_path):
    drawn, real = np.load(folder / "drawn.npy"), np.load(folder / "real.npy")
    got = fid(drawn, real, centre_mean, threads=1)
    rows = [centre_mean(torch.from_numpy(x).permute(0, 3, 1, 2) / 255).double().numpy() for x in (drawn, real)]
    parts = [(x.mean(0), np.cov(x, rowvar=False)) for x in rows]
    assert got["fid"] == pytest.approx(metrics.frechet_distance(*parts[0], *parts[1]), rel=1e-4)
    assert got["features"].startswith("function ")
    assert got["features"].endswith("centre_mean")
    assert (got["features_digest"], got["dimensions"]) == (None, {"fid": 6})
    grey = fid(drawn[..., :1], real[..., :1], lambda x: x.mean((2, 3)).numpy(), threads=1)
    assert grey["fid"] > 0
    with pytest.raises(UserError, match=r"gives float32 \[20, 3, 8, 8\]; expected 20 rows of numbers \[n, width\]"):
        fid(drawn, real, lambda x: x, threads=1)
    with pytest.raises(UserError, match="no sfid: both need mu_s and sigma_s"):
        compare.compare(drawn, real, centre_mean, Compute(), ["sfid"])


def test_a_module_is_asked_in_evaluation_mode(folder):
    real = np.load(folder / "real.npy")
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(192, 4))
    assert fid(real, real, module, threads=1)["fid"] == pytest.approx(0, abs=1e-6)
    assert all(part.training for part in module.modules())


class Counting:
    """An extractor of one's own, with a digest."""

    name, digest, batch_size = "mean colour", "v1", 7
    seen = 0

    def __call__(self, images):
        type(self).seen += len(images)
        pool = images.reshape(len(images), -1, images.shape[3]).mean(1)
        return {"pool": pool.astype(np.float32), "pixel": images.reshape(len(images), -1) / np.float32(127.5) - 1}


@pytest.mark.parametrize("damage", ["none", "short", "bit", "other"])
def test_features_are_computed_once(folder, tmp_path, monkeypatch, damage):
    monkeypatch.setenv("IPDIFF_CACHE", str(tmp_path / "cache"))
    drawn, real = np.load(folder / "drawn.npy"), folder / "real.zip"
    Counting.seen = 0
    first = fid(drawn, real, Counting(), threads=1)
    assert Counting.seen == 40
    entries = sorted((tmp_path / "cache/features").iterdir())
    assert [path.suffix for path in entries] == [".npz", ".npz"]
    for path in entries:
        data = bytearray(path.read_bytes())
        if damage == "bit":
            data[len(data) // 2] ^= 1
        path.write_bytes({"short": data[:100], "other": b"no npz"}.get(damage, data))
    assert fid(str(folder / "drawn.npz"), real, Counting(), threads=1) == first  # another file of the same images
    assert Counting.seen == (40 if damage == "none" else 80)
    assert fid(drawn, real, Counting(), threads=1, cache=False) == first
    assert Counting.seen == (80 if damage == "none" else 120)
    before = Counting.seen
    assert kid(drawn, real, Counting(), threads=1)["kid"] != 0  # needs the pooled features, which were not kept
    assert Counting.seen == before + 40
    kid(drawn, real, Counting(), threads=1, subsets=5)
    fid(drawn, real, Counting(), threads=1)
    assert Counting.seen == before + 40
    monkeypatch.setattr(Counting, "digest", "v2")
    fid(drawn, real, Counting(), threads=1)
    assert Counting.seen == before + 80


def test_the_cache_is_where_the_system_keeps_them_and_may_be_nowhere(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("IPDIFF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg/ipdiff"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")  # the specification says: ignore it
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() in (tmp_path / ".cache/ipdiff", tmp_path / "Library/Caches/ipdiff")
    real = np.load(folder / "real.npy")
    (tmp_path / "file").write_text("a file where the directory should be")
    monkeypatch.setenv("IPDIFF_CACHE", str(tmp_path / "file"))
    assert fid(real, real, Counting(), threads=1)["n"] == 20
    monkeypatch.setenv("IPDIFF_CACHE", "")
    assert cache.folder() is None


@pytest.mark.filterwarnings("ignore:fewer images than features")
def test_images_of_any_size_are_made_one(folder, net, tmp_path):
    rng = np.random.default_rng(1)
    (tmp_path / "any").mkdir()
    for number, size in enumerate([(16, 16), (40, 21), (9, 30), (8, 8)]):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"any/{number}.png")
    got = fid(tmp_path / "any", folder / "real.npy", net, threads=1, size=8)
    source = Source("folder", 8, 3, raw=str(tmp_path / "any"), labels="none", preprocessing="center-crop")
    prepared = np.concatenate([images for images, _ in readers.read(source, [tmp_path / "any"], tmp_path, {})])
    assert got == fid(prepared, folder / "real.npy", net, threads=1) | {"resized": "center-crop to 8x8"}
    np.testing.assert_array_equal(prepared[3], np.asarray(Image.open(tmp_path / "any/3.png")))
    large = rng.integers(0, 256, (4, 20, 12, 1), dtype=np.uint8)
    np.savez(tmp_path / "large.npz", arr_0=large)
    small = Side.read(large, "large", 8).images
    assert small.shape == (4, 8, 8, 1)
    np.testing.assert_array_equal(small, Side.read(tmp_path / "large.npz", "large", 8).images)
    with pytest.raises(UserError, match="1.png is 21x40 pixels, not 16x16; .*--size N makes them one size"):
        fid(tmp_path / "any", folder / "real.npy", net, threads=1)
    with pytest.raises(UserError, match="size is 0; use 1 or more pixels"):
        fid(tmp_path / "any", folder / "real.npy", net, threads=1, size=0)


@pytest.mark.filterwarnings("ignore:fewer images than features")
def test_statistics_are_saved_and_read(folder, net, tmp_path, monkeypatch):
    save_statistics(folder / "real.zip", tmp_path / "real.npz", net, threads=1)
    with np.load(tmp_path / "real.npz") as file:
        assert {"mu", "sigma", "mu_s", "sigma_s", "mu_pixel", "sigma_pixel", "n", "image_shape", "features"} == {*file}
    drawn = np.load(folder / "drawn.npy")
    assert fid(drawn, tmp_path / "real.npz", net, threads=1) == fid(drawn, folder / "real.zip", net, threads=1)
    with pytest.raises(UserError, match="of different features: function .* and other inception "):
        save_statistics(folder / "real.zip", tmp_path / "own.npz", centre_mean, threads=1)
        fid(drawn, tmp_path / "own.npz", net, threads=1)
    with pytest.raises(UserError, match="real.npz: holds statistics already; give images"):
        save_statistics(tmp_path / "real.npz", tmp_path / "again.npz", net)
    with pytest.raises(UserError, match="nowhere/x.npz: cannot be written: No such file or directory"):
        save_statistics(drawn, "nowhere/x.npz", centre_mean, threads=1)
    assert not (tmp_path / "nowhere").exists()


def test_the_command_works_anywhere_and_keeps_what_it_computed(folder, tmp_path, monkeypatch, capsys):
    """In a directory that is no project: it resizes, saves the reference's statistics, and leaves nothing else."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("IPDIFF_CACHE", str(tmp_path / "cache"))
    options = ["--features", str(folder / "net.pt"), "--threads", "1", "--size", "6", "--json"]
    sides = [str(folder / "drawn"), "--reference", str(folder / "real.zip"), "--metrics", "fid,sfid,kid"]
    assert cli.main(["evaluate", *sides, *options, "--save-statistics", "real.npz"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["resized"], first["n"], first["features"]) == ("center-crop to 6x6", 20, "other inception")
    monkeypatch.setattr(InceptionFeatures, "__call__", lambda *_: pytest.fail("features were computed again"))
    assert cli.main(["evaluate", *sides, *options]) == 0
    assert json.loads(capsys.readouterr().out) == first
    sides = [str(folder / "drawn"), "--reference", "real.npz", "--metrics", "fid,sfid"]
    assert cli.main(["evaluate", *sides, *options]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {name: again[name] for name in ("fid", "sfid")} == {name: first[name] for name in ("fid", "sfid")}
    assert [path.name for path in Path.cwd().iterdir()] == ["real.npz"]
    for wrong in (["--size", "6"], ["--no-cache"], ["--save-statistics", "x.npz"]):
        assert cli.main(["evaluate", "--dataset", "digits", *wrong]) == 2
        assert f"{wrong[0]} goes with a file of samples" in capsys.readouterr().err
