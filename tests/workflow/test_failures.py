"""Failed jobs that Snakemake submits again: those that no retry can mend end at once, the others are tried."""

from __future__ import annotations

from pathlib import Path

import pytest
from workflow.engines import run

from ipdiff.pipeline.engines import failures

RUN = "runs/digits_mini/adm/s0/4"

pytestmark = [pytest.mark.workflow, pytest.mark.slow]


def said(project: Path, name: str) -> str:
    return (project / f"logs/{name}.log").read_text()


def test_a_damaged_input_is_looked_at_once_and_not_with_every_retry(project: Path) -> None:
    run(project, "ipdiff", "prepare", "--dataset", "digits_mini")
    images = project / "data/digits_mini/images.npy"
    good, times = images.read_bytes(), images.stat()
    images.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    target = ["snakemake", "--cores", "1", "--retries", "3", "--preemptible-retries", "3", f"{RUN}/ema.safetensors"]
    failed = run(project, *target, code=1)
    assert failed.stderr.count("Trying to restart job") == 3
    assert "an earlier attempt failed so; no retry mends that" in said(project, RUN)
    assert "images.npy" in said(project, RUN)
    assert list((project / failures.FOLDER).iterdir())

    images.write_bytes(good)  # mended: the first attempt of the next Snakemake forgets
    mended = run(project, *target)
    assert times.st_size == images.stat().st_size
    assert "Trying to restart job" not in mended.stderr
    assert list((project / failures.FOLDER).iterdir()) == []


def test_what_may_be_there_later_is_tried_again(project: Path) -> None:
    params = project / "studies/mini/params.yaml"
    text = params.read_text()
    params.write_text(text.replace("device: cpu", "device: cuda", 1))
    run(project, "ipdiff", "prepare", "--dataset", "digits_mini")
    run(
        project, "snakemake", "--cores", "1", "--preemptible-retries", "1", f"{RUN}/ema.safetensors", code=1,
        CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    assert "torch finds no CUDA device" in said(project, RUN)
    assert "an earlier attempt" not in said(project, RUN)
