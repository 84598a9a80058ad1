"""Studies in folders of their own, for both engines: a new one, and one that is broken."""

from __future__ import annotations

from pathlib import Path

import pytest
from workflow.conftest import make_project
from workflow.engines import MINI, cells, planned, run, snakemake_graph

pytestmark = pytest.mark.workflow


def add(project: Path, name: str, *edits: tuple[str, str]) -> Path:
    """A copy of the study mini with a data set of its own; returns its params.yaml."""
    folder = project / "studies" / name
    folder.mkdir()
    text = (project / "studies/mini/params.yaml").read_text()
    for old, new in (("digits_mini", f"digits_{name}"), *edits):
        assert old in text
        text = text.replace(old, new)
    (folder / "params.yaml").write_text(text)
    return folder / "params.yaml"


def test_a_new_folder_is_a_study_of_both_engines(project: Path) -> None:
    add(project, "other")
    wanted = cells(project, "other")
    assert len(wanted) == len(cells(project, "mini"))
    jobs = snakemake_graph(project, "other")
    assert {job["command"] for job in jobs} == {cell.command for cell in wanted.values()}
    assert run(project, "ipdiff", "grid", "--check", code=2).stderr.startswith("ipdiff: studies/other/dvc.yaml: not")
    said = run(project, "ipdiff", "grid", "--study", "other", "--write").stdout.splitlines()
    assert said[0] == "wrote studies/other/dvc.yaml"
    assert run(project, "git", "status", "--short").stdout.split() == ["??", "studies/other/"]

    made = "data/digits_other/images.npy"
    run(project, "snakemake", "--cores", "2", made)
    assert (project / "studies/other/dvc.lock").exists()
    assert not (project / "studies/mini/dvc.lock").exists()
    stage = "studies/other/dvc.yaml:prepare@digits_other"
    assert "Running stage" not in run(project, "dvc", "repro", stage).stdout
    params = project / "studies/other/params.yaml"
    params.write_text(params.read_text().replace("limit: 256", "limit: 200"))
    assert planned(project, made, study="other") == {"data/digits_other"}
    assert "Running stage 'studies/other/dvc.yaml:prepare@digits_other'" in run(project, "dvc", "repro", stage).stdout
    assert planned(project, made, study="other") == set()


@pytest.mark.parametrize(
    ("how", "named"),
    [
        (("compute:", "cmpute:"), False),
        (("datasets:\n  digits_x:", "datasets: [\n  digits_x:"), True),
        (("digits_x:", "digits_mini:"), False),
    ],
    ids=["a typing error", "no YAML", "another study's data set"],
)
def test_a_broken_study_stops_no_other_one(tmp_path: Path, how: tuple[str, str], named: bool) -> None:
    project = make_project(tmp_path)
    add(project, "x", how)
    said = run(project, "snakemake", "-n", "data/digits/images.npy").stderr
    about = [line for line in said.splitlines() if "studies/x/params.yaml" in line]
    assert len(about) == (1 if named else 0)  # of what is not read nothing is known
    run(project, "ipdiff", "prepare", "--dataset", "digits")
    run(project, "ipdiff", "sync")
    assert (project / "dvc.lock").exists()
    run(project, "dvc", "repro", "prepare@digits")
    said = run(project, "snakemake", "-n", "x", code=2).stderr
    about = [line for line in said.splitlines() if "studies/x/params.yaml" in line]
    assert about[-1].startswith("ipdiff: studies/x/params.yaml")
    assert len(about) == 1 + named
    assert "Traceback" not in said
    both = how[1] == "digits_mini:"
    run(project, "snakemake", "-n", "mini", code=2 if both else 0)
    run(project, "dvc", "status", MINI)
