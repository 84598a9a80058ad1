"""DVC's own views of a study: metrics, plots, experiments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from workflow.engines import MINI, run

pytestmark = pytest.mark.workflow

METRICS = "metrics/digits_mini/adm-ip/s0/8/ancestral-5/metrics.json"
OTHER = "metrics/digits_mini/adm/s0/8/ancestral-5/metrics.json"


def fid(project: Path, path: str = METRICS) -> float:
    return json.loads((project / path).read_text())["fid"]


def test_metrics_show_reads_every_metrics_file(by_snakemake: Path) -> None:
    shown = json.loads(run(by_snakemake, "dvc", "metrics", "show", "--json").stdout)[""]["data"]
    assert {path: shown[path]["data"]["fid"] for path in (METRICS, OTHER)} == {
        path: fid(by_snakemake, path) for path in (METRICS, OTHER)
    }


def test_plots_show_draws_the_line_figures_by_model(by_snakemake: Path, tmp_path: Path) -> None:
    said = run(by_snakemake, "dvc", "plots", "show", "--json", "--out", str(tmp_path / "plots"))
    drawn = json.loads(said.stdout)["data"]
    (plot,) = (drawn[name] for name in drawn if name.endswith("figures/mini/figure3/figure.csv"))
    content = plot[0]["content"]
    assert content["encoding"]["color"]["field"] == "model"
    points = content["data"]["values"]
    assert {point["model"]: float(point["mean"]) for point in points} == {
        "adm": fid(by_snakemake, OTHER), "adm-ip": fid(by_snakemake),
    }  # fmt: skip


@pytest.mark.slow
def test_an_experiment_runs_on_the_study_and_shows_its_difference(clone: Path) -> None:
    run(clone, "ipdiff", "pull")
    before = fid(clone)
    params = clone / "studies/mini/params.yaml"
    before_edit = params.read_text()
    edit = "studies/mini/params.yaml:datasets.digits_mini.strengths.gamma=0.3"
    run(clone, "dvc", "exp", "run", "--name", "stronger", MINI, "-S", edit)
    assert params.read_text() == before_edit.replace("gamma: 0.1", "gamma: 0.3")
    assert fid(clone) != before
    diff = json.loads(run(clone, "dvc", "metrics", "diff", "--json", "HEAD", "stronger", "--targets", METRICS).stdout)
    assert diff[METRICS]["fid"] == {"old": before, "new": fid(clone), "diff": pytest.approx(fid(clone) - before)}
    assert "Running stage" not in run(clone, "dvc", "repro", MINI).stdout
