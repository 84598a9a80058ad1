"""Snakemake as its users know it: report, benchmarks, --config, deployment, use as a module."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from workflow.conftest import ROOT
from workflow.engines import MINI, cells, planned, run
from workflow.test_engines import scramble_times

pytestmark = pytest.mark.workflow


def said_by_ipdiff(project: Path, *argv: str, code: int = 2) -> list[str]:
    """Our lines of a dry run that is refused; nobody is shown a traceback."""
    said = run(project, "snakemake", "-n", *argv, code=code).stderr
    assert "Traceback" not in said
    assert "InputFunctionException" not in said
    return [line.removeprefix("ipdiff: ") for line in said.splitlines() if line.startswith("ipdiff: ")]


def test_the_report_lists_tables_figures_and_the_page(by_snakemake: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(by_snakemake)
    run(project, "snakemake", "--report", "report.html", "mini")
    text = (project / "report.html").read_text()
    results, categories = (
        json.loads(re.findall(rf'<script id="{name}">\s+var {name} = (.*);\n', text)[0])
        for name in ("results", "categories")
    )
    params = yaml.safe_load((project / "studies/mini/params.yaml").read_text())
    titled = {
        **{f"tables/mini/{name}/table.csv": ("Tables", view["title"]) for name, view in params["tables"].items()},
        **{f"figures/mini/{name}/figure.png": ("Figures", view["title"]) for name, view in params["figures"].items()},
        **{f"report/mini/{name}": ("Page", params["title"]) for name in ("index.html", "cards.html")},
    }
    listed = {path: kind for kind, within in categories.items() for paths in within.values() for path in paths}
    assert {path: (listed[path], found["labels"]["title"]) for path, found in results.items()} == titled
    assert all("study <tt" in found["caption"] for found in results.values())


@pytest.mark.slow
def test_benchmarks_see_the_job_itself_and_are_no_artifact(by_snakemake: Path, copy: Callable[[Path], Path]) -> None:
    project = copy(by_snakemake)
    lock = (project / "studies/mini/dvc.lock").read_bytes()
    made = {verb: next(c for c in cells(project).values() if c.stage.verb == verb) for verb in
            ("train", "sample", "evaluate")}  # fmt: skip
    for cell in made.values():
        (project / cell.outputs[0]).unlink()
    targets = [cell.outputs[0] for cell in made.values()]
    run(project, "snakemake", "--cores", "1", *targets, "--config", "benchmark=true")
    for cell in made.values():
        (row,) = csv.DictReader((project / f"logs/{cell.directory}.tsv").read_text().splitlines(), delimiter="\t")
        assert float(row["max_rss"]) > 100, cell.directory  # with torch in it: no small process that waits for another
    assert (project / "studies/mini/dvc.lock").read_bytes() == lock
    assert "up to date" in run(project, "dvc", "status", MINI).stdout
    run(project, "ipdiff", "verify", "--study", "mini")
    scramble_times(project)
    assert planned(project) == set()
    assert planned(project, "mini", "--config", "benchmark=true") == set()
    said = run(project, "snakemake", "-n", "-F", "mini", "--config", "benchmark=true").stdout
    wanted = {f"logs/{cell.directory}.tsv" for cell in cells(project).values() if cell.stage.verb in made}
    assert set(re.findall(r"benchmark: (\S+)", said)) == wanted


def test_config_is_used_or_refused_never_ignored(project: Path) -> None:
    target = "data/digits_mini/images.npy"
    (line,) = said_by_ipdiff(project, target, "--config", "gamma=0.2")
    assert line.startswith(
        "Snakemake's config has 'gamma'; known: params, benchmark; what decides numbers is edited in"
    )
    (line,) = said_by_ipdiff(project, target, "-s", "workflow/Snakefile", "--configfile", "studies/mini/params.yaml")
    assert line.startswith("Snakemake's config has 'title'")
    (project / "config/config.yaml").write_text("benchmark: perhaps\n")
    (line,) = said_by_ipdiff(project, target)
    assert line == "Snakemake's config benchmark: found 'perhaps'; expected true or false"


def test_wrong_names_are_lines_not_tracebacks(project: Path) -> None:
    hints = {
        "mimi": "did you mean 'mini'?",
        "data/digits_mini": "a file of it is data/digits_mini/images.npy",
        "table:mini/table1": "a file of it is tables/mini/table1/table.csv",
    }
    lines = said_by_ipdiff(project, *hints, code=1)
    assert all(any(f"'{target}'" in line and line.endswith(hint) for line in lines) for target, hint in hints.items())
    assert len(lines) == len(hints)
    (line,) = said_by_ipdiff(project, "samples/digits_mini/adm/s0/9/ancestral-5/samples.npz")
    assert line == "step 9 is not one of datasets.digits_mini.checkpoints [4, 8]"


def test_the_engine_refuses_a_study_as_the_verbs_do(project: Path) -> None:
    path = project / "studies/mini/params.yaml"
    raw = yaml.safe_load(path.read_text())
    settings = raw["datasets"]["digits_mini"]
    del settings["classifier"], settings["compute"]
    path.write_text(yaml.safe_dump(raw))
    (line,) = said_by_ipdiff(project, "mini")
    assert line == run(project, "ipdiff", "plan", "mini", code=2).stderr.strip().removeprefix("ipdiff: ")
    assert "datasets.digits_mini.compute, datasets.digits_mini.classifier: write these keys out" in line
    run(project, "ipdiff", "grid", "--fill", "--study", "mini")
    run(project, "ipdiff", "plan", "mini")


DEPLOYED = """\
configfile: "config/config.yaml"

