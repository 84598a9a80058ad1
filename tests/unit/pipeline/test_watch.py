"""`ipdiff watch`: a study's cells as the files say they stand."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from unit import params_factory
from unit.tiny import flip_bit

from ipdiff import cli
from ipdiff.pipeline import grid
from ipdiff.pipeline.commands.study import watch
from ipdiff.pipeline.progress import status
from ipdiff.pipeline.progress.status import SILENT_S, Status

TRAIN = ("train", "--dataset", "tiny", "--model", "adm", "--seed", "0", "--step")
RUN = "runs/tiny/adm/s0/4"


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = params_factory.drop(params_factory.small(), "datasets.photos")
    params_factory.write(tmp_path, raw)
    monkeypatch.chdir(tmp_path)


def seen(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.main(["watch", "small", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert cli.main(["watch", "small", "--once"]) == 0
    return capsys.readouterr().out


def test_a_study_from_nothing_to_a_change(capsys: pytest.CaptureFixture[str]) -> None:
    before = seen(capsys)
    assert before["cells"]["waiting"] == sum(before["cells"].values()) == len(before["waiting"]) > 10
    assert cli.main(["prepare", "--dataset", "tiny"]) == 0
    assert cli.main([*TRAIN, "4"]) == 0
    after = seen(capsys)
    assert after["cells"]["done"] == 2
    made = {cell["cell"] for cell in before["waiting"]} - {cell["cell"] for cell in after["waiting"]}
    assert made == {"data/tiny", RUN}
    raw = params_factory.put(params_factory.small(), "datasets.tiny.families.adm.training.lr", 0.001)
    params_factory.write(Path(), params_factory.drop(raw, "datasets.photos"))
    changed = seen(capsys)
    assert changed["cells"]["done"] == 1
    assert [cell["cell"] for cell in changed["waiting"] if cell["reason"] == watch.AGAIN] == [RUN]
    assert "1 of them to be made again" in said(capsys)


def test_what_runs_is_shown_with_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    now = time.time()
    counted: dict[str, Any] = {"unit": "updates", "done": 1, "total": 4, "rate": 0.5, "left": 6.0}
    status.write(Status(RUN, started=now - 60, numbers={"loss": 0.25}, processes=2, **counted))
    (running,) = seen(capsys)["running"]
    assert {key: running[key] for key in counted} == counted
    assert running["numbers"] == {"loss": 0.25}
    assert f"{RUN}: 1/4 updates, loss 0.25, 0.5/s, 6 s left (for 60 s, " in said(capsys)


def test_another_studys_jobs_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    status.write(Status("runs/other/adm/s0/4"))
    assert seen(capsys)["running"] == []


def test_a_job_that_fails_says_why_until_it_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prepare", "--dataset", "tiny"]) == 0
    flip_bit(Path("data/tiny/images.npy"))
    assert cli.main([*TRAIN, "4"]) == 3
    Path("logs/runs/tiny/adm/s0").mkdir(parents=True)
    Path(f"logs/{RUN}.log").write_text("what Snakemake kept\n")
    (failed,) = seen(capsys)["failed"]
    assert failed["cell"] == RUN
    assert "data/tiny/images.npy: expected" in failed["reason"]
    assert failed["log"] == f"logs/{RUN}.log"
    assert f"log: logs/{RUN}.log" in said(capsys)
    flip_bit(Path("data/tiny/images.npy"))
    assert cli.main([*TRAIN, "4"]) == 0
    assert seen(capsys)["cells"]["failed"] == 0


def test_a_killed_job_has_failed_and_one_of_another_host_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    status.write(Status(RUN, pid=child.pid))
    status.write(Status("data/tiny", pid=child.pid, host="node7", time=time.time() - SILENT_S - 60))
    status.write(Status("features/tiny", state="stopped", reason="run me again"))
    found = seen(capsys)
    assert [[cell["cell"] for cell in found[kind]] for kind in ("failed", "silent", "stopped")] == [
        [RUN], ["data/tiny"], ["features/tiny"],
    ]  # fmt: skip
    assert "ended without a word" in found["failed"][0]["reason"]
    assert "data/tiny: silent since " in said(capsys)


def test_the_newest_results_come_with_what_they_are_of(capsys: pytest.CaptureFixture[str]) -> None:
    measured_cell = {"dataset": "tiny", "model": "adm", "seed": "0", "step": "8", "sampler": "ancestral-5"}
    known = grid.load()
    for cell in known.needed(known.cell("evaluate", **measured_cell)):
        assert cli.main(cell.command.split()[1:]) == 0
    (result,) = seen(capsys)["results"]
    assert result["cell"] == "metrics/tiny/adm/s0/8/ancestral-5"
    measured = json.loads(Path(result["cell"], "metrics.json").read_text())
    assert result["metrics"]["fid"] == measured["fid"]
    text = said(capsys)
    assert f"FID {measured['fid']:.2f}" in text
    assert "(64 samples, classifier features)" in text
    assert Path("logs/runs/tiny/adm/s0/train.jsonl").read_text().count("\n") == 2
    assert list(status.FOLDER.iterdir()) == []
