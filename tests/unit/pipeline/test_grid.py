"""Cells of a small study, what leaves them alone, and the dvc.yaml that is written from them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from unit.params_factory import drop, put, small, write

from ipdiff.errors import ConfigError, UserError
from ipdiff.pipeline import config, grid
from ipdiff.pipeline.commands.study import generated_files
from ipdiff.pipeline.engines import dvc_files
from ipdiff.pipeline.grid import Cell, Grid, cache_keys
from ipdiff.pipeline.store.code_digests import code_files

ROOT = Path(__file__).parents[3]
VIEWS = {"table", "figure", "report"}


def grid_of(tmp_path: Path, raw: dict[str, Any]) -> Grid:
    write(tmp_path, raw)
    return grid.load(tmp_path)


@pytest.fixture
def cells(tmp_path: Path) -> Grid:
    return grid_of(tmp_path, small())


TINY = {"dataset": "tiny"}
RUN = {**TINY, "model": "adm-ip", "seed": "1", "step": "8"}
FIRST = {**RUN, "step": "4"}
SET = {**RUN, "sampler": "ancestral-5"}
EXPOSED = {**RUN, "sampler": "exposure-10"}
RUN_PATH = "runs/tiny/adm-ip/s1"
SET_PATH = "tiny/adm-ip/s1/8/ancestral-5"
RUN_PARAMS = (
    "datasets.tiny.strengths.gamma",
    "models.adm-ip",
    "datasets.tiny.families.adm.network",
    "datasets.tiny.families.adm.diffusion",
    "datasets.tiny.families.adm.training",
    "datasets.tiny.compute",
)
SAMPLE_PARAMS = (
    "datasets.tiny.sampling",
    "datasets.tiny.families.adm.clip_denoised",
    "datasets.tiny.families.adm.quantise",
    "datasets.tiny.compute",
)
FLOAT32 = ("datasets.tiny.compute.device", "datasets.tiny.compute.threads")
FEATURE_PARAMS = ("datasets.tiny.classifier", *FLOAT32)


@pytest.mark.parametrize(
    ("verb", "names", "command", "inputs", "outputs", "params"),
    [
        (
            "prepare",
            TINY,
            "ipdiff prepare --dataset tiny",
            (),
            ("data/tiny/images.npy", "data/tiny/labels.npy", "data/tiny/recipe.json"),
            ("datasets.tiny.source",),
        ),
        (
            "prepare",
            {"dataset": "photos"},
            "ipdiff prepare --dataset photos",
            ("raw/photos.zip",),
            ("data/photos/images.npy", "data/photos/labels.npy", "data/photos/recipe.json"),
            ("datasets.photos.source",),
        ),
        (
            "classifier",
            TINY,
            "ipdiff classifier --dataset tiny",
            ("data/tiny/images.npy", "data/tiny/labels.npy"),
            ("features/tiny/classifier.safetensors", "features/tiny/accuracy.json", "features/tiny/recipe.json"),
            FEATURE_PARAMS,
        ),
        (
            "reference",
            TINY,
            "ipdiff reference --dataset tiny",
            ("data/tiny/images.npy", "features/tiny/classifier.safetensors"),
            ("reference/tiny/stats.npz", "reference/tiny/recipe.json"),
            FEATURE_PARAMS,
        ),
        (
            "train",
            FIRST,
            "ipdiff train --dataset tiny --model adm-ip --seed 1 --step 4",
            ("data/tiny/images.npy",),
            (f"{RUN_PATH}/4/ema.safetensors", f"{RUN_PATH}/4/loss.csv", f"{RUN_PATH}/4/recipe.json"),
            RUN_PARAMS,
        ),
        (
            "train",
            RUN,
            "ipdiff train --dataset tiny --model adm-ip --seed 1 --step 8",
            ("data/tiny/images.npy", f"{RUN_PATH}/4/recipe.json"),
            (f"{RUN_PATH}/8/ema.safetensors", f"{RUN_PATH}/8/loss.csv", f"{RUN_PATH}/8/recipe.json"),
            RUN_PARAMS,
        ),
        (
            "resume",
            RUN,
            "ipdiff resume --dataset tiny --model adm-ip --seed 1 --step 8",
            ("data/tiny/images.npy", f"{RUN_PATH}/8/recipe.json"),
            ("states/tiny/adm-ip/s1/8/state.safetensors", "states/tiny/adm-ip/s1/8/recipe.json"),
            (),
        ),
        (
            "sample",
            SET,
            "ipdiff sample --dataset tiny --model adm-ip --seed 1 --step 8 --sampler ancestral-5",
            (f"{RUN_PATH}/8/ema.safetensors", f"{RUN_PATH}/8/recipe.json"),
            (f"samples/{SET_PATH}/samples.npz", f"samples/{SET_PATH}/recipe.json"),
            SAMPLE_PARAMS,
        ),
        (
            "sample",
            EXPOSED,
            "ipdiff sample --dataset tiny --model adm-ip --seed 1 --step 8 --sampler exposure-10",
            (f"{RUN_PATH}/8/ema.safetensors", f"{RUN_PATH}/8/recipe.json", "data/tiny/images.npy"),
            ("samples/tiny/adm-ip/s1/8/exposure-10/samples.npz", "samples/tiny/adm-ip/s1/8/exposure-10/recipe.json"),
            SAMPLE_PARAMS,
        ),
        (
            "halves",
            {**TINY, "samples": "48"},
            "ipdiff halves --dataset tiny --samples 48",
            ("data/tiny/images.npy", "features/tiny/classifier.safetensors"),
            ("halves/tiny/48/halves.npz", "halves/tiny/48/recipe.json"),
            FEATURE_PARAMS,
        ),
        (
            "evaluate",
            SET,
            "ipdiff evaluate --dataset tiny --model adm-ip --seed 1 --step 8 --sampler ancestral-5",
            (
                f"samples/{SET_PATH}/samples.npz",
                f"samples/{SET_PATH}/recipe.json",
                "reference/tiny/stats.npz",
                "halves/tiny/64/halves.npz",
                "features/tiny/classifier.safetensors",
            ),
            (f"metrics/{SET_PATH}/metrics.json", f"metrics/{SET_PATH}/recipe.json"),
            FEATURE_PARAMS,
        ),
        (
            "table",
            {"study": "small", "table": "table3"},
            "ipdiff table --study small --table table3",
            tuple(
                f"metrics/tiny/{run}/8/ancestral-5/{name}"
                for run in ("adm/s0", "adm-ip/s0", "adm-ip/s1")
                for name in ("metrics.json", "recipe.json")
            ),
            tuple(f"tables/small/table3/{name}" for name in ("table.csv", "table.md", "table.tex", "recipe.json")),
            ("models.adm", "models.adm-ip", "datasets.tiny.strengths.gamma", "tables.table3"),
        ),
        (
            "figure",
            {"study": "small", "figure": "figure3"},
            "ipdiff figure --study small --figure figure3",
            tuple(
                f"metrics/tiny/adm/s0/{step}/ancestral-5/{name}"
                for step in (4, 8)
                for name in ("metrics.json", "recipe.json")
            ),
            tuple(f"figures/small/figure3/{name}" for name in ("figure.png", "figure.csv", "recipe.json")),
            ("models.adm", "figures.figure3"),
        ),
        (
            "figure",
            {"study": "small", "figure": "samples"},
            "ipdiff figure --study small --figure samples",
            ("samples/tiny/adm/s0/8/ancestral-4/samples.npz",),
            tuple(f"figures/small/samples/{name}" for name in ("figure.png", "figure.csv", "recipe.json")),
            ("models.adm", "figures.samples"),
        ),
        (
            "report",
            {"study": "small"},
            "ipdiff report --study small",
            (
                *(f"tables/small/table1/{name}" for name in ("table.csv", "table.md", "table.tex")),
                *(f"tables/small/table3/{name}" for name in ("table.csv", "table.md", "table.tex")),
                *(f"figures/small/figure3/{name}" for name in ("figure.png", "figure.csv")),
                *(f"figures/small/samples/{name}" for name in ("figure.png", "figure.csv")),
            ),
            ("report/small/index.html", "report/small/cards.html", "report/small/recipe.json"),
            ("figures", "title", "seeds", "tables", "models"),
        ),
    ],
)
def test_a_cell_of_each_stage(
    cells: Grid,
    verb: str,
    names: dict[str, str],
    command: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    params: tuple[str, ...],
) -> None:
    cell = cells.cell(verb, **names)
    assert cell.command == command
    assert tuple(path for path in cell.inputs if verb != "report" or not path.endswith("recipe.json")) == inputs
    assert cell.outputs == outputs
    assert cell.params == params


INCEPTION = {"sha256": "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"}


@pytest.mark.parametrize(
    ("edits", "network", "keys", "variant"),
    [
        ({}, ("features/tiny/classifier.safetensors",), ("datasets.tiny.classifier",), ""),
        ({"inception": INCEPTION}, (), ("datasets.tiny.inception.sha256",), "_inception"),
        ({"inception": {"raw": "raw/net.pt"}}, ("raw/net.pt",), (), "_raw_inception"),
    ],
)
def test_what_measures_reads_the_feature_network(
    tmp_path: Path, edits: dict[str, Any], network: tuple[str, ...], keys: tuple[str, ...], variant: str
) -> None:
    raw = small()
    raw["datasets"]["tiny"] |= {**edits, "features": "inception"} if edits else {}
    known = grid_of(tmp_path, raw)
    keys += FLOAT32
    plain, measured = known.cell("reference", **TINY), known.cell("evaluate", **SET)
    assert (plain.inputs, plain.params) == (("data/tiny/images.npy", *network), keys)
    half = "halves/tiny/64/halves.npz"
    assert (measured.inputs[2:], measured.params) == (("reference/tiny/stats.npz", half, *network), keys)
    assert (dvc_files.stage_name(plain), dvc_files.stage_name(measured)) == (
        f"reference{variant}",
        f"evaluate{variant}",
    )
    with pytest.raises(ConfigError, match=r"datasets.tiny.reference.neighbours: not true"):
        known.cell("neighbours", **TINY)

    put(raw, "datasets.tiny.reference", {"images": 20, "seed": 0, "neighbours": True})
    known = grid_of(tmp_path, raw)
    subset = ("datasets.tiny.reference.images", "datasets.tiny.reference.seed")
    for verb, of in (("reference", TINY), ("neighbours", TINY), ("halves", {**TINY, "samples": "64"})):
        cell = known.cell(verb, **of)
        assert sorted(cell.params) == sorted((*keys, *subset))
        assert cell.inputs == plain.inputs
        assert dvc_files.stage_name(cell) == f"{verb}_subset{variant}"
    near = ("neighbours/tiny/features.npy", "neighbours/tiny/radii.npy")
    more = known.cell("evaluate", **SET)
    assert (more.inputs[2:], more.params) == (("reference/tiny/stats.npz", half, *near, *network), measured.params)
    assert dvc_files.stage_name(more) == f"evaluate_neighbours{variant}"
    assert "neighbours/tiny" in {cell.directory for cell in known.study("small")}
    assert ("features/tiny" in {cell.directory for cell in known.study("small")}) == (not edits)


def test_where_the_network_is_got_from_makes_nothing_stale(tmp_path: Path) -> None:
    raw = small()
    raw["datasets"]["tiny"] |= {"features": "inception", "inception": INCEPTION}
    before = view_free(grid_of(tmp_path, raw))
    put(raw, "datasets.tiny.inception.url", "https://example.org/net.pt")
    put(raw, "datasets.tiny.inception.file", "net.pt")
    assert view_free(grid_of(tmp_path, raw)) == before


@pytest.mark.parametrize("reduction", ["exact", "fast"])
def test_the_cut_of_a_batch_makes_stale_what_it_decides(reduction: str, tmp_path: Path) -> None:
    key = "datasets.tiny.families.adm.training"
    raw = put(small(), f"{key}.reduction", reduction)
    before, cell = (known := grid_of(tmp_path, raw)), known.cell("train", **RUN)
    found = before.param_values(cell)[key]
    after = grid_of(tmp_path, put(put(raw, f"{key}.micro_batch", 4), "work", {"micro_batch": 2, "save_every": 7}))
    assert (after.param_values(after.cell("train", **RUN))[key] == found) == (reduction == "fast")
    assert ("micro_batch" in found) == (reduction == "exact")
    specs = [known.of(cell).run_spec("tiny", "adm-ip", 1) for known in (before, after)]
    assert [spec.training.micro_batch for spec in specs] == ([8, 4] if reduction == "exact" else [None, None])
    assert (specs[0] == specs[1]) == (reduction == "fast")


def test_a_fast_micro_batch_need_not_divide_the_batch(tmp_path: Path) -> None:
    key = "datasets.tiny.families.adm.training"
    raw = put(put(small(), f"{key}.micro_batch", 5), f"{key}.reduction", "fast")
    assert grid_of(tmp_path, raw).studies.load("small").run_spec("tiny", "adm", 0).training.micro_batch is None


def test_another_number_of_samples_needs_other_halves_and_leaves_the_reference_alone(tmp_path: Path) -> None:
    raw = small()
    before = view_free(grid_of(tmp_path, raw))
    after = view_free(grid_of(tmp_path, put(raw, "datasets.tiny.sampling.num_samples", 65)))
    assert (after.keys() - before.keys(), before.keys() - after.keys()) == ({"halves/tiny/65"}, {"halves/tiny/64"})
    kept = {name for name in before.keys() & after.keys() if before[name] == after[name]}
    assert {"reference/tiny", "halves/tiny/48", "runs/tiny/adm/s0/8"} <= kept


def test_asking_for_precision_leaves_the_reference_alone(tmp_path: Path) -> None:
    raw = small()
    before = view_free(grid_of(tmp_path, raw))
    after = view_free(grid_of(tmp_path, put(raw, "datasets.tiny.reference", {"neighbours": True})))
    assert after.keys() - before.keys() == {"neighbours/tiny"}
    assert {name for name in before if after[name] != before[name]} == {k for k in before if k.startswith("metrics/")}


def test_the_report_reads_the_recipes_behind_its_numbers(cells: Grid) -> None:
    read = {path for path in cells.cell("report", study="small").inputs if path.endswith("recipe.json")}
    behind = [cell for cell in cells.study("small") if cell.stage.verb in ("prepare", "train", "sample", "evaluate")]
    assert read == {cell.outputs[-1] for cell in behind}


def test_a_training_loss_reads_what_every_checkpoint_of_its_runs_publishes(tmp_path: Path) -> None:
    raw = small()
    raw["figures"] = {
        "loss": {"kind": "training", "title": "Loss", "datasets": ["tiny"], "models": ["adm", "adm-ip"]},
    }
    cell = grid_of(tmp_path, raw).cell("figure", study="small", figure="loss")
    runs = ("adm/s0", "adm-ip/s0", "adm-ip/s1")
    assert sorted(cell.inputs) == sorted(f"runs/tiny/{run}/{step}/loss.csv" for run in runs for step in (4, 8))


def test_a_strength_is_a_parameter_of_the_models_that_borrow_it_and_of_no_other(cells: Grid) -> None:
    def strengths(model: str) -> list[str]:
        cell = cells.cell("train", **{**FIRST, "model": model})
        return [key for key in cell.params if ".strengths." in key]

    assert strengths("adm-ip") == ["datasets.tiny.strengths.gamma"]
    assert strengths("adm-wd") == ["datasets.tiny.strengths.weight_decay"]
    assert strengths("adm") == strengths("ddim") == []


START = {"model": "adm"}


@pytest.mark.parametrize(
    ("start", "imported", "source"),
    [
        (START, False, "tiny/adm/s1/8"),
        ({**START, "step": 4}, False, "tiny/adm/s1/4"),
        ({**START, "dataset": "grey"}, False, "grey/adm/s1/8"),
        ({**START, "step": 460000}, True, "tiny/adm/s5/460000"),
    ],
)
def test_a_run_reads_what_it_is_trained_on_from(
    tmp_path: Path, start: dict[str, Any], imported: bool, source: str
) -> None:
    raw = put(put(small(), "models.adm-ip.start", start), "models.adm.imported", imported)
    raw["datasets"]["grey"] = raw["datasets"]["tiny"]
    raw["seeds"] |= {"adm": [5, 6]} if imported else {}
    known = grid_of(tmp_path, raw)
    images, start_inputs = "data/tiny/images.npy", (f"runs/{source}/ema.safetensors", f"runs/{source}/recipe.json")
    first, second, resume = known.cell("train", **FIRST), known.cell("train", **RUN), known.cell("resume", **RUN)
    assert first.inputs == (images, *start_inputs)
    assert second.inputs == (images, f"{RUN_PATH}/4/recipe.json", *start_inputs)
    assert resume.inputs == (images, f"{RUN_PATH}/8/recipe.json", *start_inputs)
    assert [cell.stage.name for cell in (first, second, resume)] == ["train_from", "continue_from", "resume_from"]
    assert first.params == RUN_PARAMS
    assert first.command == "ipdiff train --dataset tiny --model adm-ip --seed 1 --step 4"
    assert known.maker(start_inputs[0]) in known.needed(first)
    assert [cell.given for cell in known.needed(first) if cell.directory == f"runs/{source}"] == [imported]
    everything = {cell.directory for cell in (*known.study("small"), *known.imports("small"))}
    assert f"runs/{source}" in everything
    assert ("data/grey" in everything) == source.startswith("grey")


def test_a_start_changes_no_other_model_s_cells(tmp_path: Path) -> None:
    before = view_free(grid_of(tmp_path, small()))
    after = view_free(grid_of(tmp_path, put(small(), "models.adm-ip.start", START)))
    assert {name for name in before if after[name] != before[name] and "adm-ip" not in name} == set()


def test_a_study_is_what_its_views_need_and_nothing_else(cells: Grid) -> None:
    sets = {
        "tiny/adm/s0/8/exposure-10",
        "tiny/adm/s0/8/ancestral-5",
        "tiny/adm-ip/s0/8/ancestral-5",
        "tiny/adm-ip/s1/8/ancestral-5",
        "tiny/adm/s0/4/ancestral-5",
    }
    runs = {f"{model}/s{seed}" for model, seed in (("adm", 0), ("adm-ip", 0), ("adm-ip", 1))}
    assert {cell.directory for cell in cells.study("small")} == {
        "data/tiny",
        "features/tiny",
        "reference/tiny",
        *(f"halves/tiny/{samples}" for samples in (64, 48)),
        *(f"runs/tiny/{run}/{step}" for run in runs for step in (4, 8)),
        *(f"states/tiny/{run}/8" for run in runs),
        *(f"samples/{name}" for name in (*sets, "tiny/adm/s0/8/ancestral-4")),
        *(f"metrics/{name}" for name in sets),
        "tables/small/table1",
        "tables/small/table3",
        "tables/small",
        "figures/small/figure3",
        "figures/small/samples",
        "report/small",
    }
    assert set(cells.targets("small")) == {
        "report/small/index.html",
        "tables/small/summary.json",
        *(f"states/tiny/{run}/8/state.safetensors" for run in runs),
    }


def test_a_target_needs_only_its_own_cells(cells: Grid) -> None:
    needed = cells.needed(cells.cell("sample", **{**SET, "step": "4"}))
    assert [cell.directory for cell in needed] == [
        "data/tiny",
        f"{RUN_PATH}/4",
        "samples/tiny/adm-ip/s1/4/ancestral-5",
    ]


def every_study() -> list[tuple[Grid, str]]:
    known = grid.load(ROOT)
    return [(known, study) for study in known.studies.names]


@pytest.fixture(params=[pytest.param(pair, id=pair[1]) for pair in every_study()])
def study(request: pytest.FixtureRequest) -> tuple[Grid, str]:
    return request.param


def test_makers_come_before_users_and_nothing_comes_twice(study: tuple[Grid, str]) -> None:
    known, name = study
    made = {path for cell in known.imports(name) for path in cell.outputs}
    for cell in known.study(name):
        assert set(cell.inputs) <= made | {cell.bindings.get("raw")}
        assert not made & set(cell.outputs)
        made |= set(cell.outputs)


def test_maker_is_the_inverse_of_outputs(study: tuple[Grid, str]) -> None:
    known, name = study
    for cell in known.study(name):
        for path in cell.outputs:
            assert known.maker(path) == cell


def test_parameters_of_every_cell_stand_in_the_file(study: tuple[Grid, str]) -> None:
    known, name = study
    for cell in known.study(name):
        assert known.param_values(cell).keys() == set(cell.params)


@pytest.mark.parametrize(
    "path",
    ["raw/photos.zip", "params.yaml", "data/tiny/other.npy", "runs/tiny/adm/0/8/ema.safetensors", "data/images.npy"],
)
def test_a_file_of_no_cell_has_no_maker(cells: Grid, path: str) -> None:
    assert cells.maker(path) is None


def view_free(known: Grid) -> dict[str, tuple[Any, ...]]:
    """What both engines compare, of all cells but the views."""
    return {
        cell.directory: (cell.command, cell.inputs, cell.outputs, cell.params)
        for cell in known.study("small")
        if cell.stage.verb not in VIEWS
    }


TABLE = "tables.table3"


@pytest.mark.parametrize(
    ("edits", "added"),
    [
        ({f"{TABLE}.samplers": ["ancestral-5", "ancestral-7"]}, "metrics/tiny/adm/s0/8/ancestral-7"),
        ({"seeds.default": [0, 3]}, "metrics/tiny/adm/s3/8/ancestral-5"),
        ({f"{TABLE}.models": ["adm", "adm-ip", "ddim"]}, "states/tiny/ddim/s0/8"),
        (
            {f"{TABLE}.models": ["adm", "adm-ip", "new"], "models.new": {"family": "adm", "gamma": 0.3}},
            "runs/tiny/new/s0/4",
        ),
        ({f"{TABLE}.steps": [4, 8], f"{TABLE}.rows": ["model", "step"]}, "metrics/tiny/adm-ip/s1/4/ancestral-5"),
        ({"figures.figure3.samplers": ["exposure-20"]}, "metrics/tiny/adm/s0/4/exposure-20"),
    ],
)
def test_an_addition_changes_no_other_cell(tmp_path: Path, edits: dict[str, Any], added: str) -> None:
    raw = small()
    before = view_free(grid_of(tmp_path, raw))
    if "figures.figure3.samplers" in edits:  # its own cells may go; keep them by another table
        before = {k: v for k, v in before.items() if "adm/s0/4/ancestral-5" not in k}
    for key, value in edits.items():
        put(raw, key, value)
    after = view_free(grid_of(tmp_path, raw))
    assert added not in before
    assert added in after
    assert before.items() <= after.items()


def test_a_longer_run_adds_a_segment_and_moves_the_published_state(tmp_path: Path) -> None:
    raw = small()
    before = view_free(grid_of(tmp_path, raw))
    put(raw, "datasets.tiny.checkpoints", [4, 8, 16])
    assert view_free(grid_of(tmp_path, raw)) == before  # no table asks for it yet
    put(put(raw, f"{TABLE}.steps", [8, 16]), f"{TABLE}.rows", ["model", "step"])
    after = view_free(grid_of(tmp_path, raw))
    gone = before.keys() - after.keys()
    assert gone == {"states/tiny/adm/s0/8", "states/tiny/adm-ip/s0/8", "states/tiny/adm-ip/s1/8"}
    assert all(after[name] == value for name, value in before.items() if name not in gone)
    assert after["runs/tiny/adm/s0/16"][1] == ("data/tiny/images.npy", "runs/tiny/adm/s0/8/recipe.json")


def test_a_checkpoint_in_between_changes_the_inputs_of_the_segment_after_it_alone(tmp_path: Path) -> None:
    raw = small()
    before = view_free(grid_of(tmp_path, raw))
    after = view_free(grid_of(tmp_path, put(raw, "datasets.tiny.checkpoints", [4, 6, 8])))
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"runs/tiny/adm/s0/8", "runs/tiny/adm-ip/s0/8", "runs/tiny/adm-ip/s1/8"}


def test_a_key_that_is_not_written_out_is_named(tmp_path: Path) -> None:
    raw = drop(small(), "datasets.tiny.classifier")
    known = grid_of(tmp_path, raw)
    with pytest.raises(UserError) as caught:
        known.param_values(known.cell("reference", **TINY))
    said = f"{tmp_path}/studies/small/params.yaml datasets.tiny.classifier: write this key out"
    assert str(caught.value).startswith(said)
    values = known.param_values(known.cell("prepare", **TINY))
    assert values == {"datasets.tiny.source": raw["datasets"]["tiny"]["source"]}


@pytest.mark.parametrize(
    ("verb", "names", "said"),
    [
        ("prepare", {"dataset": "tony"}, "dataset 'tony' is in no study's params.yaml; did you mean 'tiny'?"),
        ("train", {**RUN, "model": "adx"}, "model 'adx' is not in studies/small/params.yaml; did you mean 'adm'?"),
        ("evaluate", {**SET, "model": "adx"}, "model 'adx' is not in studies/small/params.yaml; did you mean 'adm'?"),
        ("train", {**RUN, "step": "5"}, "step 5 is not one of datasets.tiny.checkpoints [4, 8]"),
        ("sample", {**SET, "step": "5"}, "step 5 is not one of datasets.tiny.checkpoints [4, 8]"),
        ("resume", {**RUN, "step": "-4"}, "step is '-4'; expected a whole number"),
        ("train", {**RUN, "seed": "one"}, "seed is 'one'; expected a whole number"),
        ("train", {**RUN, "seed": "01"}, "seed is '01'; expected a whole number, without leading zeros"),
        ("train", {**RUN, "seed": str(2**64)}, "seed is 18446744073709551616; use 0..2**64-1"),
        ("halves", {**TINY, "samples": "064"}, "samples is '064'; expected a whole number, without leading zeros"),
        ("halves", {**TINY, "samples": "1"}, "samples is 1; use 2 or more"),
        ("train", {**RUN, "step": "08"}, "step is '08'; expected a whole number, without leading zeros"),
        ("train", {**RUN, "seed": "\u00b2"}, "seed is '\u00b2'; expected a whole number"),
        (
            "sample",
            {**SET, "sampler": "ancestral-21"},
            "sampler ancestral-21 asks for T' = 21, more than T = 20 of tiny/",
        ),
        ("evaluate", {**SET, "sampler": "ancestral-21"}, "sampler ancestral-21 asks for T' = 21, more than T = 20 of"),
        ("sample", {**SET, "sampler": "ddim0-ddim11"}, "respacing 'ddim11': no integer stride keeps 11 of T=20 steps"),
        ("sample", {**SET, "sampler": "ancestral-05"}, "sampler 'ancestral-05': write it as 'ancestral-5'"),
        ("sample", {**SET, "sampler": "euler-5"}, "sampler 'euler-5' is unknown"),
        ("table", {"study": "smol", "table": "table3"}, "study 'smol' is not here, there is no "),
        (
            "table",
            {"study": "small", "table": "table2"},
            "table 'table2' is not in studies/small/params.yaml; did you",
        ),
        ("figure", {"study": "small", "figure": "table3"}, "figure 'table3' is not in studies/small/params.yaml; "),
    ],
)
def test_wildcards_that_name_nothing(cells: Grid, verb: str, names: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cells.cell(verb, **names)
    assert str(caught.value).replace(f"{cells.studies.root}/", "").startswith(said)
    assert "\n" not in str(caught.value)


def test_a_cell_is_made_once_and_refused_every_time(cells: Grid) -> None:
    names = {"dataset": "tiny", "model": "adm", "seed": "0", "step": "8"}
    assert cells.cell("train", **names) is cells.cell("train", **(names | {"seed": 0, "step": 8}))  # type: ignore[arg-type]
    assert cells.cell("resume", **names) is not cells.cell("train", **names)
    for _ in range(2):
        with pytest.raises(ConfigError, match="step 7 is not one of"):
            cells.cell("train", **(names | {"step": "7"}))
        with pytest.raises(ConfigError, match="asks for T' = 99"):
            cells.cell("sample", **names, sampler="ancestral-99")


def test_several_targets_need_what_each_needs(cells: Grid) -> None:
    targets = [cells.cell("report", study="small"), cells.cell("prepare", dataset="tiny")]
    together = cells.needed(*reversed(targets))
    assert together[0] == targets[1]
    assert {cell.directory for cell in together} == {cell.directory for cell in cells.needed(targets[0])}


def test_a_model_whose_family_the_data_set_lacks(tmp_path: Path) -> None:
    known = grid_of(tmp_path, drop(small(), "datasets.photos.families.ddpm"))
    with pytest.raises(ConfigError, match="datasets.photos.families.ddpm: missing; model ddim needs it"):
        known.cell("train", dataset="photos", model="ddim", seed="0", step="4")


def filled(template: str, item: dict[str, str]) -> str:
    """DVC's `${item.x}`, the only template that is used."""
    text = re.sub(r"\$\{item\.(\w+)\}", lambda match: item[match[1]], template)
    assert "${" not in text
    return text


