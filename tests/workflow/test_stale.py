"""What an edit makes stale, and what is made alone: the cells the grid predicts, and the same ones in both engines."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from workflow.engines import MINI, cells, changed, damaged, outputs, planned, run, stale

from ipdiff.pipeline import grid
from ipdiff.pipeline.engines import dvc_files

pytestmark = pytest.mark.workflow

Edit = Callable[[str], str]


def replacing(old: str, new: str, after: str = "  digits_mini:") -> Edit:
    """Replace the first occurrence of a text behind another."""

    def edited(text: str) -> str:
        start = text.index(old, text.index(after))
        return text[:start] + new + text[start + len(old) :]

    return edited


TABLE3 = "title: FID and sFID"
LONGER = replacing("    - 8\n", "    - 8\n    - 12\n", "checkpoints:")


def with_another_dataset(text: str) -> str:
    """The same digits under a second name, in one table."""
    start, end = text.index("  digits_mini:"), text.index("\nmodels:")
    text = text[:end] + text[start:end].replace("digits_mini:", "digits_more:", 1) + text[end:]
    text = replacing("- digits_mini\n", "- digits_mini\n    - digits_more\n", TABLE3)(text)
    return replacing("rows:\n", "rows:\n    - dataset\n", TABLE3)(text)


NEW_TABLE = """\
  extra:
    title: Extra
    datasets: [digits_mini]
    models: [adm]
    samplers: [exposure-10]
    metrics: [fid]
    rows: [model]
    columns: [sampler]

figures:
"""
EDITS = {
    "one gamma": (
        replacing("gamma: 0.1", "gamma: 0.2", "strengths:"),
        ".*/adm-ip/.*|tables/mini(/.*)?|figures/mini/(figure3|samples)|report/mini",
    ),
    "one metric setting": (
        replacing("features: 16", "features: 12"),
        "(features|reference|neighbours|halves|metrics)/.*|tables/mini(/.*)?|figures/mini/figure3|report/mini",
    ),
    "one T'": (
        replacing("- ancestral-5\n", "- ancestral-5\n    - ancestral-10\n", TABLE3),
        "(samples|metrics)/.*/ancestral-10|tables/mini(/table3)?|report/mini",
    ),
    "a checkpoint at the end": (
        lambda text: replacing("default: 8", "default: 12", "final_step:")(LONGER(text)),
        "(runs|states|analysis)/.*/12|(samples|metrics|drift)/.*/12/.*|(tables|figures|report)/mini.*",
    ),
    "a checkpoint that nothing asks for": (LONGER, "nothing"),
    "a model": (
        lambda text: replacing("- adm-ip\n", "- adm-ip\n    - adm-ip-g02\n", TABLE3)(
            replacing("\ntables:", "  adm-ip-g02:\n    family: adm\n    gamma: 0.2\n\ntables:")(text)
        ),
        ".*/adm-ip-g02/.*|tables/mini(/table3)?|report/mini",
    ),
    "a data set": (with_another_dataset, ".*/digits_more(/.*)?|tables/mini(/table3)?|report/mini"),
    "a table": (
        replacing("figures:\n", NEW_TABLE),
        "(samples|metrics)/digits_mini/adm/.*/exposure-10|tables/mini(/extra)?|report/mini",
    ),
}


def edit(path: Path, how: Edit) -> None:
    path.write_text(how(path.read_text()))


def agree(project: Path, expected: str) -> None:
    """The grid predicts the cells of an expression, and both engines say the same."""
    predicted = stale(project).keys()
    assert predicted == {name for name in cells(project) if re.fullmatch(expected, name)}
    assert planned(project) == predicted
    assert changed(project) == predicted


LONG = ("one metric setting", "one T'", "a model", "a checkpoint that nothing asks for")
"""Edits whose like is among the others: they are made with the slow tests."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in EDITS]
)
def test_an_edit_of_params_makes_the_expected_cells_stale(
    name: str, by_snakemake: Path, copy: Callable[[Path], Path]
) -> None:
    project = copy(by_snakemake)
    how, expected = EDITS[name]
    edit(project / "studies/mini/params.yaml", how)
    run(project, "ipdiff", "grid", "--write")
    agree(project, expected)


