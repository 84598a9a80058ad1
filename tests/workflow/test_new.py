"""A study of one's own pictures, from a folder to a report, by the commands that `ipdiff new` prints."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from workflow.engines import environment, planned, run, stale

pytestmark = pytest.mark.workflow

MODES = {"RGB": "png", "RGBA": "png", "L": "png", "P": "gif", "CMYK": "jpg"}


def pictures(root: Path) -> None:
    """Sixty circles and squares of several sizes and modes, one file that is broken and one that is no picture."""
    draws = np.random.default_rng(0)
    for i in range(60):
        kind = ("circles", "squares")[i % 2]
        (root / kind).mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", tuple(draws.integers(18, 30, 2)), tuple(draws.integers(0, 100, 3)))
        shape = ImageDraw.Draw(image)
        draw = shape.ellipse if kind == "circles" else shape.rectangle
        draw((4, 4, *draws.integers(10, 16, 2)), fill=tuple(draws.integers(120, 255, 3)))
        mode, suffix = list(MODES.items())[i % len(MODES)]
        image.convert(mode).save(root / kind / f"{i}.{suffix}")
    (root / "circles/broken.png").write_bytes((root / "circles/0.png").read_bytes()[:50])
    (root / "about.txt").write_text("circles and squares")


def new(project: Path, *more: str) -> str:
    """What `ipdiff new` says; with the budget that it asks for, where this machine is too slow for the first."""
    budget = "80s"
    for _ in range(5):
        command = ["ipdiff", "new", "shapes", "--images", "raw/shapes", "--size", "16", "--budget", budget, *more]
        done = subprocess.run(command, cwd=project, env=environment(project), capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout
        found = re.search(r"is too short for .* here; give about (\S+),", done.stderr)
        assert found, done.stderr
        budget = f"1min{found[1]}"
    raise AssertionError(f"refused the budget that it asked for: {done.stderr}")


@pytest.mark.slow
def test_from_a_folder_of_pictures_to_a_report(project: Path) -> None:
    pictures(project / "raw/shapes")
    said = new(project, "--gammas", "0.1", "--seeds", "1", "--skip-broken")
    assert "broken     circles/broken.png is damaged" in said
    assert "labels     circles (30), squares (30)" in said
    assert "snakemake --cores all shapes" in said

    assert "shapes/dvc.yaml" not in run(project, "ipdiff", "grid", "--check").stderr
    run(project, "ipdiff", "plan", "shapes")
    run(project, "snakemake", "--cores", "2", "--dry-run", "shapes")
    run(project, "dvc", "stage", "list", "studies/shapes/dvc.yaml")

    run(project, "snakemake", "--cores", "2", "shapes")
    notes = json.loads((project / "data/shapes/recipe.json").read_text())["read"]
    assert (notes["images"], notes["broken"], notes["labels"]) == (60, ["circles/broken.png"], ["circles", "squares"])
    with (project / "tables/shapes/gamma/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows
    text = (project / "tables/shapes/gamma/table.md").read_text()
    assert all(word in text for word in ("FID", "sFID", "ADM-IP"))
    assert {path.name for path in (project / "figures/shapes").iterdir()} == {
        "fid_over_steps", "sfid_over_steps", "samples", "drift",
    }  # fmt: skip
    assert "Does input perturbation help on shapes?" in (project / "report/shapes/index.html").read_text()

    assert "up to date" in run(project, "dvc", "status", "studies/shapes/dvc.yaml").stdout
    assert planned(project, study="shapes") == set()
    assert stale(project, "shapes") == {}
