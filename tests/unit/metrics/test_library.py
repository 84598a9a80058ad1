"""`ipdiff.metrics.fid` and `kid` in somebody's own code: no project, any form of images, the command's figures."""

import hashlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from inception import write_inception
from PIL import Image

from ipdiff import cli, metrics
from ipdiff.data.arrays import save_npz
from ipdiff.device.spec import Compute
from ipdiff.errors import UserError
from ipdiff.metrics import compare, fid, kid
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
    published = hashlib.sha256((folder / "net.pt").read_bytes()).hexdigest()
    monkeypatch.setattr(compare, "INCEPTION_SHA256", published)
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
        ([[0]], "samples: found list; expected images as a numpy array, or a path"),
        (torch.zeros(4, 8, 8, 3, dtype=torch.uint8), "samples: found Tensor; expected images as a numpy array, or a"),
        (None, "samples: found NoneType; expected images as a numpy array, or a path"),
        (b"drawn.npy", "samples: found bytes; expected images as a numpy array, or a path"),
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
        ({"features": None}, "features is None; use inception, a path of a network, or a TorchScript record"),
        ({"features": "incepton"}, "features 'incepton': no such file; use inception, or a path of a network"),
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
    assert said(a=(8, 6)).startswith("FOLDER: a.png is 8x6 pixels; a folder's images have to be square")
    assert said(a=(8, 8), b=(9, 9)) == "FOLDER: b.png: is 9x9 pixels, not 8x8 (image_size)"  # no settings are here
    assert said(a=8, b=8) == "FOLDER: 2 of 2 images cannot be used: a.png, b.png is P, not RGB (channels: 3)"
    text = said(**{letter * 50: 8 for letter in "cdefgh"})
    assert len(text) < 300 - len(str(tmp_path))
    assert text.endswith("is P, not RGB (channels: 3); and 4 more")
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
        name: name for name in ("fid", "frechet_distance", "kid")
    }
    with pytest.raises(AttributeError, match="no attribute 'sfid'"):
        _ = metrics.sfid
