"""The code digest: what counts, for which stage, and the same on every Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ipdiff.pipeline.stages import STAGES
from ipdiff.pipeline.store import code_digests
from ipdiff.pipeline.store.code_digests import code_files

ROOT = Path(__file__).parents[3]
ALL = set(STAGES)
PRINT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from ipdiff.pipeline.stages import STAGES
from ipdiff.pipeline.store.code_digests import code_digest
print(json.dumps({verb: code_digest(stage.module, (), stage.runs) for verb, stage in STAGES.items()}))
"""


def digest(verb: str, rows: code_digests.Rows = ()) -> str:
    return code_digests.code_digest(STAGES[verb].module, rows, STAGES[verb].runs)


def files(verb: str, rows: code_digests.Rows = ()) -> list[Path]:
    return code_files(STAGES[verb].module, rows, STAGES[verb].runs)


class Package:
    """A copy of the package whose files may be edited."""

    def __init__(self, path: Path, before: dict[str, str]) -> None:
        self.path, self.before = path, before

    def digests(self) -> dict[str, str]:
        clear()
        return {verb: digest(verb) for verb in STAGES}

    def changed(self) -> set[str]:
        """Verbs whose digest is not what it was at first."""
        now = self.digests()
        return {verb for verb in STAGES if now[verb] != self.before[verb]}

    def replace(self, name: str, old: str, new: str) -> None:
        text = (self.path / name).read_text()
        assert text.count(old) == 1, f"{name} has {text.count(old)} of {old!r}"
        (self.path / name).write_text(text.replace(old, new))

    def append(self, name: str, text: str) -> None:
        with (self.path / name).open("a") as stream:
            stream.write(text)


def clear() -> None:
    """Forget what was read of the package."""
    for remembered in (code_digests.code_digest, code_digests._reached):
        remembered.cache_clear()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = shutil.copytree(code_digests.PACKAGE, tmp_path / "ipdiff", ignore=shutil.ignore_patterns("__pycache__"))
    before = {verb: digest(verb) for verb in STAGES}  # names of modules count, their place does not
    monkeypatch.setattr(code_digests, "PACKAGE", path)
    yield Package(path, before)
    clear()


PROBE = '''
"""A module for the test."""

LIMIT = 3


class Thing:
    """A thing."""

    size: int = 1

    def grow(self, by: int) -> int:
        """Grow."""
        return self.size + by
'''

SAME_CODE = '''# a comment
"""Other words."""

LIMIT = (3)  # three

class Thing:
    size: float = 1
    """An attribute's words."""
    def grow(self, by):


        # nothing to see
        return (self.size
                + by)
'''


def test_comments_docstrings_annotations_and_layout_do_not_count(package: Package) -> None:
    package.append("schedule.py", PROBE)
    package.before = package.digests()
    package.replace("schedule.py", PROBE, "\n\n" + SAME_CODE)
    assert package.changed() == set()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT = 3", "LIMIT = 4"),
        ("LIMIT = 3", "LIMIT = 3.0"),
        ("LIMIT = 3", "LIMIT = '3'"),
        ("LIMIT = 3", "LIMIT = None"),
        ("LIMIT = 3", "LIMITS = 3"),
        ("size: int = 1", "size: int = 2"),
        ("size: int = 1", "size: int"),
        ("self.size + by", "self.size - by"),
        ("self.size + by", "by + self.size"),
        ("by: int", "by: int = 1"),
        ("by: int", "*, by: int"),
        ("class Thing", "class Thing(dict)"),
        ("    def grow", "    @property\n    def grow"),
    ],
)
def test_what_can_change_a_number_counts(package: Package, old: str, new: str) -> None:
    package.append("schedule.py", PROBE)
    package.before = package.digests()
    package.replace("schedule.py", old, new)
    assert package.changed() == {"train", "resume", "sample", "analyse", "drift"}


