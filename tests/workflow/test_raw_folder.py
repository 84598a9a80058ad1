"""A data set that is a directory of images: what both engines know of it, however it is written and changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from workflow.conftest import make_project, once
from workflow.engines import MINI, changed, planned, run, stale
from workflow.test_stale import edit, replacing

from ipdiff.pipeline.engines import dvc_files
from ipdiff.pipeline.store.artifact import file_digest

pytestmark = pytest.mark.workflow

PARAMS = "studies/mini/params.yaml"
SOURCE = "reader: digits\n      image_size: 8\n      channels: 1\n      limit: 256\n"
FOLDER = "reader: folder\n      raw: {raw}\n      image_size: 8\n      channels: 1\n"
CELL = "data/digits_mini"
MADE = f"{CELL}/images.npy"
STAGE = f"{MINI}:prepare_raw@digits_mini"


def photos(folder: Path) -> None:
    """Digits as files, a folder a class."""
    data = load_digits()
    for index in range(256):
        place = folder / str(data.target[index])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((data.images[index] * 15).astype("uint8")).save(place / f"{index:03}.png", compress_level=0)
    (folder / "notes.txt").write_text("scanned in 1998\n")
    (folder / "0/linked.txt").symlink_to("../notes.txt")
    (folder / "nothing").mkdir()


def reading(project: Path, raw: str) -> None:
    """Make the mini study read a folder."""
    edit(project / PARAMS, replacing(SOURCE, FOLDER.format(raw=raw)))
    run(project, "ipdiff", "grid", "--write")


def made(folder: Path) -> None:
    project = make_project(folder)
    photos(project / "raw/photos")
    reading(project, "raw/photos")
    run(project, "snakemake", "--cores", "2", MADE)


@pytest.fixture(scope="session")
def of_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of a directory, as Snakemake made them. To be read only."""
    return once(tmp_path_factory, "folder", made)


def due(project: Path) -> list[bool]:
    """Whether the images are to be made again: what the grid predicts, Snakemake and DVC say."""
    return [CELL in stale(project), CELL in planned(project, MADE), CELL in changed(project)]


NOTHING, AGAIN = [False] * 3, [True] * 3


def test_what_is_made_of_a_folder_is_recorded(of_folder: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(of_folder)
    assert due(project) == NOTHING
    lock = yaml.safe_load((project / dvc_files.lock_of("mini")).read_text())
    recorded = {dep["path"]: dep["md5"] for dep in lock["stages"][STAGE.partition(":")[2]]["deps"]}
    assert recorded["raw/photos"] == file_digest(project / "raw/photos")
    assert "0 problems" in run(project, "ipdiff", "verify", CELL).stdout
    assert "Running stage" not in run(project, "dvc", "repro", "--single-item", STAGE).stdout


def add(folder: Path) -> None:
    (folder / "3/new.png").write_bytes((folder / "0/000.png").read_bytes())


def remove(folder: Path) -> None:
    (folder / "0/000.png").unlink()


def change(folder: Path) -> None:
    """Other pixels in a file of the same size; the folders' times do not change. Twice is none."""
    path = folder / "1/001.png"
    size = path.stat().st_size
    with path.open("r+b") as stream:
        image = ImageOps.invert(Image.open(stream))
        stream.seek(0)
        image.save(stream, "PNG", compress_level=0)
    assert path.stat().st_size == size


def rename(folder: Path) -> None:
    (folder / "2/002.png").rename(folder / "2/zzz.png")


def test_an_edit_of_the_folder_and_its_taking_back_are_seen_by_both(
    of_folder: Path, copy: Callable[[Path], Path]
) -> None:
    project = copy(of_folder)
    folder = project / "raw/photos"
    change(folder)
    assert due(project) == AGAIN
    change(folder)
    assert due(project) == NOTHING
    add(folder)
    assert due(project) == AGAIN
    (folder / "3/new.png").unlink()
    assert due(project) == NOTHING


@pytest.mark.slow
@pytest.mark.parametrize("how", [add, remove, rename])
def test_a_changed_folder_is_read_anew_by_one_and_the_other_is_content(
    of_folder: Path, copy: Callable[[Path], Path], how: Callable[[Path], None]
) -> None:
    project = copy(of_folder)
    how(project / "raw/photos")
    assert due(project) == AGAIN
    run(project, "dvc", "repro", STAGE)
    assert due(project) == NOTHING
    change(project / "raw/photos")
    assert due(project) == AGAIN
    run(project, "snakemake", "--cores", "2", MADE)
    assert due(project) == NOTHING


def spelt(project: Path, spelling: str) -> None:
    edit(project / PARAMS, lambda text: text.replace("raw: raw/photos", f"raw: {spelling}"))
    run(project, "ipdiff", "grid", "--write")


def test_every_spelling_of_a_path_is_the_same(of_folder: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(of_folder)
    before = (project / MINI).read_text()
    spelt(project, "./raw//../raw/photos/")
    assert (project / MINI).read_text() == before
    run(project, "snakemake", "--cores", "2", MADE)  # the value of a key is another text
    assert due(project) == NOTHING


@pytest.mark.slow
@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])
def test_a_folder_outside_the_project(project: Path, tmp_path_factory: pytest.TempPathFactory, absolute: bool) -> None:
    outside = tmp_path_factory.mktemp("outside") / "photos"
    photos(outside)
    reading(project, str(outside if absolute else os.path.relpath(outside, project)))
    run(project, "snakemake", "--cores", "2", MADE)
    assert due(project) == NOTHING
    change(outside)
    assert due(project) == AGAIN


def test_a_name_that_is_not_utf8_is_one_line_before_anything_is_made(project: Path) -> None:
    photos(project / "raw/photos")
    (project / "raw/photos/0" / os.fsdecode(b"scan\xe9.png")).write_bytes(b"")
    reading(project, "raw/photos")
    for command in (["snakemake", "--cores", "2", "mini"], ["ipdiff", "prepare", "--dataset", "digits_mini"]):
        said = run(project, *command, code=2).stderr
        assert "Traceback" not in said
        (line,) = [line for line in said.splitlines() if "scan" in line]
        assert line.endswith("the name is not UTF-8, so DVC cannot record it; rename the file")
    assert not (project / "data").exists()


@pytest.mark.slow
def test_what_dvcignore_leaves_out_is_said(project: Path) -> None:
    photos(project / "raw/photos")
    (project / ".dvcignore").write_text("002.png\n")
    reading(project, "raw/photos")
    run(project, "ipdiff", "prepare", "--dataset", "digits_mini")
    said = run(project, "ipdiff", "sync", code=3).stderr
    assert ".dvcignore leaves out some of its files" in said
    assert "prepare_raw@" not in (project / dvc_files.lock_of("mini")).read_text()