def expanded(text: str) -> dict[str, dict[str, Any]]:
    """Address -> cmd, deps, params, outs (metrics among them) of a dvc.yaml, templates filled in."""
    found: dict[str, dict[str, Any]] = {}
    for name, stage in yaml.safe_load(text)["stages"].items():
        body = stage.get("do", stage)
        items = stage.get("foreach", {"": {}})
        for key, item in items.items():
            address = f"{name}@{key}" if "foreach" in stage else name
            assert address not in found
            found[address] = {
                "cmd": filled(body["cmd"], item),
                **{kind: [filled(path, item) for path in body.get(kind, [])] for kind in ("deps", "outs", "metrics")},
                "params": body.get("params", []),
                "wdir": body.get("wdir", "."),
            }
    return found


def test_dvc_files_say_what_the_cells_say(study: tuple[Grid, str]) -> None:
    known, name = study
    stages = expanded(dvc_files.render(known, name))
    cells = {dvc_files.address(cell): cell for cell in known.study(name)}
    assert stages.keys() - {"settings"} == cells.keys()
    assert len(cells) == len(known.study(name))
    for address, cell in cells.items():
        stage = stages[address]
        assert stage["cmd"] == cell.command
        assert stage["deps"] == [*cell.inputs, cache_keys.path_of(cell, name)]
        assert stage["params"] == []
        assert sorted(stage["outs"] + stage["metrics"]) == sorted(cell.outputs)
        shown = cell.stage.verb == "summary" and name == config.DEFAULT
        assert stage["metrics"] == (["tables/digits/summary.json"] if shown else [])
    stage = stages["settings"]
    assert stage["cmd"] == f"ipdiff settings --study {name}"
    named = {"params.yaml": stage["params"]} if name == config.DEFAULT else stage["params"][0]
    assert named == {str(config.path_of(name)): cache_keys.keys(cells.values())}
    assert set(stage["outs"]) == {cache_keys.path_of(cell, name) for cell in cells.values()}
    files = {path for cell in cells.values() for path in code_files(cell.stage.module, cell.rows, cell.stage.runs)}
    for path in files:
        assert len([dep for dep in stage["deps"] if path.is_relative_to(ROOT / dep)]) == 1
    for dep in stage["deps"]:
        assert any(path.is_relative_to(ROOT / dep) for path in files)
        assert not Path("ipdiff/pipeline").is_relative_to(dep)
    assert len(stage["deps"]) <= 20
    depth = len(dvc_files.path_of(name).parent.parts)
    assert {stage["wdir"] for stage in stages.values()} == {"/".join([".."] * depth) or "."}


