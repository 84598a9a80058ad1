"""docs/extending.md: its examples, applied to a copy of the package and run; and that a new row makes nothing stale."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from unit import params_factory
from workflow.conftest import ROOT, make_project, once
from workflow.engines import changed, planned, run, stale

pytestmark = pytest.mark.workflow

PAGE = ROOT / "docs/extending.md"
FENCE = re.compile(r"(?:^(?P<where>[^\n]+):\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
PLACE = re.compile(
    r"New file `(?P<new>[^`]+)`|In `(?P<file>[^`]+)`, (?:(?P<how>under|above) `(?P<line>[^`]+)`|at its end)"
)
STATED = re.compile(r"\*\*(\d) files of the package|^(No) file of the package", re.M)
CODES = """
import json, sys
from ipdiff.pipeline import grid
known = grid.load()
print(json.dumps({cell.directory: cell.code for study in sys.argv[1:] for cell in known.study(study)}))
"""


@dataclass
class Example:
    """What a section of the page says.

    Attributes:
        stated: how many files of the package it says it touches.
        edits: where lines go (the match of a line before a fence), and the lines.
        params: what is added to the study's params.yaml.
        commands: what is run then, in this order.
    """

    stated: int
    edits: list[tuple[re.Match[str], str]] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)

    def apply(self, project: Path) -> None:
        """Edit the files of a project."""
        for place, text in self.edits:
            path = project / (place["new"] or place["file"])
            if place["new"]:
                assert not path.exists(), path
                path.write_text(text)
                continue
            lines = path.read_text().splitlines(keepends=True)
            if not place["how"]:
                path.write_text("".join(lines) + "\n\n" + text)
                continue
            found = [n for n, line in enumerate(lines) if line.rstrip("\n") == place["line"]]
            assert len(found) == 1, f"{path} has {len(found)} lines {place['line']!r}"
            at = found[0]
            if place["how"] == "under":
                lines.insert(at + 1, text)
            else:
                while lines[at - 1].startswith("@"):
                    at -= 1
                lines.insert(at, text + "\n\n")
            path.write_text("".join(lines))


def read(page: str) -> dict[str, Example]:
    """The examples by the title of their section."""
    examples: dict[str, Example] = {}
    for section in page.split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        stated = STATED.search(text)
        assert stated, f"{title}: it does not say how many files it touches"
        example = examples[title] = Example(int(stated[1] or 0))
        for fence in FENCE.finditer(text):
            where, language = fence["where"] or "", fence["language"]
            if language == "yaml":
                assert where == "In params.yaml", where
                merge(example.params, yaml.safe_load(fence["text"]))
            elif language == "sh":
                example.commands += fence["text"].splitlines()
            else:
                place = PLACE.fullmatch(where)
                assert place, f"{title}: not known where these lines go: {where}"
                example.edits.append((place, fence["text"]))
    return examples


def merge(into: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Add keys to nested mappings; returns the first."""
    for key, value in more.items():
        into[key] = merge(into.get(key, {}), value) if isinstance(value, dict) else value
    return into


EXAMPLES = read(PAGE.read_text())


