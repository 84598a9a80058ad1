"""What a person may write for a path, and the digests of raw files that are watched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from unit import params_factory

from ipdiff.errors import ConfigError, UserError
from ipdiff.pipeline import config, grid
from ipdiff.pipeline.engines import sync
from ipdiff.pipeline.engines.snakemake_records import params_text
from ipdiff.pipeline.grid import selection
from ipdiff.pipeline.store import watched
from ipdiff.pipeline.store.artifact import file_digest


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with another name, by a link."""
    root = tmp_path / "project"
    root.mkdir()
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(root)
    return root


SPELLINGS = (
    "raw/x", "./raw/x", "raw//x", "raw/x/", "raw/./x", "a/../raw/x", "../project/raw/x", "{root}/raw/x",
    "{root}//raw/x/", "{link}/raw/x",
)  # fmt: skip


def spelt(spelling: str, project: Path) -> str:
    return spelling.format(root=project, link=project.parent / "link")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_path_is_one_path(spelling: str, project: Path) -> None:
    assert config.project_path(spelt(spelling, project)) == "raw/x"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_cell_reads_the_plain_path(spelling: str, project: Path) -> None:
    raw = params_factory.put(params_factory.small(), "datasets.photos.source.raw", spelt(spelling, project))
    params_factory.write(project, raw)
    known = grid.load()
    assert known.cell("prepare", dataset="photos").inputs == ("raw/x",)


def test_paths_elsewhere_keep_their_kind(project: Path) -> None:
    assert config.project_path("../shared//x/") == "../shared/x"
    assert config.project_path("/shared//y/../x/") == "/shared/x"
    assert config.project_path("..photos") == "..photos"


@pytest.mark.parametrize("key", ["datasets.photos.source.raw", "datasets.tiny.inception"])
@pytest.mark.parametrize("raw", ["", ".", "./", "..", "../..", "/", "raw/..", "{root}"])
def test_a_path_that_holds_the_project_is_refused(raw: str, key: str, project: Path) -> None:
    value = raw.format(root=project)
    parameters = params_factory.put(params_factory.small(), key, {"raw": value} if "inception" in key else value)
    with pytest.raises(ConfigError, match=r"raw: '.*' holds the project itself; name a file or a directory of its own"):
        config.load(params_factory.write(project, parameters))


@pytest.mark.parametrize(
    "spelling", ["data/tiny", "./data/tiny", "data/tiny/", "{root}/data/tiny/", "{link}/data//tiny"]
)
def test_a_target_may_be_spelt_in_any_way(spelling: str, project: Path) -> None:
    params_factory.write(project, params_factory.small())
    known = grid.load()
    found = selection.select(known, [spelt(spelling, project)], "small")
    assert list(found) == ["data/tiny/images.npy", "data/tiny/labels.npy", "data/tiny/recipe.json"]
    (file,) = set(selection.select(known, [f"{spelt(spelling, project)}/images.npy"], "small")) - {
        "data/tiny/recipe.json"
    }
    assert file == "data/tiny/images.npy"


@pytest.mark.parametrize("root", [".", "./", "{root}"])
def test_the_root_is_a_folder_of_everything(root: str, project: Path) -> None:
    params_factory.write(project, params_factory.small())
    known = grid.load()
    assert selection.select(known, [root.format(root=project)], "small") == selection.select(known, [], "small")


def old(path: Path, seconds: float) -> None:
    os.utime(path, (seconds, seconds))


def test_what_is_watched_has_the_digest_of_its_bytes(project: Path) -> None:
    folder = project / "photos"
    (folder / "a").mkdir(parents=True)
    (folder / "a/x.png").write_bytes(b"1")
    (project / "photos.zip").write_bytes(b"2")
    for _ in range(2):
        assert watched.digest("photos") == file_digest(folder)
        assert watched.digest("photos.zip") == file_digest(project / "photos.zip")
        (folder / "a/x.png").write_bytes(b"3")  # the same size and, on a coarse clock, the same time
        (project / "photos.zip").write_bytes(b"4")


def test_it_is_remembered_only_when_it_is_old_enough_to_be_told_from_a_later_one(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "photos.zip").write_bytes(b"2")
    watched.digest("photos.zip")
    assert not watched.MEMORY.exists()
    monkeypatch.setattr(watched, "RACY_NS", -(10**12))
    digest = watched.digest("photos.zip")
    assert json.loads(watched.MEMORY.read_text())["photos.zip"]["digest"] == digest
    watched.MEMORY.write_text(watched.MEMORY.read_text().replace(digest, "remembered"))
    assert watched.digest("photos.zip") == "remembered"
    (project / "photos.zip").write_bytes(b"22")
    assert watched.digest("photos.zip") == file_digest(project / "photos.zip")


@pytest.mark.parametrize("text", ["", "[]", '{"photos.zip": 1}', "{", '{"photos.zip": {"stamp": 1}}'])
def test_a_damaged_memory_is_none(text: str, project: Path) -> None:
    (project / "photos.zip").write_bytes(b"2")
    watched.MEMORY.parent.mkdir()
    watched.MEMORY.write_text(text)
    assert watched.digest("photos.zip") == file_digest(project / "photos.zip")


@pytest.mark.parametrize("digest", [watched.digest, lambda path: file_digest(Path(path))])
@pytest.mark.parametrize("place", [lambda path: path.symlink_to("gone.png"), os.mkfifo], ids=["link", "pipe"])
def test_what_cannot_be_read_is_one_line(project: Path, place: Callable, digest: Callable) -> None:
    (project / "photos").mkdir()
    place(project / "photos/x.png")
    with pytest.raises(UserError, match=r"^photos/x.png: a link to nothing, or no plain file; DVC cannot record it"):
        digest("photos")


def test_snakemake_gets_the_digest_of_a_folder_and_not_that_of_a_file(project: Path) -> None:
    raw = params_factory.put(params_factory.small(), "datasets.photos.source.raw", "photos")
    params_factory.write(project, raw)
    known = grid.load()
    cell = known.cell("prepare", dataset="photos")
    (project / "photos").touch()
    assert "photos" not in json.loads(params_text(cell, known))
    (project / "photos").unlink()
    (project / "photos").mkdir()
    assert json.loads(params_text(cell, known))["photos"] == file_digest(project / "photos")


def test_why_nothing_can_be_recorded_is_said_with_what_to_do(project: Path) -> None:
    assert sync.obstacle() == "there is no .dvc here: run this in the project's root, or git init and dvc init"
    (project / ".dvc").mkdir()
    assert "DVC needs a git repository: git init" in (sync.obstacle() or "")
    assert not sync.unrecorded()
    (project / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    assert sync.obstacle() is None
    (project / ".dvc/config").write_text("[core\n")
    assert "DVC" in (sync.obstacle() or "")