def test_cells_share_settings_where_code_and_parameters_are_the_same(study: tuple[Grid, str]) -> None:
    known, name = study
    texts = cache_keys.texts(known, name)
    for cell in known.study(name):
        chosen = json.loads(texts[cache_keys.path_of(cell, name)])
        assert chosen == {"code": cell.code, "params": known.param_values(cell)}
    keys = cache_keys.keys(known.study(name))
    assert not [key for key in keys if any(key.startswith(f"{other}.") for other in keys)]
    for cell in known.study(name):
        assert all(any(f"{key}.".startswith(f"{other}.") for other in keys) for key in cell.params)


def test_cells_of_a_group_have_as_many_dependencies(study: tuple[Grid, str]) -> None:
    known, name = study
    counts: dict[str, set[int]] = {}
    for cell in known.study(name):
        if not cell.exact_inputs:
            counts.setdefault(dvc_files.stage_name(cell), set()).add(len(cell.inputs))
    assert all(len(found) == 1 for found in counts.values())
    assert "sample" in counts


def test_addresses_say_which_variant_it_is(cells: Grid) -> None:
    for verb, names, address in (
        ("prepare", TINY, "prepare@tiny"),
        ("prepare", {"dataset": "photos"}, "prepare_raw@photos"),
        ("train", FIRST, "train@tiny-adm-ip-s1-4"),
        ("train", RUN, "continue@tiny-adm-ip-s1-8"),
        ("sample", SET, "sample@tiny-adm-ip-s1-8-ancestral-5"),
        ("sample", EXPOSED, "expose@tiny-adm-ip-s1-8-exposure-10"),
        ("table", {"study": "small", "table": "table3"}, "table_table3"),
        ("report", {"study": "small"}, "report"),
    ):
        assert dvc_files.address(cells.cell(verb, **names)) == address