def small(*additions: dict[str, Any]) -> dict[str, Any]:
    """The study of the page; of a new data set, keys that an addition does not have are those of `tiny`."""
    raw = params_factory.small()
    raw["tables"] = {"base": {**raw["tables"]["table3"], "metrics": ["fid"]}}
    raw["datasets"] = {"tiny": raw["datasets"]["tiny"]}
    raw["models"] = {name: raw["models"][name] for name in ("adm", "adm-ip")}
    raw |= {"figures": {}, "seeds": {"default": [0]}}
    for addition in additions:
        for name in addition.get("datasets", {}):
            if name not in raw["datasets"]:
                known = json.loads(json.dumps(raw["datasets"]["tiny"]))
                raw["datasets"][name] = known | ({"source": {}} if "source" in addition["datasets"][name] else {})
        merge(raw, addition)
    return raw


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose small study is made, and known to both engines. To be read only."""

    def make(folder: Path) -> None:
        make_project(folder)
        params_factory.write(folder, small())
        run(folder, "ipdiff", "grid", "--write")
        run(folder, "git", "add", "studies")
        run(folder, "git", "commit", "--quiet", "-m", "a small study")
        run(folder, "snakemake", "--cores", "2", "small")
        assert stale(folder, "small") == {}

    return once(tmp_path_factory, "extending", make)


def touched(project: Path) -> list[str]:
    """Files of the package that are new or edited."""
    said = run(project, "git", "status", "--porcelain", "--untracked-files=all", "--", "ipdiff").stdout
    return [line[3:] for line in said.splitlines() if "__pycache__" not in line]


def test_the_page_has_an_example_of_each_kind_and_says_what_it_costs() -> None:
    stated = {title.partition(" ")[2]: example.stated for title, example in EXAMPLES.items()}
    assert stated == {
        "sampler": 2, "metric": 2, "feature network": 2, "objective": 2, "reader": 2, "network family": 2, "stage": 3,
        "table": 0,
    }  # fmt: skip
    table = dict(re.findall(r"^\| \[([^]]+)\].*\| (\d)[^|]*\|$", PAGE.read_text(), re.M))
    assert {name: int(count) for name, count in table.items()} == {
        "table or figure" if name == "table" else name: count for name, count in stated.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_touches_so_many_files_and_runs(title: str, base: Path, copy: Callable[[Path], Path]) -> None:
    example, project = EXAMPLES[title], copy(base)
    example.apply(project)
    assert len(touched(project)) == example.stated, touched(project)
    assert stale(project, "small") == {}
    run(project, "ruff", "check", "--ignore=I001", "ipdiff")
    run(project, "ruff", "format", "--check", "ipdiff")
    params_factory.write(project, small(example.params))
    assert example.commands
    for command in example.commands:
        run(project, "sh", "-c", command)


def codes(project: Path) -> dict[str, str]:
    """Digests of the code of all cells of the project's own studies, as its package counts it."""
    said = run(project, sys.executable, "-c", CODES, "digits", "mini", "paper-tiny", "paper").stdout
    return json.loads(said)


@pytest.fixture
def extended(base: Path, copy: Callable[[Path], Path]) -> Path:
    """The small study's project with a new row of each kind, which nothing asks for yet."""
    project = copy(base)
    for example in EXAMPLES.values():
        example.apply(project)
    return project


def test_a_new_row_of_each_kind_makes_no_cell_stale_in_either_engine(extended: Path) -> None:
    assert codes(extended) == codes(ROOT)
    assert stale(extended, "small") == {}
    assert planned(extended, study="small") == set()
    assert changed(extended, "small") == set()
    with (extended / "ipdiff/metrics/scores/frechet.py").open("a") as stream:
        stream.write("\n_MORE = 1\n")
    assert codes(extended) != codes(ROOT), "a module that counts whole"


@pytest.mark.slow
def test_both_engines_make_what_all_the_rows_give(extended: Path) -> None:
    """Snakemake makes it, DVC has nothing left to do; what was there stays, but for what a metric more changes."""
    train = {path: path.read_bytes() for path in extended.glob("runs/tiny/adm/s0/*/recipe.json")}
    assert train
    params_factory.write(extended, small(*(example.params for example in EXAMPLES.values())))
    for command in EXAMPLES["A reader"].commands[:-1]:
        run(extended, "sh", "-c", command)
    run(extended, "ipdiff", "grid", "--write")
    run(
        extended,
        "snakemake",
        "--cores",
        "2",
        "small",
        "counts/tiny/count.json",
        "data/grey/images.npy",
        "reference/thumbs/stats.npz",
    )
    assert {path: path.read_bytes() for path in train} == train
    assert stale(extended, "small") == {}
    assert "up to date" in run(extended, "dvc", "status", "studies/small/dvc.yaml").stdout
    assert json.loads((extended / "counts/tiny/count.json").read_text())["images"] == 64
    metrics = json.loads((extended / "metrics/tiny/adm/s0/8/ancestral-5/metrics.json").read_text())
    assert 0 < metrics["pixel_mean"] < 1
    for name in ("noise", "means", "targets", "families", "ours"):
        assert (extended / "tables/small" / name / "table.csv").exists(), name


def test_a_text_that_a_page_does_not_place_is_an_error() -> None:
    with pytest.raises(AssertionError, match="not known where"):
        read("\n## A thing\n\nNo file of the package.\n\nSomewhere:\n\n```python\nx = 1\n```\n")