module ipdiff:
    snakefile:
        "{snakefile}"
    config:
        config

use rule * from ipdiff
"""
"""What `snakedeploy deploy-workflow` 0.17.1 writes to workflow/Snakefile, beside copies of config/ and profiles/."""


def test_what_snakedeploy_writes_runs(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    here = tmp_path_factory.mktemp("deployed")
    for folder in ("config", "profiles"):
        shutil.copytree(project / folder, here / folder)
    (here / "workflow").mkdir()
    (here / "workflow/Snakefile").write_text(DEPLOYED.format(snakefile=project / "workflow/Snakefile"))
    installed = {"PYTHONPATH": str(project)}
    said = run(here, "snakemake", "--cores", "1", "data/digits/images.npy", **installed).stderr
    assert "ipdiff: wrote params.yaml, the digits study; edit it" in said
    assert (here / "data/digits/recipe.json").exists()
    assert (here / "params.yaml").read_bytes() == (project / "params.yaml").read_bytes()
    jobs = run(here, "snakemake", "-n", **installed).stdout
    assert re.search(r"^total +\d{3}$", jobs, re.MULTILINE)
    said = run(here, "snakemake", "-n", "--sdm", "conda", code=2, **installed).stderr
    assert "ipdiff: --software-deployment-method needs a checkout" in said


MODULE = """\
rule mine:
    input: "tables/mini/table1/table.csv"
    output: "mine.txt"
    shell: "true && wc -l {{input}} > {{output}}"

module ipdiff:
    snakefile: "{snakefile}"
    config: {{"benchmark": False}}
    {more}

use rule * from ipdiff as {names}
"""


@pytest.mark.slow
def test_as_a_module_with_and_without_prefix(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    here, installed = tmp_path_factory.mktemp("outer"), {"PYTHONPATH": str(project)}
    (here / "studies/mini").mkdir(parents=True)
    shutil.copy(project / "studies/mini/params.yaml", here / "studies/mini")
    (here / "config.yaml").write_text("own: 1\n")

    def outer(names: str, more: str = "") -> None:
        text = MODULE.format(snakefile=project / "workflow/Snakefile", names=names, more=more)
        (here / "Snakefile").write_text(f'configfile: "config.yaml"\n{text}')

    for names, rule in (("ipdiff_*", "ipdiff_train"), ("*", "train")):
        outer(names)
        jobs = run(here, "snakemake", "-n", **installed).stdout
        assert re.search(r"^mine +1$", jobs, re.MULTILINE)  # the outer workflow's first rule is its default
        assert re.search(rf"^{rule} +2$", jobs, re.MULTILINE)
    outer("ipdiff_*")
    run(here, "snakemake", "--cores", "1", "data/digits_mini/images.npy", **installed)
    said = run(here, "snakemake", "-n", "mini", code=1, **installed).stderr
    assert "ipdiff: the study 'mini' has another rule's name here: ipdiff_mini" in said
    outer("ipdiff_*", 'prefix: "sub"')
    said = run(here, "snakemake", "-n", code=2, **installed).stderr
    assert "ipdiff: as a module, ipdiff cannot be given `prefix:`" in said


def test_the_conda_environment_has_the_locked_versions() -> None:
    spec = yaml.safe_load((ROOT / "workflow/envs/ipdiff.yaml").read_text())
    (pip,) = (part["pip"] for part in spec["dependencies"] if isinstance(part, dict))
    locked = dict(
        line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    assert all(locked[name] == version for name, version in (line.split(" ==") for line in pip))
    assert {"torch", "numpy", "scipy", "threadpoolctl", "pyyaml", "pydantic", "safetensors", "pillow"} <= {
        p.split()[0] for p in pip
    }
    for path in (ROOT / "workflow/rules").glob("*.smk"):
        text = path.read_text()
        assert text.count("rule ") == text.count('"../envs/ipdiff.yaml"')
    run(ROOT, "bash", "-n", "workflow/envs/ipdiff.post-deploy.sh")
