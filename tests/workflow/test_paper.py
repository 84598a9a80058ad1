"""The paper's study: its whole graph, and its miniature from archives to tables through Snakemake."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from workflow.conftest import ROOT
from workflow.engines import cells, run

pytestmark = pytest.mark.workflow

KINDS = {
    *("prepare", "reference", "neighbours", "halves", "train", "resume", "sample", "evaluate", "analyse"),
    *("table", "figure"),
}


def test_the_papers_study_plans_without_its_archives(project: Path) -> None:
    said = run(project, "snakemake", "--cores", "2", "--dry-run", "paper").stdout
    expected = cells(project, "paper")
    counts = {line.split()[0]: int(line.split()[1]) for line in said.splitlines() if len(line.split()) == 2
              and line.split()[1].isdigit()}  # fmt: skip
    assert counts["total"] == len(expected) + 1
    assert counts["sample"] == sum(cell.stage.verb == "sample" for cell in expected.values())
    plan = json.loads(run(project, "ipdiff", "plan", "paper", "--json").stdout)
    assert plan["verbs"]["total"]["cells"] == len(expected)
    assert plan["unknown_datasets"] == []


def test_the_miniature_has_every_kind_of_cell_in_seventy(project: Path) -> None:
    tiny, whole = cells(project, "paper-tiny"), cells(project, "paper")
    assert len(tiny) <= 70
    assert (
        {cell.stage.verb for cell in tiny.values()}
        == {cell.stage.verb for cell in whole.values()}
        == KINDS | {"summary", "report"}
    )


@pytest.mark.slow
def test_the_miniature_runs_from_archives_to_tables(project: Path) -> None:
    raw = project / "raw/tiny"
    subprocess.run([sys.executable, ROOT / "tests/archives.py", raw], check=True)
    subprocess.run([sys.executable, ROOT / "tests/inception.py", raw / "inception.pt"], check=True)
    run(project, "snakemake", "--cores", "2", "paper-tiny")
    for cell in cells(project, "paper-tiny").values():
        assert all((project / path).exists() for path in cell.outputs)
    tables = project / "tables/paper-tiny"
    with (tables / "table8/table.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["kind"] == "value"]
    assert {row["metric"] for row in rows} == {"precision", "recall", "inception_score"}
    assert all(0 <= float(row["mean"]) <= 1 for row in rows if row["metric"] != "inception_score")
    assert all(float(row["mean"]) >= 1 for row in rows if row["metric"] == "inception_score")
    with (tables / "table3/table.csv").open() as stream:
        features = {row["features"] for row in csv.DictReader(stream)}
    assert features == {"other inception"}, "a network of random weights never stands beside the paper's figures"
    assert "up to date" in run(project, "dvc", "status", "studies/paper-tiny/dvc.yaml").stdout
    assert "0 problems" in run(project, "ipdiff", "verify", "--study", "paper-tiny").stdout
