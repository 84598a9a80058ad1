"""Both engines really run the mini study, from nothing, and make the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from workflow.conftest import run

from ipdiff import grid
from ipdiff.artifact import file_digest

pytestmark = pytest.mark.workflow


def outputs(project: Path) -> dict[str, str]:
    """Digests of all outputs of the mini study."""
    cells = grid.load(project / "params.yaml").study("mini")
    return {path: file_digest(project / path) for cell in cells for path in cell.outputs}


def test_both_engines_make_the_same_bytes(by_snakemake: Path, by_dvc: Path) -> None:
    assert outputs(by_snakemake) == outputs(by_dvc)


def test_snakemake_has_nothing_left_to_do(by_snakemake: Path) -> None:
    assert "Nothing to be done" in run(by_snakemake, "snakemake", "--cores", "2", "-n", "mini").stdout


def test_dvc_has_nothing_left_to_do_and_git_stays_clean(by_dvc: Path) -> None:
    assert "up to date" in run(by_dvc, "dvc", "status", "workflow/mini/dvc.yaml").stdout
    changed = run(by_dvc, "git", "status", "--short").stdout.split()
    assert changed == ["??", "workflow/mini/dvc.lock"]


def test_a_changed_strength_makes_only_its_own_cells_stale(by_snakemake: Path) -> None:
    params = by_snakemake / "params.yaml"
    before = params.read_text()
    start = before.index("digits_mini:")
    params.write_text(before[:start] + before[start:].replace("gamma: 0.1", "gamma: 0.15", 1))
    try:
        said = run(by_snakemake, "snakemake", "--cores", "2", "-n", "mini", "--printshellcmds").stdout
        planned = {line.strip().partition(" > ")[0].removeprefix("Shell command: ") for line in said.splitlines()}
        cells = grid.load(params).study("mini")
    finally:
        params.write_text(before)
    stale = {cell.command for cell in cells if cell.command in planned}
    expected = {
        cell.command for cell in cells
        if "adm-ip" in cell.directory or cell.stage.verb in ("table", "figure", "report")
    }  # fmt: skip
    assert stale == expected


def test_a_table_alone_needs_only_its_own_cells(by_snakemake: Path) -> None:
    known = grid.load(by_snakemake / "params.yaml")
    target = known.cell("table", study="mini", table="table1")
    said = run(by_snakemake, "snakemake", "--cores", "2", "-n", "--forceall", "--printshellcmds", target.outputs[0])
    planned = [line for line in said.stdout.splitlines() if "ipdiff " in line]
    assert len(planned) == len(known.needed(target))
    assert not any("--model adm " in line for line in planned)


def test_metrics_are_readable_by_dvc(by_dvc: Path) -> None:
    shown = json.loads(run(by_dvc, "dvc", "metrics", "show", "--json").stdout)
    found = [name for name in shown[""]["data"] if "digits_mini" in name]
    assert len(found) == 3
