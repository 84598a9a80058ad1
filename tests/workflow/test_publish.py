"""What a clone can read without a pull, and what another machine is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from workflow.engines import cells, run

pytestmark = pytest.mark.workflow


def test_a_study_is_published_and_compared(by_snakemake: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(by_snakemake)
    run(project, "ipdiff", "publish", "mini")
    folder = project / "published/mini"
    metrics = json.loads((folder / "metrics.json").read_text())
    made = [cell for cell in cells(project).values() if cell.stage.verb == "evaluate"]
    assert metrics == {
        cell.directory: {
            **json.loads((project / cell.outputs[0]).read_text()),
            **json.loads((project / cell.outputs[1]).read_text())["measured"],
        }
        for cell in made
    }
    assert all(of["model"] in ("adm", "adm-ip") and of["features"] == "classifier" for of in metrics.values())
    table = "tables/mini/table3/table.md"
    assert (folder / "tables/table3.md").read_bytes() == (project / table).read_bytes()
    assert (folder / "figures/figure3.png").exists()
    run(project, "git", "add", "published", "studies/mini/dvc.lock")
    run(project, "git", "commit", "--quiet", "-m", "published")
    said = run(project, "ipdiff", "verify", "--against", "HEAD", "--study", "mini").stdout.splitlines()
    total = len(cells(project))
    assert said[-2:] == [
        f"{total} of {total} artifacts are byte-identical to those of HEAD; 0 differ, 0 only here, 0 only there",
        "same machine type and versions",
    ]
    receipts = folder / "receipts.json"
    theirs = {name: {**receipt, "cpu": "another"} for name, receipt in json.loads(receipts.read_text()).items()}
    receipts.write_text(json.dumps(theirs))
    run(project, "git", "commit", "--quiet", "--all", "-m", "of another machine")
    said = run(project, "ipdiff", "verify", "--against", "HEAD", "--study", "mini").stdout
    assert "machines differ in cpu: " in said
    assert "another there" in said


def test_what_does_not_hold_is_not_published(by_snakemake: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(by_snakemake)
    (project / "metrics/digits_mini/adm/s0/8/ancestral-5/metrics.json").unlink()
    said = run(project, "ipdiff", "publish", "mini", code=2).stderr
    assert "metrics/digits_mini/adm/s0/8/ancestral-5 is missing; make the study first: snakemake mini" in said
    assert not (project / "published/mini").exists()


@pytest.mark.parametrize("damage", ["tampered", "cut short"])
def test_what_was_published_stays_where_a_file_is_damaged(
    by_snakemake: Path, copy: Callable[[Path], Path], damage: str
) -> None:
    project = copy(by_snakemake)
    run(project, "ipdiff", "publish", "mini")
    before = files(project / "published")
    path = project / "metrics/digits_mini/adm/s0/8/ancestral-5/metrics.json"
    path.write_text(path.read_text().replace('"fid": ', '"fid": 1') if damage == "tampered" else "")
    said = run(project, "ipdiff", "publish", "mini", code=3).stderr
    assert said.startswith("ipdiff: metrics/digits_mini/adm/s0/8/ancestral-5/metrics.json: expected ")
    assert said.count("\n") == 1
    assert files(project / "published") == before


def test_receipts_of_what_was_made_elsewhere_stay(by_snakemake: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(by_snakemake)
    run(project, "ipdiff", "publish", "mini")
    before = files(project / "published/mini")
    shutil.rmtree(project / "receipts")  # a clone that pulled everything has none
    run(project, "ipdiff", "publish", "mini")
    assert files(project / "published/mini") == before
    one, other = (f"metrics/digits_mini/{model}/s0/8/ancestral-5" for model in ("adm", "adm-ip"))
    path = project / "published/mini/receipts.json"
    receipts = json.loads(path.read_text())
    path.write_text(json.dumps({**receipts, one: receipts[other]}))  # of another artifact
    run(project, "ipdiff", "publish", "mini")
    assert json.loads(path.read_text()) == {name: receipt for name, receipt in receipts.items() if name != one}


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
