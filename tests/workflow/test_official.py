"""The study of the released checkpoints: what is missing is said, and its miniature from files to tables."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from workflow.conftest import ROOT
from workflow.engines import cells, planned, run

from ipdiff.device import compute
from ipdiff.interop import checking
from ipdiff.pipeline import config

pytestmark = pytest.mark.workflow

FILES = {
    "cifar10_official_tiny/adm-official": "cifar10_adm.pt",
    "cifar10_official_tiny/adm-ip-official": "ADM_IP_015.pt",
    "cifar10_official_tiny/ddim-ip-official": "ckpt.pth",
    "imagenet32_official_tiny/adm-ip-official": "ema_0.9999_3500000.pt",
    "ffhq128_official_tiny/adm-official": "ffhq_adm.pt",
    "ffhq128_official_tiny/adm-ip-official": "ema_0.9999_180000.pt",
}
"""Which file becomes which run; the steps of some stand in their names, of others in final_step or in the file."""


def released(project: Path, names: str) -> str:
    """A file in the format of the authors' release, of random weights."""
    dataset, model = names.split("/")
    spec = config.load(project / "studies/official-tiny/params.yaml").run_spec(dataset, model, 0)
    generator = torch.Generator().manual_seed(len(names))
    state = {name: torch.randn(shape, generator=generator) / 20 for name, shape in checking.shapes(spec).items()}
    path = project / "work" / FILES[names]
    path.parent.mkdir(exist_ok=True)
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save([wrapped, {}, 0, 800000, state] if spec.family == "ddpm" else state, path)
    return str(path)


@pytest.mark.parametrize("target", ["official", "official-tiny", "tables/official/quick/table.md"])
def test_snakemake_says_in_one_line_which_file_to_get(project: Path, target: str) -> None:
    said = run(project, "snakemake", "--dry-run", target, code=2).stderr
    (line,) = [line for line in said.splitlines() if line.startswith("ipdiff: ")]
    assert "/adm-official/s0/500000 is not here: get " in line
    assert "then `ipdiff import FILE --as cifar10_official" in line
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.skipif(not compute.has_bfloat16(), reason="one of its tables is in bfloat16, which this CPU has not")
def test_the_miniature_runs_from_the_files_to_the_tables(project: Path) -> None:
    raw = project / "raw/tiny"
    subprocess.run([sys.executable, ROOT / "tests/archives.py", raw], check=True)
    subprocess.run([sys.executable, ROOT / "tests/inception.py", raw / "inception.pt"], check=True)
    for names in FILES:
        said = run(project, "ipdiff", "import", released(project, names), "--as", names).stdout
        assert "tables read" not in said, "each file is of the step that the tables read"
    assert "is not here" not in run(project, "ipdiff", "plan", "official-tiny").stdout
    run(project, "snakemake", "--cores", "2", "official-tiny")
    for cell in cells(project, "official-tiny").values():
        assert all((project / path).exists() for path in cell.outputs)
    with (project / "tables/official-tiny/quick/table.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["kind"] == "value"]
    assert {row["metric"] for row in rows} == {"fid", "sfid", "inception_score", "precision", "recall"}
    assert {row["features"] for row in rows} == {"other inception"}, "never beside the paper's figures"
    assert {row["paper"] for row in rows} == {""}
    with (project / "tables/official-tiny/bfloat16/table.csv").open() as stream:
        fids = {(row["model"], row["sampler"]): row["mean"] for row in csv.DictReader(stream) if row["metric"] == "fid"}
    for model in ("adm-official", "adm-ip-official"):
        assert fids[model, "ancestral-5"] != fids[model, "ancestral-5-bfloat16"]
    assert planned(project, study="official-tiny") == set()
    assert "up to date" in run(project, "dvc", "status", "studies/official-tiny/dvc.yaml").stdout
    run(project, "git", "add", "imported")
    assert "0 problems" in run(project, "ipdiff", "verify", "--study", "official-tiny").stdout
