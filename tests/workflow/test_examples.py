"""The examples do what they say, as their reader starts them."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from workflow.conftest import ROOT
from workflow.engines import run

pytestmark = pytest.mark.workflow

NOTEBOOK = "examples/exposure_bias.ipynb"
TRAIN = "examples/train_your_own.py"


def text_of(outputs: Sequence[dict]) -> str:
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream")


def test_the_notebook_is_kept_without_outputs() -> None:
    """They would be of the checkpoints of some earlier commit, and pictures in git."""
    import nbformat

    notebook = nbformat.read(ROOT / NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's own packages
def test_the_notebook_runs_on_what_a_clone_has(tmp_path: Path) -> None:
    import nbformat

    if not (ROOT / ".git").exists():
        pytest.skip("no git repository: a downloaded copy cannot be cloned")
    run(tmp_path, "git", "clone", "--quiet", str(ROOT), "clone")
    clone = tmp_path / "clone"
    shutil.copy2(ROOT / NOTEBOOK, clone / NOTEBOOK)  # with what is not committed yet
    (commands,) = re.findall(r"```sh\n([^`]*jupyter execute[^`]*)```", (ROOT / "docs/published.md").read_text())
    run(clone, "bash", "-ec", commands, IPYTHONDIR=str(tmp_path / "ipython"))
    notebook = nbformat.read(clone / "work/exposure_bias.ipynb", as_version=4)
    by_cell = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    pictures = [output for outputs in by_cell for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    said = [text_of(outputs) for outputs in by_cell]
    assert "files asked for are here and verified" in said[0]
    strays = [line.split() for line in "".join(said).splitlines() if " strays by " in line]
    assert [words[0] for words in strays] == ["adm", "adm-ip"]
    assert all(0 < float(words[3]) <= float(words[-3]) < 1 for words in strays)
    fids = [line.split() for line in said[-1].splitlines() if " FID " in line]
    assert [words[:2] for words in fids] == [[s, m] for s in ("ancestral-5", "ancestral-20") for m in ("adm", "adm-ip")]
    by_steps = [float(words[-1]) for words in fids]
    assert min(by_steps[:2]) > max(by_steps[2:]) > 0  # more steps, better images


@pytest.mark.slow
def test_training_ones_own_network(tmp_path: Path) -> None:
    """The loss is that of a network which learns; the folder loads as a pipeline; gamma makes a difference."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    found = {}
    for gamma in ("0", "0.1"):
        out = tmp_path / gamma
        options = ("--gamma", gamma, "--updates", "30", "--out", str(out))
        said = run(ROOT, sys.executable, TRAIN, *options, OMP_NUM_THREADS="1").stdout
        assert said.splitlines()[-1] == f"images: {out}/images.png"
        assert float(said.split("update 30: loss ")[1].split()[0]) < 0.9  # 1 is what a network gets that says 0
        with Image.open(out / "images.png") as image:
            assert image.size == (64, 64)
        found[gamma] = UNet2DModel.from_pretrained(out / "unet")
    weights = [torch.cat([p.detach().flatten() for p in net.parameters()]) for net in found.values()]
    assert not torch.equal(*weights)
    pipeline = DDPMPipeline(found["0.1"], DDPMScheduler.from_pretrained(tmp_path / "0.1/scheduler"))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 8, 8, 1)
    assert np.isfinite(images).all()


def test_an_example_is_short() -> None:
    assert len((ROOT / TRAIN).read_text().splitlines()) <= 65