def test_an_edit_of_code_and_its_taking_back(by_snakemake: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(by_snakemake)
    code = project / "ipdiff/metrics/spec.py"
    edit(code, replacing("DIGITS = 10", "DIGITS = 9", ""))
    agree(project, "(halves|metrics)/.*|tables/mini(/.*)?|figures/mini/figure3|report/mini")
    edit(code, replacing("DIGITS = 9", "DIGITS = 10", ""))
    agree(project, "nothing")


def test_comments_and_docstrings_change_nothing(by_snakemake: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(by_snakemake)
    edit(project / "ipdiff/spec.py", replacing("class ", "# A comment.\nclass ", ""))
    edit(project / "ipdiff/rng.py", replacing('"""', '"""Another docstring. ', ""))
    edit(project / "ipdiff/metrics/spec.py", replacing("DIGITS = 10", "DIGITS  =  10  # ten", ""))
    assert stale(project) == {}
    assert planned(project) == set()
    ran = run(project, "dvc", "repro", MINI).stdout  # DVC goes by the files: it asks for the code's digests again
    assert set(re.findall(r"Running stage '.*:(.*)'", ran)) <= {dvc_files.SETTINGS}
    assert changed(project) == set()


@pytest.mark.slow
def test_after_an_edit_of_code_both_engines_make_the_same(by_snakemake: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(by_snakemake)
    first = outputs(project)
    edit(project / "ipdiff/metrics/spec.py", replacing("DIGITS = 10", "DIGITS = 9", ""))
    run(project, "dvc", "repro", MINI)
    second = outputs(project)
    assert second != first
    agree(project, "nothing")
    edit(project / "ipdiff/metrics/spec.py", replacing("DIGITS = 9", "DIGITS = 10", ""))
    run(project, "snakemake", "--cores", "2", "mini")
    assert outputs(project) == first
    agree(project, "nothing")
    edit(project / "ipdiff/metrics/spec.py", replacing("DIGITS = 10", "DIGITS = 9", ""))
    run(project, "snakemake", "--cores", "2", "mini")
    assert outputs(project) == second
    agree(project, "nothing")
    assert damaged(project) == []


def test_deleted_outputs_come_back_with_the_same_bytes(by_snakemake: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(by_snakemake)
    before = outputs(project)
    samples = project / "samples/digits_mini/adm/s0/8/ancestral-5/samples.npz"
    metrics = project / "metrics/digits_mini/adm/s0/8/ancestral-5/metrics.json"
    alone = {str(path.parent.relative_to(project)) for path in (samples, metrics)}

    samples.unlink()
    metrics.unlink()
    assert stale(project) == dict.fromkeys(alone, "missing")
    assert planned(project) == set()  # nobody asks for them
    target = str(metrics.relative_to(project))
    assert planned(project, target) == alone
    run(project, "snakemake", "--cores", "2", target)
    assert outputs(project) == before
    assert planned(project) == changed(project) == set()

    samples.unlink()
    metrics.unlink()
    run(project, "dvc", "repro", MINI)
    assert outputs(project) == before
    assert planned(project) == planned(project, target) == set()


def test_a_table_alone_needs_only_its_own_cells(by_snakemake: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(by_snakemake)
    before = outputs(project)
    for path in before:
        (project / path).unlink()
    known = grid.load(project)
    target = known.cell("table", study="mini", table="table1")
    needed = {cell.directory for cell in known.needed(target)}
    assert len(needed) < len(cells(project)) / 2
    assert planned(project, target.outputs[0]) == needed
    said = run(project, "dvc", "repro", f"{MINI}:{dvc_files.address(target)}").stdout
    assert "Running stage" not in said  # the cache has it all
    made = {path for path in before if (project / path).exists()}
    assert made == {path for cell in known.needed(target) for path in cell.outputs}
    assert planned(project, target.outputs[0]) == set()
    assert planned(project) == cells(project).keys() - needed


STAND_INS = """
import sys
from ipdiff.pipeline import grid, jobs

def write(job, made):
    for name in job.cell.stage.files:
        (made.staging / name).write_text(f"{job.cell.directory}/{name}")

jobs.RUN = dict.fromkeys(jobs.RUN, write)
for cell in grid.load().study(sys.argv[1]):
    jobs.make(cell)
"""
"""Makes a study's artifacts without their true contents, which would take minutes: no engine looks into them."""


def test_one_missing_metric_out_of_many_is_made_alone(project: Path) -> None:
    run(project, sys.executable, "-c", STAND_INS, "digits")
    run(project, "ipdiff", "sync")
    measured = [cell for cell in cells(project, "digits").values() if cell.stage.verb == "evaluate"]
    assert len(measured) > 30
    missing = measured[len(measured) // 2]
    (project / missing.outputs[0]).unlink()
    assert stale(project, "digits") == {missing.directory: "missing"}
    assert planned(project, missing.outputs[0], study="digits") == {missing.directory}
    said = run(project, "dvc", "repro", dvc_files.address(missing)).stdout
    assert re.findall(r"Stage '(.*)' is cached", said) == [dvc_files.address(missing)]
    assert "Running stage" not in said
    assert stale(project, "digits") == {}
