"""Both engines really run the mini study, from nothing, and then agree on what there is and what is to be done."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from workflow.engines import MINI, cells, changed, damaged, outputs, planned, run, stale

pytestmark = pytest.mark.workflow


def test_both_engines_make_the_same_bytes(by_snakemake: Path, by_dvc: Path) -> None:
    assert outputs(by_snakemake) == outputs(by_dvc)


def test_the_environment_decides_no_byte(by_snakemake: Path, project: Path) -> None:
    run(
        project, "snakemake", "--cores", "1", "mini",
        OMP_NUM_THREADS="4", OPENBLAS_NUM_THREADS="2", MKL_NUM_THREADS="3", MALLOC_PERTURB_="7",
        TZ="Asia/Tokyo", LC_ALL="C", PYTHONHASHSEED="5",
    )  # fmt: skip
    assert outputs(project) == outputs(by_snakemake)


def test_after_snakemake_dvc_has_everything(by_snakemake: Path) -> None:
    assert "up to date" in run(by_snakemake, "dvc", "status", MINI).stdout
    text = (by_snakemake / "studies/mini/dvc.lock").read_text()
    assert "&id" not in text  # anchors would make the diff of one cell a diff of many
    lock = yaml.safe_load(text)["stages"]
    recorded = {out["path"]: out["md5"] for stage in lock.values() for out in stage["outs"]}
    made = outputs(by_snakemake)
    assert {path: recorded[path] for path in made} == made
    for digest in made.values():
        assert (by_snakemake / ".dvc/cache/files/md5" / digest[:2] / digest[2:]).is_file()
    assert damaged(by_snakemake) == []


def test_what_a_committed_lock_names_goes_into_an_empty_cache(by_snakemake: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(by_snakemake)
    lock = (project / "studies/mini/dvc.lock").read_bytes()
    for name in (".snakemake", ".dvc/cache", ".dvc/tmp", *{Path(path).parts[0] for path in outputs(project)}):
        shutil.rmtree(project / name, ignore_errors=True)
    run(project, "snakemake", "--cores", "2", "mini")
    assert "up to date" in run(project, "dvc", "status", MINI).stdout
    assert (project / "studies/mini/dvc.lock").read_bytes() == lock
    assert damaged(project) == []


def test_after_a_comment_in_the_code_a_run_of_snakemake_leaves_dvc_nothing_to_do(
    by_snakemake: Path, copy: Callable[[Path], Path]
) -> None:
    project = copy(by_snakemake)
    with (project / "ipdiff/metrics/evaluate.py").open("a") as stream:
        stream.write("# A comment.\n")
    assert "settings" in run(project, "dvc", "status", MINI).stdout
    run(project, "snakemake", "--cores", "1", "mini")
    assert "up to date" in run(project, "dvc", "status", MINI).stdout


def test_after_another_list_of_the_code_a_sync_leaves_dvc_nothing_to_do(
    by_snakemake: Path, copy: Callable[[Path], Path]
) -> None:
    project = copy(by_snakemake)
    path = project / "studies/mini/dvc.lock"
    good = path.read_bytes()
    lock = yaml.safe_load(good)
    del lock["stages"]["settings"]["deps"][0]  # of before a stage came to import that file
    lock["stages"]["evaluate@gone"] = lock["stages"]["settings"]  # of a cell that no table asks for any more
    path.write_text(yaml.safe_dump(lock, sort_keys=False))
    assert "settings" in run(project, "dvc", "status", MINI).stdout
    run(project, "ipdiff", "sync", "--record-only")
    assert "up to date" in run(project, "dvc", "status", MINI).stdout
    assert path.read_bytes() == good


def test_after_snakemake_dvc_runs_nothing(by_snakemake: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(by_snakemake)
    before = outputs(project)
    said = run(project, "dvc", "repro", MINI)
    assert "Running stage" not in said.stdout + said.stderr
    assert outputs(project) == before
    assert planned(project) == set()


def test_after_dvc_snakemake_has_nothing_to_do(by_dvc: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(by_dvc)
    assert planned(project) == set()
    shutil.rmtree(project / ".snakemake")
    scramble_times(project)
    assert planned(project) == set()
    scramble_times(project)
    assert planned(project) == set()
    assert stale(project) == {}
    assert "up to date" in run(project, "dvc", "status", MINI).stdout
    changed_files = run(project, "git", "status", "--short").stdout.split()
    assert changed_files == ["??", "studies/mini/dvc.lock"]


def scramble_times(project: Path) -> None:
    """Give all outputs times in no order, as a pull does."""
    order = random.Random(0)
    for cell in cells(project).values():
        for path in cell.outputs:
            time = 1_700_000_000 + order.randrange(1_000_000)
            os.utime(project / path, (time, time))


def test_after_dvc_both_see_a_changed_strength(by_dvc: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(by_dvc)
    params = project / "studies/mini/params.yaml"
    params.write_text(params.read_text().replace("gamma: 0.1", "gamma: 0.15", 1))
    predicted = stale(project)
    assert {name for name, state in predicted.items() if state == "changed"} == {
        *("runs/digits_mini/adm-ip/s0/4", "runs/digits_mini/adm-ip/s0/8"),
        *("tables/mini/table1", "tables/mini/table3", "figures/mini/figure3", "figures/mini/samples"),  # name it
    }
    assert planned(project) == changed(project) == predicted.keys()


def test_metrics_are_readable_by_dvc(by_dvc: Path) -> None:
    file = "tables/mini/summary.json"
    shown = json.loads(run(by_dvc, "dvc", "metrics", "show", "--json", file).stdout)
    assert shown[""]["data"][file]["data"] == json.loads((by_dvc / file).read_text())


def test_a_dvc_yaml_that_was_not_written_anew_is_one_line_when_recording(project: Path) -> None:
    run(project, "ipdiff", "prepare", "--dataset", "digits_mini")
    written = yaml.safe_load((project / MINI).read_text())
    del written["stages"]["prepare"]
    (project / MINI).write_text(yaml.safe_dump(written))
    said = run(project, "ipdiff", "sync", "--record-only", code=2)
    assert said.stderr == (
        f"ipdiff: {MINI} has no stage prepare@digits_mini; run `ipdiff grid --write`, then `ipdiff sync`\n"
    )