@pytest.mark.parametrize(
    ("name", "verbs"),
    [
        ("data/prepare.py", {"prepare"}),
        ("metrics/classifier.py", {"classifier"}),
        ("coefficients.py", {"train", "resume", "sample", "analyse", "drift"}),
        ("nets/adm.py", {"train", "resume", "sample", "analyse", "drift"}),
        ("training/segment.py", {"train", "resume"}),
        ("training/resume.py", {"resume"}),
        ("sample_sets/sample.py", {"sample", "drift"}),
        ("metrics/scores/frechet.py", {"classifier", "reference", "neighbours", "halves", "evaluate"}),
        ("report/tables/render.py", {"table", "summary", "figure", "report"}),
        ("data/__init__.py", ALL - {"summary"}),
        ("errors.py", set()),
        ("pipeline/config/__init__.py", set()),
        ("pipeline/grid/__init__.py", set()),
        ("pipeline/store/artifact.py", set()),
        ("pipeline/jobs.py", set()),
        ("cli/stages.py", set()),
    ],
)
def test_an_edit_changes_the_stages_that_import_the_file(package: Package, name: str, verbs: set[str]) -> None:
    package.append(name, "\n_PROBE = 1\n")
    counted = {verb for verb in STAGES if package.path / name in files(verb)}
    assert package.changed() == counted
    if name not in (
        "report/tables/render.py",
        "metrics/scores/frechet.py",
    ):  # in these the set may grow with the report
        assert counted == verbs
    else:
        assert counted <= verbs
        assert counted


def test_data_of_the_package_counts_by_its_bytes(package: Package) -> None:
    package.append("report/paper_values.yaml", "# a comment\n")
    assert package.changed() == {verb for verb in STAGES if package.path / "report/paper_values.yaml" in files(verb)}
    assert "table" in package.changed()


@pytest.mark.parametrize("name", ["index.html.jinja", "cards.html.jinja", "marks.html.jinja", "style.css"])
def test_templates_count_for_the_report_alone(package: Package, name: str) -> None:
    package.append(f"report/pages/templates/{name}", "\n")
    assert package.changed() == {"report"}


def test_a_new_template_and_its_name_count(package: Package) -> None:
    templates = package.path / "report/pages/templates"
    (templates / "new.html.jinja").write_text("new")
    assert package.changed() == {"report"}
    package.before = package.digests()
    (templates / "new.html.jinja").rename(templates / "newer.html.jinja")
    assert package.changed() == {"report"}


def test_what_an_editor_leaves_beside_a_template_does_not_count(package: Package) -> None:
    (package.path / "report/pages/templates/.index.html.jinja.swp").write_bytes(b"\0")
    (package.path / "report/pages/templates/style.css~").write_text("a")
    assert package.changed() == set()


def test_every_file_that_counts_is_shipped() -> None:
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = {
        path
        for name, patterns in shipped.items()
        for one in patterns
        for path in (ROOT / name.replace(".", "/")).glob(one)
    }
    counted = {path for verb in STAGES for path in files(verb) if path.suffix != ".py"}
    assert counted == {path for path in shipped if path.name != "py.typed"}
    for patterns in code_digests.DATA.values():
        assert all(list(code_digests.PACKAGE.glob(pattern)) for pattern in patterns)


def test_a_new_import_brings_its_file_in(package: Package) -> None:
    (package.path / "extra.py").write_text("X = 1\n")
    assert package.changed() == set()
    package.append("data/prepare.py", "\n\ndef later():\n    from ipdiff.extra import X\n    return X\n")
    assert package.changed() == {"prepare"}
    package.before = package.digests()
    (package.path / "extra.py").write_text("X = 2\n")
    assert package.changed() == {"prepare"}


def test_a_record_counts_for_the_stages_that_name_it(package: Package) -> None:
    package.replace(
        "metrics/spec.py",
        'to measure its accuracy", Range(0, 0.5)] = 0.2',
        'to measure its accuracy", Range(0, 0.5)] = 0.3',
    )
    changed = package.changed()
    assert {"classifier", "reference", "evaluate"} <= changed
    assert not changed & {"prepare", "train", "resume", "sample", "table", "figure"}


