"""The study `paper` held against the paper's figures, by recipes as its own params.yaml would make them.

Every metric here is SYNTHETIC; the parameters are the project's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from unit.params_factory import put
from unit.params_factory import write as write_params
from unit.report_factory import write

from ipdiff.errors import UserError
from ipdiff.pipeline import grid
from ipdiff.report.figures import figure
from ipdiff.report.tables import entries, table
from ipdiff.training.distributed import Processes, share_of

ROOT = Path(__file__).parents[3]
IMAGES = {"cifar10": 50_000, "imagenet32": 1_281_167, "lsun_tower64": 50_000, "celeba64": 202_599, "ffhq128": 70_000}


@pytest.fixture
def raw() -> dict[str, Any]:
    return json.loads(json.dumps(grid.load(ROOT).studies.load("paper").raw))  # a copy, and none of it in two places


def recipes(cell: grid.Cell, cells: grid.Grid) -> list[dict[str, Any]]:
    """Of the artifacts whose recipes a table or figure reads: what the pipeline would write."""
    made: list[dict[str, Any]] = []
    for path in cell.inputs:
        if not path.endswith("/recipe.json"):
            continue
        behind = cells.maker(path)
        assert behind is not None
        recipe = {
            "cell": behind.directory,
            "params": cells.param_values(behind),
            "inputs": dict.fromkeys(behind.inputs, "0" * 32),
        }
        if behind.stage.verb in ("train", "import"):
            names = behind.bindings
            recipe["run"] = cells.of(behind).run_spec(names["dataset"], names["model"], int(names["seed"])).to_json()
        if behind.given:
            recipe["source"] = {"name": "model.pt"}
        made.append(recipe)
    return made


def shown(kind: str, name: str, raw: dict[str, Any], folder: Path, study: str = "paper") -> list[entries.Entry]:
    """The entries of one of the study's tables or figures."""
    folder.mkdir(exist_ok=True)
    write_params(folder, raw, study)
    cells = grid.load(folder)
    params = cells.studies.load(study)
    cell = cells.cell(kind, study=study, **{kind: name})
    files: list[Path] = []
    for path in cell.inputs:
        if path.endswith("/metrics.json"):
            _, dataset, model, seed, step, sampler, _ = path.split("/")
            images = IMAGES[dataset.removesuffix("_official")]
            others = {"sfid": 3.0, "inception_score": 9.0, "precision": 0.7, "recall": 0.6}
            known = {"features": "inception", "n": 50_000, "reference_n": images, **others}
            about = {"dataset": dataset, "model": model, "seed": int(seed[1:]), "step": int(step), "sampler": sampler}
            files.append(write(folder / path, **known, **about))
    behind = recipes(cell, cells)
    if kind == "table":
        table.run(name, params.table(name), files, folder / "out", behind)
    else:
        figure.run(name, params.figure(name), files, folder / "out", behind)
    return entries.read_csv(folder / f"out/{kind}.csv")


def test_the_studys_tables_are_made_as_the_papers(raw: dict[str, Any], tmp_path: Path) -> None:
    """Of Tables 1 to 7 every cell may stand beside the paper's."""
    for name in ("table1", "table2", "table3", "table4", "table5", "table7", "ablation"):
        found = shown("table", name, raw, tmp_path / name)
        assert {entry.reason for entry in found} == {""}, name
    notes = (tmp_path / "table5/out/table.md").read_text()
    assert "Not known of the paper's figures, and not compared: " in notes
    assert "grid of timesteps of DDIM" in notes
    notes = (tmp_path / "table3/out/table.md").read_text()
    assert "CelebA was measured against all 202,599 images" in notes
    assert "random 50,000 training images" in notes
    assert {entry.reason for entry in shown("figure", "figure3_celeba64", raw, tmp_path / "f")} == {""}


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("strengths.gamma", 0.3, "gamma differs: 0.3 here, 0.1 in the paper"),
        ("families.adm.training.batch_size", 64, "batch size differs: 64 here, 128 in the paper"),
        ("families.adm.diffusion.T", 2000, "T differs: 2,000 here, 1,000 in the paper"),
        ("families.adm.diffusion.schedule", "linear", "noise schedule differs: linear here, cosine in the paper"),
        ("families.adm.network.dropout", 0.2, "dropout differs: 0.2 here, 0.3 in the paper"),
        ("sampling.precision", "bfloat16", "sampling precision differs: bfloat16 here, float32 in the paper"),
        (
            "reference",
            {"images": 50_000, "seed": 0, "neighbours": True},
            "reference set differs: random images here, all images in the paper",
        ),
        ("source.limit", 50_000, "reference set differs: the first images here, all images in the paper"),
    ],
)
def test_the_run_is_held_against_the_paper(
    raw: dict[str, Any], tmp_path: Path, key: str, value: Any, reason: str
) -> None:
    found = shown("table", "table3", put(raw, f"datasets.cifar10.{key}", value), tmp_path)
    ours = [entry for entry in found if (entry.dataset, entry.model, entry.kind) == ("cifar10", "adm-ip", "value")]
    assert {entry.reason for entry in ours} == {reason}
    assert {entry.reason for entry in found if entry.dataset != "cifar10"} == {""}
    assert reason in (tmp_path / "out/table.md").read_text()


def test_a_missing_recipe_is_named(raw: dict[str, Any], tmp_path: Path) -> None:
    cells = grid.load(ROOT)
    cell = cells.cell("table", study="paper", table="table2")
    behind = [recipe for recipe in recipes(cell, cells) if not recipe["cell"].startswith("reference")]
    file = write(tmp_path / "m.json", dataset="cifar10", step=500_000, sampler="ancestral-1000")
    with pytest.raises(UserError, match=r"reference/cifar10/recipe\.json was not given"):
        table.run("table2", cells.studies.load("paper").table("table2"), [file], tmp_path, behind)


@pytest.mark.parametrize("dataset", IMAGES)
def test_every_data_set_is_trained_by_any_of_8_processes(dataset: str) -> None:
    study = grid.load(ROOT).studies.load("paper")
    for model in (
        model for model, kind in study.models.items() if getattr(study.datasets[dataset].families, kind.family)
    ):
        training = study.run_spec(dataset, model, 0).training
        for count in range(1, 9):
            shares = [share_of(training, Processes(rank, count)) for rank in range(count)]
            assert [place for share in shares for place in share] == list(range(training.batch_size))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