def test_two_cells_of_one_address_are_refused_not_lost(tmp_path: Path) -> None:
    raw = small()
    raw["datasets"]["tiny-adm"] = raw["datasets"]["tiny"]
    raw["models"]["ip"] = raw["models"]["adm-ip"]
    table = {**raw["tables"]["table1"], "datasets": ["tiny-adm"], "models": ["ip"]}
    table2 = {**table, "datasets": ["tiny"], "models": ["adm-ip"]}
    raw |= {"tables": {"a": table, "b": table2}}
    with pytest.raises(ConfigError, match=r"have the same address in DVC, tiny-adm-ip-s0-8; rename"):
        dvc_files.render(grid_of(tmp_path, raw), "small")


def test_the_text_is_the_same_every_time_and_has_no_anchors(tmp_path: Path, study: tuple[Grid, str]) -> None:
    _, name = study
    text = dvc_files.render(grid.load(ROOT), name)
    assert text == dvc_files.render(grid.load(ROOT), name)
    assert not [token for token in yaml.scan(text) if isinstance(token, yaml.AnchorToken | yaml.AliasToken)]
    assert all(len(line) < 400 for line in text.splitlines())


def test_an_edited_or_missing_file_is_stale_and_writing_repairs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = small()
    known = grid_of(tmp_path, raw)
    path = dvc_files.path_of("small")
    assert path == Path("studies/small/dvc.yaml")
    assert path in generated_files.stale(known)
    assert path in generated_files.write(known)
    assert generated_files.stale(known) == generated_files.write(known) == []
    good = path.read_text()

    path.write_text(good.replace("ancestral-5", "ancestral-6", 1))
    assert generated_files.stale(known) == [path]
    generated_files.write(known)
    assert path.read_text() == good

    longer = grid_of(tmp_path, put(raw, f"{TABLE}.samplers", ["ancestral-5", "ancestral-7"]))
    assert generated_files.stale(longer) == [path]
    valued = grid_of(tmp_path, put(small(), "datasets.tiny.families.adm.training.lr", 0.5))
    assert generated_files.stale(valued) == []


def test_only_the_default_study_lies_in_the_root() -> None:
    assert dvc_files.path_of(config.DEFAULT) == Path("dvc.yaml")


def test_a_cell_is_named_by_its_directory(study: tuple[Grid, str]) -> None:
    known, name = study
    cells: list[Cell] = known.study(name)
    assert len({cell.directory for cell in cells}) == len({cell.command for cell in cells}) == len(cells)
