"""A study measured with a (random) Inception network that the engines watch, from raw images to its table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from inception import write_inception
from unit.params_factory import small, write

from ipdiff import cli
from ipdiff.pipeline import grid
from ipdiff.pipeline.engines import dvc_files
from ipdiff.pipeline.grid.freshness import Freshness, State
from ipdiff.report.results import with_words

METRICS = ("fid", "sfid", "pixel_fd", "inception_score", "precision", "recall")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, its one table made."""
    project = tmp_path_factory.mktemp("project")
    raw = small()
    raw["datasets"]["tiny"] |= {
        "features": "inception",
        "inception": {"raw": "raw/network.pt"},
        "reference": {"images": 48, "seed": 3, "neighbours": True},
        "sampling": {"num_samples": 32, "batch_size": 32},
        "checkpoints": [4],
        "final_step": {"default": 4},
    }
    del raw["datasets"]["tiny"]["classifier"]
    table = {**raw["tables"]["table3"], "metrics": list(METRICS), "models": ["adm"], "compare": {}}
    raw |= {"tables": {"table3": table}, "figures": {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        write(project, raw)
        write_inception(Path("raw/network.pt"), seed=7)
        for cell in grid.load().study("small"):
            assert cli.main(cell.command.split()[1:]) == 0, cell.command
    return project


@pytest.fixture
def project(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


@pytest.mark.usefixtures("project")
def test_every_metric_is_measured_and_shown() -> None:
    (path,) = Path("metrics").rglob("metrics.json")
    found = with_words(json.loads(path.read_text()), path)
    assert (found["features"], found["n"], found["reference_n"]) == ("other inception", 32, 48)
    assert set(METRICS) <= found.keys()
    with Path("tables/small/table3/table.csv").open(newline="") as stream:
        shown = {row["metric"]: float(row["mean"]) for row in csv.DictReader(stream)}
    assert shown == {name: found[name] for name in METRICS}
    assert np.load("neighbours/tiny/features.npy").shape[0] == len(np.load("neighbours/tiny/radii.npy")) == 48
    assert not Path("features").exists()


@pytest.mark.usefixtures("project")
def test_another_network_makes_what_measures_stale_and_nothing_else() -> None:
    def changed() -> set[str]:
        fresh = Freshness(grid.load())
        return {cell.stage.verb for cell in fresh.grid.study("small") if fresh.own(cell) is State.CHANGED}

    path = Path("raw/network.pt")
    before = path.read_bytes()
    assert changed() == set()
    write_inception(path, seed=8)
    assert changed() == {"reference", "neighbours", "halves", "evaluate"}
    path.write_bytes(before)
    assert changed() == set()


@pytest.mark.usefixtures("project")
def test_dvc_watches_the_network() -> None:
    text = dvc_files.render(grid.load(), "small")
    assert "  reference_subset_raw_inception:\n" in text
    assert "  evaluate_neighbours_raw_inception:\n" in text
    assert text.count("- ${item.raw}") == 4
