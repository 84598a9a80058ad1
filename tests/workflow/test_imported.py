"""A checkpoint of another code base between both engines: given to them, made by neither, kept by DVC."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from workflow.conftest import copied_project, make_project
from workflow.engines import MINI, outputs, planned, run, stale

from ipdiff.interop import checking
from ipdiff.pipeline import config

pytestmark = pytest.mark.workflow

RUN = "runs/digits_mini/official/s0/460000"
WEIGHTS = f"{RUN}/ema.safetensors"
FILE = "work/ema_0.9999_460000.pt"
POINTER = "imported/digits_mini.official.s0.460000.dvc"


def with_official(project: Path) -> Path:
    """Reduce the mini study to one table over an imported model, and write a file in the official format for it."""
    params = project / "studies/mini/params.yaml"
    raw = yaml.safe_load(params.read_text())
    raw["models"]["official"] = {"family": "adm", "gamma": 0.15, "imported": True}
    raw["datasets"]["digits_mini"]["final_step"]["official"] = 460000
    table = {**raw["tables"]["table3"], "models": ["official"], "compare": {}}
    raw |= {"tables": {"table3": table}, "figures": {}}
    params.write_text(yaml.safe_dump(raw, sort_keys=False))
    run(project, "ipdiff", "grid", "--write")
    run(project, "git", "commit", "--quiet", "--all", "-m", "an official checkpoint beside ours")
    spec = config.load(params).run_spec("digits_mini", "official", 0)
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) / 10 for name, shape in checking.shapes(spec).items()}
    (project / FILE).parent.mkdir(exist_ok=True)
    torch.save(state, project / FILE)
    return project


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the checkpoint imported and nothing made. To be read only."""
    project = with_official(make_project(tmp_path_factory.mktemp("imported")))
    said = run(project, "ipdiff", "import", FILE, "--as", "digits_mini/official").stdout
    assert f"commit {POINTER}" in said
    assert run(project, "git", "status", "--short").stdout.split() == ["??", "imported/"]
    run(project, "git", "add", "imported")
    run(project, "git", "commit", "--quiet", "-m", "the official checkpoint")
    return project


@pytest.fixture(scope="module")
def sampled(imported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study as Snakemake made it from the imported checkpoint. To be read only."""
    project = copied_project(imported, tmp_path_factory.mktemp("sampled") / "project")
    run(project, "snakemake", "--cores", "2", "mini")
    return project


@pytest.mark.slow
def test_snakemake_takes_it_as_it_is_and_dvc_agrees(sampled: Path) -> None:
    assert "up to date" in run(sampled, "dvc", "status", MINI, POINTER).stdout
    assert planned(sampled) == set()
    assert stale(sampled) == {}
    assert "official" in (sampled / "tables/mini/table3/table.csv").read_text()
    assert "ema_0.9999_460000.pt" in (sampled / "report/mini/cards.html").read_text()
    assert {path.name for path in (sampled / RUN).iterdir()} == {"ema.safetensors", "recipe.json"}


@pytest.mark.slow
def test_dvc_makes_the_same_bytes_from_it(sampled: Path, imported: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(imported)
    run(project, "dvc", "repro", "--quiet", MINI)
    assert outputs(project) == outputs(sampled)
    assert planned(project) == set()
    assert run(project, "git", "status", "--short").stdout.split() == ["??", "studies/mini/dvc.lock"]


@pytest.mark.slow
def test_a_clone_pulls_and_verifies_it(sampled: Path, tmp_path: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(sampled)
    run(project, "dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    run(project, "git", "add", "studies/mini/dvc.lock", ".dvc/config")
    run(project, "git", "commit", "--quiet", "-m", "the study")
    run(project, "dvc", "push", "--quiet")
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "--quiet", str(project), str(clone))
    run(clone, "ipdiff", "pull", RUN)
    assert (clone / WEIGHTS).read_bytes() == (project / WEIGHTS).read_bytes()
    assert not (clone / "samples").exists()
    run(clone, "ipdiff", "pull", "mini")
    assert outputs(clone) == outputs(project)
    assert planned(clone) == set()
    assert "0 problems" in run(clone, "ipdiff", "verify").stdout
    assert "0 differ" in run(clone, "ipdiff", "verify", "--against", "HEAD").stdout


@pytest.mark.slow
def test_a_damaged_one_is_named_and_not_sampled(sampled: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(sampled)
    data = bytearray((project / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (project / WEIGHTS).unlink()
    (project / WEIGHTS).write_bytes(data)
    said = run(project, "ipdiff", "verify", "mini", "--no-cache", code=3).stdout
    assert said.startswith(f"{WEIGHTS}: expected ")
    names = ("--dataset", "digits_mini", "--model", "official", "--seed", "0", "--step", "460000")
    failed = run(project, "ipdiff", "sample", *names, "--sampler", "ancestral-5", code=3)
    assert WEIGHTS in failed.stderr


def test_without_it_snakemake_names_the_file(imported: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(imported)
    shutil.rmtree(project / RUN)
    done = run(project, "snakemake", "--dry-run", "mini", code=2)
    assert f"ipdiff: {RUN} is not here: `ipdiff pull {RUN}`\n" in done.stderr
    (project / POINTER).unlink()
    done = run(project, "snakemake", "--dry-run", "mini", code=2)
    line = f"{RUN} is not here: get its checkpoint; then `ipdiff import FILE --as digits_mini/official`"
    assert f"ipdiff: {line}\n" in done.stderr
    run(project, "ipdiff", "import", FILE, "--as", "digits_mini/official")
    assert run(project, "git", "status", "--short").stdout == ""
    samples = "samples/digits_mini/official/s0/460000/ancestral-5"
    assert planned(project, f"{samples}/samples.npz") == {samples}
