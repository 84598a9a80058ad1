"""The study `official`: the paper's data sets and networks, and the authors' own files beside their figures.

Every metric here is SYNTHETIC; the parameters are the project's.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from unit.params_factory import put, small, write
from unit.pipeline.test_paper_study import IMAGES, shown

from ipdiff import cli
from ipdiff.errors import UserError
from ipdiff.interop import checking
from ipdiff.pipeline import config, grid
from ipdiff.pipeline.engines import dvc_files, imports

ROOT = Path(__file__).parents[3]
SIZES = {
    ("cifar10", "adm"): (494, 57_094_662),
    ("imagenet32", "adm"): (494, 57_094_662),
    ("lsun_tower64", "adm"): (540, 295_136_454),
    ("celeba64", "adm"): (540, 295_136_454),
    ("ffhq128", "adm"): (638, 542_811_398),
    ("cifar10", "ddim"): (328, 35_746_307),
}
"""Tensors and weights of the published files' state dicts."""
RUN = "runs/tiny/official/s0/460000"


@pytest.fixture(scope="module")
def official() -> config.Params:
    return grid.load(ROOT).studies.load("official")


@pytest.fixture
def raw(official: config.Params) -> dict[str, Any]:
    return json.loads(json.dumps(official.raw))


@pytest.mark.parametrize(("dataset", "model"), SIZES)
def test_its_networks_are_those_of_the_published_files(official: config.Params, dataset: str, model: str) -> None:
    shapes = checking.shapes(official.run_spec(f"{dataset}_official", f"{model}-ip-official", 0))
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == SIZES[dataset, model]


@pytest.mark.parametrize("dataset", IMAGES)
def test_its_data_sets_are_the_papers(official: config.Params, dataset: str) -> None:
    ours, paper = official.dataset(f"{dataset}_official"), grid.load(ROOT).studies.load("paper").dataset(dataset)
    for part in ("source", "families", "features", "inception", "reference", "compute", "sampling"):
        assert getattr(ours, part) == getattr(paper, part), part
    released = {"cifar10": 0.15}
    assert ours.strengths.gamma == released.get(dataset, paper.strengths.gamma)


def test_every_model_of_every_data_set_has_a_file_to_get(official: config.Params) -> None:
    cells = grid.load(ROOT).imports("official")
    assert len(cells) == 9
    for cell in cells:
        assert cell.bindings["model"] in official.dataset(cell.bindings["dataset"]).imports, cell.directory


def test_what_is_cheap_needs_a_hundred_steps_at_most(official: config.Params) -> None:
    for name in ("quick", "quick_ip"):
        points = config.points(official, official.table(name))
        assert {point.sampler for point in points} == {f"ancestral-{steps}" for steps in (20, 50, 80, 100)}


def reasons(found: list[Any], **of: str) -> set[str]:
    """Why the paper's figures are not comparable with those entries."""
    ours = [one for one in found if all(getattr(one, key) == value for key, value in of.items())]
    assert ours
    return {one.reason for one in ours}


def test_its_figures_stand_beside_the_published_ones(raw: dict[str, Any], tmp_path: Path) -> None:
    def table(name: str) -> list[Any]:
        found = shown("table", name, raw, tmp_path / name, "official")
        return [one for one in found if one.kind == "value"]

    gamma = {"gamma differs: 0.15 here, 0.1 in the paper"}
    released = {one.metric: (one.paper, one.reason) for one in table("released")}
    assert released == {
        "fid": (2.37767, ""),
        "sfid": (4.09995, ""),
        "inception_score": (9.70092, ""),
        "precision": (0.69118, ""),
        "recall": (0.60512, ""),
    }
    quick = [one for one in table("quick") if one.metric == "fid" and one.sampler in ("ancestral-80", "ancestral-100")]
    assert reasons(quick, model="adm-official") == {""}
    assert reasons(quick, model="adm-ip-official", dataset="ffhq128_official") == {""}
    assert reasons(quick, model="adm-ip-official", dataset="cifar10_official") == gamma
    assert [one.paper for one in quick if one.sampler == "ancestral-80" and one.model == "adm-official"] == [
        3.63, 4.17, 17.00
    ]  # fmt: skip
    assert reasons([one for one in table("table3_ip") if one.metric == "sfid"]) == {""}
    half = [one for one in table("float16") if one.model == "adm-official"]
    assert reasons(half, sampler="ancestral-100") == {""}
    assert reasons(half, sampler="ancestral-100-float16") == {
        "sampling precision differs: float16 here, float32 in the paper"
    }
    assert reasons(table("table5")) == {""}
    for name in ("remedies", "remedies_lsun_tower64", "remedies_ffhq128"):
        scaled = [one for one in table(name) if "-es" in one.sampler and one.model == "adm-official"]
        assert len(scaled) == 4
        assert reasons(scaled) == {""}, name


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study with one imported model, whose file is not here."""
    monkeypatch.chdir(tmp_path)
    raw = put(small(), "models.official", {"family": "adm", "imported": True})
    put(raw, "datasets.tiny.final_step.official", 460000)
    put(raw, "datasets.tiny.imports", {"official": "the authors' ADM.pt"})
    raw["tables"]["table3"] |= {"models": ["official"], "compare": {}}
    write(tmp_path, raw)
    return tmp_path


def test_a_file_that_is_not_here_is_said_with_its_command(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = grid.load()
    said = f"{RUN} is not here: get the authors' ADM.pt; then `ipdiff import FILE --as tiny/official`"
    assert imports.missing(known, known.imports("small")) == [said]
    with pytest.raises(UserError, match=r"^runs/tiny/official/s0/460000 is not here: [^\n]*$"):
        imports.require(known, known.imports("small"))
    assert cli.main(["plan", "small"]) == 0
    assert said in capsys.readouterr().out
    names = ("--dataset", "tiny", "--model", "official", "--seed", "0", "--step", "460000")
    assert cli.main(["sample", *names, "--sampler", "ancestral-5"]) == 2
    assert capsys.readouterr().err == f"ipdiff: {said}\n"
    (project / RUN).mkdir(parents=True)
    (project / RUN / "ema.safetensors").touch()
    imports.require(known, known.imports("small"))
    assert cli.main(["plan", "small"]) == 0
    assert RUN not in capsys.readouterr().out


def test_what_somebody_has_published_is_pulled(project: Path) -> None:
    known = grid.load()
    (cell,) = known.imports("small")
    dvc_files.pointer_of(cell).parent.mkdir()
    dvc_files.pointer_of(cell).touch()
    assert imports.missing(known, [cell]) == [f"{RUN} is not here: `ipdiff pull {RUN}`"]


def test_another_step_or_seed_than_the_tables_is_part_of_the_command(project: Path) -> None:
    known = grid.load()
    cell = known.cell("import", dataset="tiny", model="official", seed="2", step="7")
    assert imports.missing(known, [cell])[0].endswith("--as tiny/official --seed 2 --step 7`")


def test_files_are_named_for_imported_models_alone(project: Path) -> None:
    write(project, put(small(), "datasets.tiny.imports", {"adm": "a file"}))
    with pytest.raises(UserError, match=r"datasets\.tiny\.imports: unknown name 'adm'"):
        grid.load().studies.load("small")
