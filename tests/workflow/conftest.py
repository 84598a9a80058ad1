"""A project of its own for a test: the working tree's files in a temporary directory, under git, without data.

The mini study is made once by each engine; a test that changes something gets a copy of that.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from workflow.engines import MINI, run

ROOT = Path(__file__).parents[2]


def make_project(folder: Path) -> Path:
    """Copy the files git knows or would add; what is run in the copy imports the package from there.

    A dvc.lock stays behind: the copy has no data, whatever was made in the project itself.
    """
    listed = run(ROOT, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists() and not name.startswith("tests/") and not name.endswith("dvc.lock"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    run(folder, "git", "init", "--quiet")
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "--quiet", "-m", "start")
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A fresh project without data."""
    return make_project(tmp_path)


@pytest.fixture(scope="session")
def by_snakemake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini study as Snakemake made it. To be read only."""
    made = make_project(tmp_path_factory.mktemp("snakemake"))
    run(made, "snakemake", "--cores", "2", "mini")
    return made


@pytest.fixture(scope="session")
def by_dvc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini study as DVC made it. To be read only."""
    made = make_project(tmp_path_factory.mktemp("dvc"))
    run(made, "dvc", "repro", "--quiet", MINI)
    return made


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    """Copy a project, with its times and links, to change it."""

    def copied(made: Path) -> Path:
        return Path(shutil.copytree(made, tmp_path / made.name, symlinks=True))

    return copied


@pytest.fixture(scope="session")
def origin(by_snakemake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose mini study is committed to git and pushed to its default remote, the directory `store`."""
    folder = tmp_path_factory.mktemp("published")
    project, store = folder / "origin", folder / "store"
    shutil.copytree(by_snakemake, project, symlinks=True)
    run(project, "dvc", "remote", "add", "--default", "store", str(store))
    run(project, "git", "add", "workflow/mini/dvc.lock", ".dvc/config")
    run(project, "git", "commit", "--quiet", "-m", "the mini study")
    run(project, "dvc", "push", "--quiet", "--run-cache")
    return project


@pytest.fixture
def clone(origin: Path, tmp_path: Path) -> Path:
    """A clone of the published project, without data."""
    project = tmp_path / "clone"
    run(tmp_path, "git", "clone", "--quiet", str(origin), str(project))
    return project