def test_a_record_counts_through_another_that_names_it(package: Package) -> None:
    """`check` is called by records' own checks; the stages only name the records."""
    package.replace("parameters.py", "    if not condition:\n", "    if not condition or False:\n")
    changed = package.changed()
    assert {"prepare", "classifier", "train"} <= changed


def test_a_definition_that_no_stage_names_does_not_count(package: Package) -> None:
    package.append("spec.py", "\n\nclass Unused:\n    size: int = 1\n")
    assert package.changed() == set()


@pytest.mark.parametrize(
    ("name", "registry", "row"),
    [
        ("metrics/scores/kernel.py", "METRICS", "kid"),
        ("metrics/scores/kernel.py", "METRICS", "kid_se"),
        ("metrics/scores/density.py", "METRICS", "coverage"),
        ("metrics/features/torchscript.py", "FEATURES", "torchscript"),
    ],
)
def test_of_metrics_and_features_only_what_a_cell_names_counts(
    package: Package, name: str, registry: str, row: str
) -> None:
    fewer = {"METRICS": ("fid", "precision"), "FEATURES": ("inception",)}
    more = fewer | {registry: (*fewer[registry], row)}
    before, after = ([], [])
    for found in (before, after):
        code_digests.code_digest.cache_clear()
        for rows in (fewer, more):
            found.append(digest("evaluate", tuple((f"ipdiff.metrics.spec.{key}", rows[key]) for key in rows)))
        package.append(name, "\n_PROBE = 1\n")
    assert before[0] == after[0] != before[1] != after[1]


def test_annotated_constants_of_the_records_count(package: Package) -> None:
    package.append("spec.py", "\nLIMIT: int = 1\n")
    package.append("data/prepare.py", "\nfrom ipdiff.spec import LIMIT\n")
    package.before = package.digests()
    package.replace("spec.py", "LIMIT: int = 1", "LIMIT: int = 2")
    assert package.changed() == {"prepare"}


@pytest.mark.parametrize(
    "line",
    [
        "from ipdiff import spec",
        "import ipdiff.spec",
        "from ipdiff.spec import *",
        "from . import grid",
        "from .spec import Source",
    ],
)
def test_an_import_that_would_not_be_counted_is_refused(package: Package, line: str) -> None:
    package.append("data/prepare.py", f"\n{line}\n")
    with pytest.raises(ValueError, match=r"prepare\.py"):
        package.digests()


def test_every_stage_of_the_grid_has_a_digest_of_its_own() -> None:
    from ipdiff.pipeline import grid

    assert set(grid.STAGES) == ALL
    assert len({digest(verb) for verb in STAGES}) == len(STAGES)
    for verb in STAGES:
        assert all(path.is_file() and code_digests.PACKAGE in path.parents for path in files(verb))


def digests_of(python: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *options, "-c", PRINT, str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_the_digest_needs_only_the_standard_library() -> None:
    done = digests_of(sys.executable, "-I", "-S", "-B")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {verb: digest(verb) for verb in STAGES}


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_the_digest_is_the_same_on_another_python(version: str) -> None:
    name = f"python{version}"
    python = shutil.which(name)
    if python is None:
        pytest.skip(f"no {name} on the path")
    asked = {"PYENV_VERSION": version}  # pyenv's shims run only the version that is asked for
    probe = subprocess.run(
        [python, "-c", "import sys; print(*sys.version_info[:2], sep='.')"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **asked},
    )
    if probe.returncode != 0 or probe.stdout.strip() != version:
        pytest.skip(f"{python} does not run: {' '.join((probe.stderr or probe.stdout).split())[:120]}")
    done = digests_of(python, "-I", "-S", "-B", **asked)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {verb: digest(verb) for verb in STAGES}
