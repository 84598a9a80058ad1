"""A run that is trained on from another one's checkpoint, between both engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from unit import params_factory
from workflow.conftest import make_project
from workflow.engines import changed, planned, run, stale

pytestmark = pytest.mark.workflow


def params(step: int) -> dict[str, Any]:
    """A study that shows a tuned model alone; what it starts from is derived."""
    raw = params_factory.small()
    gamma = {"start": 0.0, "end": 0.1, "until": 6}
    raw["models"]["tuned"] = {"family": "adm", "gamma": gamma, "start": {"model": "adm", "step": step}}
    table = {**raw["tables"]["table3"], "models": ["tuned"], "compare": {}}
    return raw | {"datasets": {"tiny": raw["datasets"]["tiny"]}, "tables": {"table3": table}, "figures": {}}


@pytest.mark.slow
def test_both_engines_train_it_after_what_it_starts_from(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    params_factory.write(project, params(8))
    run(project, "ipdiff", "grid", "--write")
    run(project, "snakemake", "--cores", "2", "small")
    assert {path.name for path in (project / "runs/tiny").iterdir()} == {"adm", "tuned"}
    assert "trained on from runs/tiny/adm/s0/8" in (project / "report/small/cards.html").read_text()
    assert "up to date" in run(project, "dvc", "status", "studies/small/dvc.yaml").stdout
    assert planned(project, study="small") == set()
    made = (project / "runs/tiny/tuned/s0/8/ema.safetensors").read_bytes()

    params_factory.write(project, params(4))
    run(project, "ipdiff", "grid", "--write")
    predicted = set(stale(project, "small"))
    assert "runs/tiny/tuned/s0/4" in predicted
    assert not {"runs/tiny/adm/s0/4", "runs/tiny/adm/s0/8"} & predicted
    assert planned(project, study="small") == predicted
    assert changed(project, "small") == predicted
    run(project, "dvc", "repro", "--quiet", "studies/small/dvc.yaml")
    assert (project / "runs/tiny/tuned/s0/8/ema.safetensors").read_bytes() != made
    assert planned(project, study="small") == set()
    assert stale(project, "small") == {}
