"""The verb `prepare` on published files: what both engines see, and that nothing is left of a failure."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from archives import write_celeba, write_zip
from PIL import Image
from unit.params_factory import drop, put, small, write

from ipdiff import cli
from ipdiff.data.formats.decode import BLOCK
from ipdiff.errors import UserError
from ipdiff.pipeline import config, grid
from ipdiff.work import recipes


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """Parameters of a data set of one published file, in a project of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IPDIFF_RAW", str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir()
    raw = put(small(), "downloads", {"faces.zip": {"how": "Ask for it."}})
    put(raw, "datasets.photos.source.reader", "celeba")
    put(raw, "datasets.photos.source.archives", {"faces.zip": None})
    write(tmp_path, drop(raw, "datasets.photos.source.raw"))
    return raw


def test_a_published_file_is_no_input_but_its_digest_is_a_parameter(faces):
    def values():
        known = grid.load()
        return known.param_values(known.cell("prepare", dataset="photos"))

    assert grid.load().cell("prepare", dataset="photos").inputs == ()
    before = values()
    write(Path(), put(faces, "downloads", {"faces.zip": {"url": "https://a/faces.zip", "size": 5}}))
    assert values() == before
    write(Path(), put(faces, "datasets.photos.source.archives", {"faces.zip": "0" * 64}))
    assert values() != before


def prepare() -> int:
    return cli.main(["prepare", "--dataset", "photos"])


def test_prepare_publishes(faces, capsys):
    write_celeba(Path("shared/faces.zip"), 3)
    assert prepare() == 0
    assert np.load("data/photos/images.npy").shape == (3, 8, 8, 3)
    assert sorted(os.listdir("data/photos")) == ["images.npy", "labels.npy", "recipe.json"]
    assert os.listdir("work/staging") == []


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Parameters of a data set of a user's own images in raw/photos, in a project of their own."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, put(small(), "datasets.photos.source", {**OWN, "raw": "raw/photos"}))
    Path("raw/photos/a").mkdir(parents=True)
    Path("raw/photos/b").mkdir()
    return Path("raw/photos")


OWN = {"reader": "folder", "image_size": 8, "channels": 3, "modes": "convert", "skip_broken": True}


def test_what_was_read_of_a_users_own_images_is_said_and_recorded(photos, capsys):
    for i, mode in enumerate(["RGB", "RGBA", "L"]):
        Image.new(mode, (8, 8)).save(photos / "ab"[i % 2] / f"{i}.png")
    (photos / "b" / "torn.jpg").write_bytes(b"")
    (photos / "notes.txt").write_text("text")
    assert prepare() == 0
    assert capsys.readouterr().err == (
        "ipdiff: raw/photos: 3 images read (1 L, 1 RGBA converted); passed over: 1 .txt; broken and skipped: "
        "b/torn.jpg; labels: a, b\n"
    )
    assert recipes.read(Path("data/photos/recipe.json"))["read"] == {
        "images": 3,
        "converted": {"L": 1, "RGBA": 1},
        "passed_over": {".txt": 1},
        "broken": ["b/torn.jpg"],
        "labels": ["a", "b"],
    }


def test_a_name_that_is_not_utf8_is_one_line(photos, capsys):
    Image.new("RGB", (8, 8)).save(photos / "a" / "0.png")
    with open(os.fsencode(photos) + b"/r\xe9.txt", "wb"):
        pass
    assert prepare() == 2
    said = capsys.readouterr().err
    assert said.startswith("ipdiff: raw/photos/r\\udce9.txt: the name is not UTF-8")
    assert said.count("\n") == 1


@pytest.mark.parametrize("kind", ["missing", "page", "damaged"])
def test_a_failure_leaves_nothing(faces, capsys, kind):
    path = Path("shared/faces.zip")
    if kind == "page":
        path.write_text("<html>")
    if kind == "damaged":
        good = write_celeba(path, 1) * BLOCK  # the first block is written when the second is refused
        write_zip(path, [(f"{i:06d}.jpg", data) for i, data in enumerate([*good, b"no image"])], zipfile.ZIP_STORED)
    assert prepare() == 2
    said = capsys.readouterr().err
    assert "shared/faces.zip" in said
    assert said.count("\n") == 1
    assert ("000256.jpg: is a text that begins with" in said) == (kind == "damaged")
    assert not Path("data").exists()
    assert not Path("work/staging").exists() or os.listdir("work/staging") == []


def test_an_unknown_file_is_an_error_of_the_parameters(faces):
    write(Path(), put(faces, "downloads", {}))
    with pytest.raises(UserError, match="how is faces.zip got"):
        config.Studies().load("small")
