"""A project of its own for a test: the files git tracks in a temporary directory, under git, without data.

The mini study is made once by each engine, whatever the number of pytest's workers; a test that changes something
gets a copy of that.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from workflow.engines import MINI, run

ROOT = Path(__file__).parents[2]
LEFT_OUT = ("tests/", "published/store/")


def make_project(folder: Path) -> Path:
    """Copy the files that git tracks, and new modules of the package; the copy imports the package from there.

    Nothing else that lies about in the working tree comes along, and no dvc.lock: the copy has no data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tracked = run(ROOT, "git", "ls-files", "-z").stdout
    new = run(ROOT, "git", "ls-files", "-z", "--others", "--exclude-standard", "ipdiff").stdout
    for name in filter(None, (tracked + new).split("\0")):
        if (ROOT / name).is_file() and not name.startswith(LEFT_OUT) and not name.endswith("dvc.lock"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    run(folder, "git", "init", "--quiet")
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "--quiet", "-m", "start")
    return folder


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first of pytest's workers to ask for it makes, while the others wait."""
    base = factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, made = root / name, root / f"{name}.made"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            make(folder)
            made.touch()
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A fresh project without data."""
    return make_project(tmp_path)


@pytest.fixture(scope="session")
def by_snakemake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini study as Snakemake made it. To be read only."""
    return once(
        tmp_path_factory, "snakemake", lambda folder: run(make_project(folder), "snakemake", "--cores", "2", "mini")
    )


@pytest.fixture(scope="session")
def by_dvc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini study as DVC made it. To be read only."""
    command = ("ipdiff", "warm", "dvc", "repro", "--quiet", MINI)
    return once(tmp_path_factory, "dvc", lambda folder: run(make_project(folder), *command))


def copied_project(made: Path, to: Path) -> Path:
    """A copy of a project, with its times and links; without DVC's own memory, which another test may be writing."""

    def left_out(folder: str, names: list[str]) -> list[str]:
        return ["tmp"] if Path(folder) == made / ".dvc" and "tmp" in names else []

    return Path(shutil.copytree(made, to, symlinks=True, ignore=left_out))


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    """Copy a project, to change it."""

    def copied(made: Path) -> Path:
        return copied_project(made, tmp_path / made.name)

    return copied


@pytest.fixture(scope="session")
def origin(by_snakemake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose mini study is committed to git and pushed to its default remote, the directory `store`."""
    return once(tmp_path_factory, "published", lambda folder: publish(by_snakemake, folder)) / "origin"


def publish(made: Path, folder: Path, lock: str = "studies/mini/dvc.lock") -> None:
    """Commit and push a copy of a project: what its `lock` records."""
    project, store = folder / "origin", folder / "store"
    copied_project(made, project)
    run(project, "dvc", "remote", "add", "--default", "store", str(store))
    run(project, "git", "add", lock, ".dvc/config")
    run(project, "git", "commit", "--quiet", "-m", "the study")
    run(project, "dvc", "push", "--quiet", "--run-cache")


@pytest.fixture
def clone(origin: Path, tmp_path: Path) -> Path:
    """A clone of the published project, without data; its cache has copies, so that a test can damage one of two."""
    project = tmp_path / "clone"
    run(tmp_path, "git", "clone", "--quiet", str(origin), str(project))
    run(project, "dvc", "config", "--local", "cache.type", "copy")
    return project
