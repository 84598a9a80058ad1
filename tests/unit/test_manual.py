"""The front page and the manual: complete, linked, fresh, and built without a warning."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "config/README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)#?[^)\s]*\)")


def load(name: str) -> ModuleType:
    """A script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def listed(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        for where in entry.values():
            yield from [where] if isinstance(where, str) else listed(where)


NAV = list(listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))


def links(page: Path) -> list[str]:
    """The files that a page links to, as it spells them."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [path for path in LINK.findall(text) if path]


def test_the_front_page_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere_on_github(page: Path) -> None:
    assert [path for path in links(page) if not (page.parent / path).exists()] == []


def test_the_list_of_pages_has_every_page_of_the_manual_once() -> None:
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - {"docs/README.md"}
    front = [(ROOT / "docs" / path).resolve().relative_to(ROOT).as_posix() for path in links(ROOT / "docs/README.md")]
    assert sorted(front) == sorted(set(front))
    assert pages <= set(front)
    assert len(front) == len(NAV) - 1 == len(set(NAV)) - 1  # and README.md itself


def test_the_page_of_the_command_line_is_fresh() -> None:
    script = load("command_line")
    assert script.PAGE.read_text() == script.page(), "make graph"


def build(project: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(command, cwd=project, capture_output=True, text=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """This project by links, with pages of its own."""
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    project = tmp_path / "project"
    (project / "docs").mkdir(parents=True)
    for name in (
        "ipdiff",
        "config",
        "benchmarks",
        "published",
        "workflow",
        "examples",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    ):
        (project / name).symlink_to(ROOT / name)
    for path in (ROOT / "mkdocs.yml", *(path for path in (ROOT / "docs").iterdir() if path.is_file())):
        (project / path.relative_to(ROOT)).write_bytes(path.read_bytes())
    return project


def test_the_manual_is_built_without_a_warning(project: Path, tmp_path: Path) -> None:
    done = build(project, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    built = {path.stem for path in (tmp_path / "site").glob("*.html")}
    assert {"index" if name == "README.md" else name.removesuffix(".md") for name in NAV} <= built
    assert "perturbation strength of Eq. 6" in (tmp_path / "site/api.html").read_text()
    assert 'href="project/ipdiff/rng.py"' in (tmp_path / "site/architecture.html").read_text()
    assert 'href="params.html#ramp"' in (tmp_path / "site/method.html").read_text()


def test_a_page_that_is_wrong_is_told(project: Path, tmp_path: Path) -> None:
    wrong = "[a](nowhere.md) [b](../ipdiff/nothing.py) [c](metrics.md#nothing) [d](../config/README.md#nothing)\n"
    with (project / "docs/ddim.md").open("a") as page:
        page.write(f"\n{wrong}")
    (project / "docs/unlisted.md").write_text("# Nobody's page\n")
    done = build(project, tmp_path / "site")
    assert done.returncode != 0
    for name in ("nowhere.md", "nothing.py", "metrics.md#nothing", "params.md#nothing", "unlisted.md"):
        assert name in done.stderr
