"""DVC's own views of a study: metrics, plots, experiments."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from workflow.engines import MINI, run

from ipdiff.pipeline import grid
from ipdiff.spec import RunSpec

pytestmark = pytest.mark.workflow

METRICS = "metrics/digits_mini/adm-ip/s0/8/ancestral-5/metrics.json"
OTHER = "metrics/digits_mini/adm/s0/8/ancestral-5/metrics.json"


def fid(project: Path, path: str = METRICS) -> float:
    return json.loads((project / path).read_text())["fid"]


SUMMARY = "tables/mini/summary.json"


def leaves(data: object) -> list[object]:
    return [leaf for value in data.values() for leaf in leaves(value)] if isinstance(data, dict) else [data]


def test_metrics_show_names_the_root_and_reads_what_is_named(by_snakemake: Path) -> None:
    def shown(*files: str) -> dict:
        return json.loads(run(by_snakemake, "dvc", "metrics", "show", "--json", *files).stdout)[""]["data"]

    assert list(shown()) == ["tables/digits/summary.json"]
    found = shown(SUMMARY, METRICS)
    assert found[SUMMARY]["data"]["fid"]["adm-ip/ancestral-5"] == fid(by_snakemake)
    assert found[METRICS]["data"]["fid"] == fid(by_snakemake)
    for file in (SUMMARY, METRICS):
        numbers = leaves(found[file]["data"])
        assert 1 <= len(numbers) <= 30
        assert all(type(number) in (int, float) for number in numbers)


def test_bytecode_beside_the_sources_makes_nothing_stale(by_snakemake: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(by_snakemake)
    (project / "ipdiff/data/__pycache__").mkdir(exist_ok=True)
    (project / "ipdiff/data/__pycache__/probe.pyc").write_bytes(b"probe")
    assert "up to date" in run(project, "dvc", "status", MINI).stdout
    assert run(project, "ipdiff", "sync").stdout.startswith("recorded 0 cells")


def test_a_checkpoint_that_is_fetched_alone_says_what_it_is(origin: Path, tmp_path: Path) -> None:
    checkpoint = "runs/digits_mini/adm-ip/s0/8/ema.safetensors"
    run(origin, "dvc", "get", str(origin), checkpoint, "-o", str(tmp_path / "a.safetensors"))
    with safe_open(tmp_path / "a.safetensors", "np") as file:
        said = json.loads(file.metadata()["ipdiff"])
    assert (said["dataset"], said["model"], said["step"], said["gamma"]) == ("digits_mini", "adm-ip", 8, 0.1)
    assert RunSpec.from_json(said["run"]) == grid.load(origin).studies.load("mini").run_spec("digits_mini", "adm-ip", 0)


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
    unused = sorted(path.parent.name for path in clone.glob("studies/*/params.yaml") if path.parent.name != "mini")
    with (clone / ".dvcignore").open("a") as ignored:  # DVC reads all studies again after every stage
        ignored.writelines(f"studies/{name}\n" for name in unused)
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
    stronger = fid(clone)

    run(clone, "git", "restore", "studies/mini")
    run(clone, "dvc", "checkout", MINI)
    assert fid(clone) == before
    run(clone, "dvc", "exp", "branch", "stronger", "stronger")
    run(clone, "git", "restore", "--source", "stronger", "--", "studies/mini")
    run(clone, "dvc", "checkout", MINI)
    assert fid(clone) == stronger
    assert params.read_text() == before_edit.replace("gamma: 0.1", "gamma: 0.3")
