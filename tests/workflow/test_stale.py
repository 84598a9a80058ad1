"""What an edit makes stale: the cells the grid predicts, and the same ones in both engines."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from workflow.engines import MINI, cells, changed, damaged, outputs, planned, run, stale

from ipdiff import dvcfile, grid

pytestmark = [pytest.mark.workflow, pytest.mark.slow]

VIEWS = "tables/mini/table3|figures/mini/figure3|report/mini"
ALL_VIEWS = "tables/mini/.*|figures/mini/.*|report/mini"
AFTER_SAMPLES = f"metrics/.*|tables/mini/.*|{VIEWS}"
EDITS = {
    "a strength": ("strengths: {gamma: 0.1}", "strengths: {gamma: 0.2}", f".*/adm-ip/.*|{ALL_VIEWS}"),
    "a metric setting": (
        "classifier: {width: 8, features: 16,",
        "classifier: {width: 8, features: 12,",
        f"features/.*|reference/.*|{AFTER_SAMPLES}",
    ),
    "a sampling setting": ("num_samples: 64", "num_samples: 96", f"samples/.*|metrics/.*|{ALL_VIEWS}"),
    "one T'": (
        "samplers: [ancestral-5]\n        metrics",
        "samplers: [ancestral-5, ancestral-10]\n        metrics",
        "(samples|metrics)/.*/ancestral-10|tables/mini/table3|report/mini",
    ),
    "a checkpoint that nothing asks for": ("checkpoints: [4, 8]", "checkpoints: [4, 8, 12]", "nothing"),
    "a last checkpoint": (
        "checkpoints: [4, 8]\n    final_step: {default: 8}",
        "checkpoints: [4, 8, 12]\n    final_step: {default: 12}",
        f"(runs|states)/.*/12|(samples|metrics)/.*/12/.*|{ALL_VIEWS}",
    ),
    # a weakness: the state at 8 is the same either way, but its segment now goes on from 6, and its recipe says so
    "a checkpoint in the middle": (
        "checkpoints: [4, 8]",
        "checkpoints: [4, 6, 8]",
        f"runs/.*/(6|8)|states/.*|(samples|metrics)/.*|{ALL_VIEWS}",
    ),
    "a model": (
        "models: [adm, adm-ip]\n        samplers: [ancestral-5]\n        metrics",
        "models: [adm, adm-ip, adm-ip-g02]\n        samplers: [ancestral-5]\n        metrics",
        ".*/adm-ip-g02/.*|tables/mini/table3|report/mini",
    ),
    "a seed": ("seeds: {default: [0]}", "seeds: {default: [0, 1]}", f".*/s1/.*|{ALL_VIEWS}"),
    "a table": (
        "    figures:\n",
        "      extra: {title: Extra, datasets: [digits_mini], models: [adm], samplers: [exposure-10], metrics: [fid],"
        " rows: [model], columns: [sampler]}\n    figures:\n",
        "(samples|metrics)/digits_mini/adm/.*/exposure-10|tables/mini/extra|report/mini",
    ),
}


def edit(path: Path, old: str, new: str, after: str = "") -> None:
    """Replace the first occurrence of a text behind another."""
    text = path.read_text()
    start = text.index(old, text.index(after))
    path.write_text(text[:start] + new + text[start + len(old) :])


@pytest.mark.parametrize(("name", "made"), list(zip(EDITS, ["by_snakemake", "by_dvc"] * 5, strict=True)))
def test_an_edit_of_params_makes_the_expected_cells_stale(
    name: str, made: str, request: pytest.FixtureRequest, copy: Callable[[Path], Path]
) -> None:
    project = copy(request.getfixturevalue(made))
    old, new, expected = EDITS[name]
    edit(
        project / "params.yaml",
        old,
        new,
        "  mini:" if name in ("one T'", "a model", "a seed", "a table") else "  digits_mini:",
    )
    run(project, "ipdiff", "grid", "--write")
    agree(project, expected)


def agree(project: Path, expected: str) -> None:
    """The grid predicts the cells of an expression, and both engines say the same."""
    predicted = stale(project)
    assert predicted.keys() == {name for name in cells(project) if re.fullmatch(expected, name)}
    assert planned(project) == predicted.keys()
    direct = {dvcfile.address(cells(project)[name]) for name, state in predicted.items() if state == "changed"}
    missing = {dvcfile.address(cells(project)[name]) for name, state in predicted.items() if state == "missing"}
    said = changed(project)
    assert direct | missing <= said
    assert all(below_missing(project, address, predicted) for address in said - direct - missing)


def below_missing(project: Path, address: str, predicted: dict[str, str]) -> bool:
    """True if a cell reads a file that is missing: DVC names it, too."""
    known = grid.load(project / "params.yaml")
    cell = next(cell for cell in cells(project).values() if dvcfile.address(cell) == address)
    makers = [maker for path in cell.inputs if (maker := known.maker(path))]
    return any(predicted.get(maker.directory) == "missing" for maker in makers)


def test_comments_and_docstrings_change_nothing(by_snakemake: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(by_snakemake)
    edit(project / "ipdiff/spec.py", "class ", "# A comment.\nclass ")
    edit(project / "ipdiff/rng.py", '"""', '"""Another docstring. ')
    edit(project / "ipdiff/evaluate.py", "DIGITS = 10", "DIGITS  =  10  # ten")
    assert stale(project) == {}
    assert planned(project) == set()
    assert changed(project) == set()
    ran = run(project, "dvc", "repro", MINI).stdout
    assert set(re.findall(r"Running stage '.*:(.*)'", ran)) <= {f"code-{verb}" for verb in grid.STAGES}
    assert "up to date" in run(project, "dvc", "status", MINI).stdout


def test_an_edit_of_code_and_its_taking_back(by_snakemake: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(by_snakemake)
    first = outputs(project)
    edit(project / "ipdiff/evaluate.py", "DIGITS = 10", "DIGITS = 9")
    measured = f"metrics/.*|tables/mini/.*|{VIEWS}"
    run(project, "dvc", "repro", "--single-item", f"{MINI}:code-evaluate")
    agree(project, measured)

    run(project, "dvc", "repro", MINI)
    second = outputs(project)
    assert planned(project) == set()
    edit(project / "ipdiff/evaluate.py", "DIGITS = 9", "DIGITS = 10")  # as in Snakemake's own records
    run(project, "dvc", "repro", "--single-item", f"{MINI}:code-evaluate")
    agree(project, measured)

    run(project, "snakemake", "--cores", "2", "mini")
    assert outputs(project) == first
    edit(project / "ipdiff/evaluate.py", "DIGITS = 10", "DIGITS = 9")
    run(project, "snakemake", "--cores", "2", "mini")
    assert outputs(project) == second != first
    assert "up to date" in run(project, "dvc", "status", MINI).stdout
    assert damaged(project) == []


@pytest.mark.parametrize("made", ["by_snakemake", "by_dvc"])
def test_deleted_outputs_come_back_with_the_same_bytes(
    made: str, request: pytest.FixtureRequest, copy: Callable[[Path], Path]
) -> None:
    project = copy(request.getfixturevalue(made))
    before = outputs(project)
    samples = project / "samples/digits_mini/adm/s0/8/ancestral-5/samples.npz"
    metrics = project / "metrics/digits_mini/adm/s0/8/ancestral-5/metrics.json"

    samples.unlink()  # nobody asks for it
    assert stale(project) == {str(samples.parent.relative_to(project)): "missing"}
    assert planned(project) == set()
    metrics.unlink()
    target = str(metrics.relative_to(project))
    alone = {"samples/digits_mini/adm/s0/8/ancestral-5", "metrics/digits_mini/adm/s0/8/ancestral-5"}
    assert planned(project, target) == alone
    run(project, "snakemake", "--cores", "2", target)
    assert outputs(project) == before
    assert planned(project) == set()
    assert "up to date" in run(project, "dvc", "status", MINI).stdout

    samples.unlink()
    metrics.unlink()
    run(project, "dvc", "repro", MINI)
    assert outputs(project) == before
    assert planned(project) == set()


def test_one_metric_is_made_alone(by_snakemake: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(by_snakemake)
    metrics = project / "metrics/digits_mini/adm/s0/8/ancestral-5/metrics.json"
    metrics.unlink()
    assert planned(project, str(metrics.relative_to(project))) == {str(metrics.parent.relative_to(project))}
    said = run(project, "dvc", "repro", f"{MINI}:evaluate@digits_mini-adm-s0-8-ancestral-5").stdout
    assert "Running stage" not in said  # it comes from the cache
    assert metrics.exists()


def test_a_table_alone_needs_only_its_own_cells(project: Path) -> None:
    known = grid.load(project / "params.yaml")
    target = known.cell("table", study="mini", table="table1")
    needed = {cell.directory for cell in known.needed(target)}
    assert len(needed) == 8
    assert planned(project, target.outputs[0]) == needed
    run(project, "dvc", "repro", f"{MINI}:{dvcfile.address(target)}")
    assert {name for name, cell in cells(project).items() if (project / cell.outputs[-1]).exists()} == needed
    assert planned(project, target.outputs[0]) == set()
    assert planned(project) == cells(project).keys() - needed
