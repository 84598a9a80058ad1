"""Snakemake's own configuration: keys that mean something, and the root's params.yaml that one of them names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ipdiff.errors import UserError
from ipdiff.pipeline.engines import settings


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The params.yaml that comes with the Snakefile, beside an empty project."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = tmp_path / "shipped.yaml"
    path.write_text("title: digits\n")
    return path


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"benchmrk": True}, "'benchmrk'; did you mean 'benchmark'? known: params, benchmark; what decides numbers"),
        ({"benchmark": 1}, "benchmark: found 1; expected true or false"),
        ({"benchmark": None}, "benchmark: found None; expected true or false"),
        ({"params": ["params.yaml"]}, "params: found ['params.yaml']; expected the path"),
        ({"params": ""}, "params: found ''; expected the path"),
    ],
)
def test_what_means_nothing_is_refused_and_nothing_written(given: dict[str, Any], said: str, shipped: Path) -> None:
    with pytest.raises(UserError) as caught:
        settings.read(given, lambda: str(shipped))
    assert said in str(caught.value)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(("value", "means"), [("true", True), ("False", False), (True, True), (False, False)])
def test_the_command_lines_words_are_read(value: object, means: bool, shipped: Path) -> None:
    assert settings.read({"benchmark": value}, lambda: str(shipped)) is means


def test_an_empty_project_gets_the_study_that_was_shipped(shipped: Path) -> None:
    settings.read({"params": "config/params.yaml"}, lambda: str(shipped))
    assert Path("config/params.yaml").read_bytes() == shipped.read_bytes()
    assert Path("params.yaml").is_symlink()
    assert Path("params.yaml").samefile("config/params.yaml")
    settings.read({"params": "config/params.yaml"}, lambda: str(shipped))


def test_what_is_there_is_left_alone(shipped: Path) -> None:
    Path("params.yaml").write_text("title: mine\n")
    settings.read({}, lambda: str(shipped))
    assert Path("params.yaml").read_text() == "title: mine\n"
    Path("other.yaml").write_text("title: another\n")
    for name, said in (("other.yaml", "is not the project's params.yaml"), ("none.yaml", "there is no none.yaml")):
        with pytest.raises(UserError, match=said):
            settings.read({"params": name}, lambda: str(shipped))


def test_a_project_with_studies_in_folders_gets_no_other_one(shipped: Path) -> None:
    Path("studies/mine").mkdir(parents=True)
    Path("studies/mine/params.yaml").touch()
    settings.read({}, lambda: str(shipped))
    assert not Path("params.yaml").exists()
