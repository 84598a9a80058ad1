"""What `make demo` leaves behind: the digits study of this checkout, whole, verified and known to both engines."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from workflow.conftest import ROOT, run

from ipdiff.pipeline import config, grid
from ipdiff.pipeline.store.artifact import file_digest
from ipdiff.work.recipes import RECIPE

CELLS = grid.load(ROOT).study("digits")
MADE = all((ROOT / path).exists() for cell in CELLS for path in cell.outputs)

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.slow,
    pytest.mark.skipif(not MADE, reason="the digits study has not been run here; `make demo` runs it"),
]


def test_every_output_is_what_its_recipe_names() -> None:
    for cell in CELLS:
        recipe = json.loads((ROOT / cell.directory / RECIPE).read_text())
        found = {name: file_digest(ROOT / cell.directory / name) for name in cell.stage.files}
        assert found == recipe["outputs"], cell.directory


def test_neither_engine_has_anything_left_to_do() -> None:
    assert "Nothing to be done" in run(ROOT, "snakemake", "-n").stdout
    assert "up to date" in run(ROOT, "dvc", "status", "dvc.yaml").stdout


def test_the_tables_hold_every_seed_that_the_study_asks_for() -> None:
    study = config.load(ROOT / "params.yaml")
    for name in study.tables:
        with (ROOT / "tables" / "digits" / name / "table.csv").open() as stream:
            for row in csv.DictReader(stream):
                if row["kind"] == "value":
                    seeds = study.tables[name].seeds or study.seeds_of(row["model"])
                assert row["seeds"].split() == [str(seed) for seed in seeds], (name, row)


def test_one_image_drawn_alone_is_the_one_in_the_set(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    cell = next(c for c in CELLS if c.stage.verb == "sample" and c.bindings["sampler"] == "ancestral-5")
    out = tmp_path / "one.png"
    run(ROOT, *cell.command.split(), "--index", "1234", "--out", str(out))
    with np.load(ROOT / cell.outputs[0], allow_pickle=False) as samples:
        assert np.array_equal(np.asarray(Image.open(out)), samples["arr_0"][1234, :, :, 0])
