"""A project of its own for a test: the working tree's files in a temporary directory, under git, without data."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "DVC_NO_ANALYTICS": "1",
    "GIT_AUTHOR_NAME": "test", "GIT_AUTHOR_EMAIL": "test@example.org",
    "GIT_COMMITTER_NAME": "test", "GIT_COMMITTER_EMAIL": "test@example.org",
}  # fmt: skip


def run(project: Path, *command: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the project; fail with its output if it ends with another exit code."""
    done = subprocess.run(command, cwd=project, env=ENVIRONMENT | environment, capture_output=True, text=True)
    assert done.returncode == code, f"{command}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done


def make_project(folder: Path) -> Path:
    """Copy the files git knows or would add; the package is imported from the copy."""
    listed = run(ROOT, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists() and not name.startswith("tests/"):
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
    """A project in which Snakemake has run the mini study."""
    project = make_project(tmp_path_factory.mktemp("snakemake"))
    run(project, "snakemake", "--cores", "2", "mini")
    return project


@pytest.fixture(scope="session")
def by_dvc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which DVC has run the mini study."""
    project = make_project(tmp_path_factory.mktemp("dvc"))
    run(project, "dvc", "repro", "--quiet", "workflow/mini/dvc.yaml")
    return project


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
