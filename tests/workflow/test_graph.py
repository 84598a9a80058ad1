"""One graph behind two engines: Snakemake's resolved jobs and DVC's resolved stages are the grid's cells."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from workflow.engines import dvc_graph, snakemake_graph

from ipdiff.pipeline import config, grid
from ipdiff.pipeline.engines import dvc_files
from ipdiff.pipeline.grid import cache_keys

ROOT = Path(__file__).parents[2]
STUDIES = config.Studies(ROOT).names

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def cells() -> dict[str, grid.Cell]:
    """Cells of all studies by their command."""
    known = grid.load(ROOT)
    return {cell.command: cell for study in STUDIES for cell in known.study(study)}


def test_snakemake_resolves_the_grid(cells: dict[str, grid.Cell], project: Path) -> None:
    given = {path for study in STUDIES for cell in grid.load(ROOT).imports(study) for path in cell.outputs}
    for path in given | {cell.bindings["raw"] for cell in cells.values() if "raw" in cell.bindings}:
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).touch()
    jobs = {job["command"]: job for job in snakemake_graph(project, *STUDIES)}
    assert jobs.keys() == cells.keys()
    for command, job in jobs.items():
        cell = cells[command]
        assert job["inputs"] == sorted(cell.inputs), command
        assert job["outputs"] == sorted(cell.outputs), command
        assert sorted(job["params"]) == sorted(set(cell.params)), command
        assert job["code"] == cell.code, command


def test_dvc_resolves_the_grid(cells: dict[str, grid.Cell]) -> None:
    stages = {stage["cmd"]: stage for stage in dvc_graph(ROOT) if not stage["cmd"].startswith("ipdiff settings")}
    assert stages.keys() == cells.keys()
    for command, stage in stages.items():
        cell = cells[command]
        study = Path(stage["address"].partition(":")[0]).parent.name if ":" in stage["address"] else "digits"
        chosen = cache_keys.path_of(cell, study or "digits")
        assert sorted(stage["deps"]) == sorted([*cell.inputs, chosen]), command
        assert sorted(str(Path(out).relative_to(ROOT)) for out in stage["outs"]) == sorted(cell.outputs), command
        assert stage["params"] == [], command
        assert Path(stage["wdir"]) == ROOT, command
        assert stage["address"].rpartition(":")[2] == dvc_files.address(cell), command


def test_the_default_target_is_the_digits_study_from_either_snakefile() -> None:
    wanted = {cell.command for cell in grid.load(ROOT).study(config.DEFAULT)}
    for arguments in ([], ["-s", "workflow/Snakefile"]):
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", "-n", "--forceall", "--printshellcmds", *arguments],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        lines = (done.stdout + done.stderr).splitlines()
        commands = {line.partition("ATTEMPT=1 ")[2].partition(" > ")[0] for line in lines}
        assert wanted <= commands


def test_a_typing_error_in_params_ends_snakemake_with_one_line_and_code_2(tmp_path: Path) -> None:
    for name in ("Snakefile", "workflow", "ipdiff", "profiles"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("strengths:", "strenghts:", 1))
    done = subprocess.run([sys.executable, "-m", "snakemake", "-n"], cwd=tmp_path, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if "params.yaml" in line]
    assert done.returncode == 2
    assert len(said) == 1
    assert "did you mean 'strengths'?" in said[0]
    assert "Traceback" not in done.stderr
