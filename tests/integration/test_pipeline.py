"""Whole studies in one process, without an engine: every stage by its command, in the grid's order."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from patience import PATIENCE_S, wait_until
from PIL import Image
from unit.tiny import flip_bit

from ipdiff import cli
from ipdiff.pipeline import grid
from ipdiff.pipeline.grid import Cell
from ipdiff.pipeline.stages import CURVE, STAGES
from ipdiff.report import origin, results

ROOT = Path(__file__).parents[2]
MINI = Path("studies/mini/params.yaml")
CELLS = grid.load(ROOT).study("mini")
READINGS = {(cell.stage.verb, Path(path).name): (cell, path) for cell in CELLS for path in cell.inputs}
"""One consumer for each kind of input: (verb, file name) -> cell, path."""


def ipdiff(*args: str) -> int:
    """Run a command in this process; argument errors leave argparse as SystemExit."""
    return cli.main(args)


def make(cells: list[Cell]) -> None:
    for cell in cells:
        assert ipdiff(*cell.command.split()[1:]) == 0, cell.command


def md5(path: str | Path) -> str:
    return hashlib.md5(Path(path).read_bytes()).hexdigest()


def recipe(cell: Cell) -> dict[str, Any]:
    return json.loads((Path(cell.directory) / "recipe.json").read_text())


def published(cells: list[Cell]) -> dict[str, bytes]:
    return {path: Path(path).read_bytes() for cell in cells for path in cell.outputs}


def write_params(change, path: Path = MINI) -> None:
    """Write the mini study's parameters with a change, as a study of its own where a path is given."""
    params = yaml.safe_load((ROOT / MINI).read_text())
    change(params)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(params, sort_keys=False))


def start(project: Path) -> None:
    """Give an empty project the mini study's parameters."""
    (project / MINI).parent.mkdir(parents=True)
    shutil.copyfile(ROOT / MINI, project / MINI)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A project in which the study `mini` has been made."""
    project = tmp_path_factory.mktemp("project")
    start(project)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        make(CELLS)
        left = [*Path("work/staging").iterdir(), *Path("work/progress").iterdir()]
    assert not left  # here: a test that makes a job fail in this project leaves word of it
    return project


@pytest.fixture
def project(made, monkeypatch) -> Iterator[None]:
    """Work in that project; leave its artifacts as they were."""
    monkeypatch.chdir(made)
    before = published(CELLS)
    yield
    assert published(CELLS) == before


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    """An empty project."""
    start(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# What is published


def test_a_study_has_every_stage():
    assert {cell.stage.verb for cell in CELLS} == set(STAGES)
    made_before: set[str] = set()
    for cell in CELLS:
        assert set(cell.inputs) <= made_before, cell.directory
        made_before |= set(cell.outputs)


@pytest.mark.usefixtures("project")
def test_every_recipe_tells_the_truth():
    for cell in CELLS:
        found = recipe(cell)
        assert found["inputs"] == {path: md5(path) for path in cell.inputs}, cell.directory
        assert found["outputs"] == {Path(path).name: md5(path) for path in cell.outputs[:-1]}, cell.directory
        assert found["command"] == cell.command
        assert found["code"] == cell.code
        assert set(found["params"]) == set(cell.params)
        receipt = json.loads(Path(f"receipts/{cell.directory}.json").read_text())
        assert receipt["recipe"] == md5(f"{cell.directory}/recipe.json")


@pytest.mark.usefixtures("project")
def test_nothing_else_is_left_behind():
    listed = {str(path) for path in Path().rglob("*") if path.is_file()}
    own = {path for path in listed if path.partition("/")[0] not in ("work", "receipts", "studies", "logs")}
    assert own == {path for cell in CELLS for path in cell.outputs}
    trained = {cell.fill(f"{CURVE}/train.jsonl") for cell in CELLS if cell.stage.verb == "train"}
    assert {path for path in listed if path.startswith("logs/")} == trained


@pytest.mark.parametrize("states", ["kept", "lost"])
def test_making_everything_again_changes_no_byte(made, tmp_path, monkeypatch, states):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    before = published(CELLS)
    if states == "lost":
        shutil.rmtree("work")
    make(CELLS)
    assert published(CELLS) == before


# What is read


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(("verb", "name"), READINGS)
def test_a_flipped_bit_stops_its_reader(verb, name, capsys):
    cell, path = READINGS[verb, name]
    place = 0 if name == "recipe.json" else -1
    flip_bit(Path(path), place)
    try:
        assert ipdiff(*cell.command.split()[1:]) == 3
    finally:
        flip_bit(Path(path), place)
    said = capsys.readouterr().err
    assert said.startswith(f"ipdiff: {path}: ")
    assert said.count("\n") == 1
    assert not list(Path("work/staging").iterdir())


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(("verb", "name"), READINGS)
def test_a_missing_input_is_named(verb, name, capsys):
    cell, path = READINGS[verb, name]
    aside = Path(path).rename("aside")
    try:
        assert ipdiff(*cell.command.split()[1:]) == 2
    finally:
        aside.rename(path)
    said = capsys.readouterr().err
    assert path in said
    assert said.count("\n") == 1


@pytest.mark.usefixtures("project")
def test_a_segment_does_not_go_on_from_other_parameters(capsys):
    write_params(lambda params: params["datasets"]["digits_mini"]["families"]["adm"]["training"].update(lr=0.5))
    try:
        assert ipdiff("train", "--dataset=digits_mini", "--model=adm", "--seed=0", "--step=8") == 2
    finally:
        shutil.copyfile(ROOT / MINI, MINI)
    assert "runs/digits_mini/adm/s0/4/recipe.json is of other parameters" in capsys.readouterr().err


# What comes out


def rows(cell: Cell) -> list[dict[str, str]]:
    with Path(cell.outputs[0]).open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.usefixtures("project")
def test_tables_show_the_measured_numbers():
    for cell in CELLS:
        if cell.stage.verb != "table":
            continue
        found = [json.loads(Path(path).read_text()) for path in cell.inputs if path.endswith("/metrics.json")]
        recipes = [json.loads(Path(path).read_text()) for path in cell.inputs if path.endswith("/recipe.json")]
        measured = {
            (recipe["measured"]["model"], recipe["measured"]["sampler"]): numbers
            for recipe, numbers in zip(recipes, found, strict=True)
        }
        values = [row for row in rows(cell) if row["kind"] == "value"]
        assert {(row["model"], row["sampler"]) for row in values} == set(measured)
        for row in values:
            source = measured[row["model"], row["sampler"]]
            assert float(row["mean"]) == source[row["metric"]]
            assert [int(row[key]) for key in ("step", "nfe", "n", "reference_n")] == [
                source[key] for key in ("step", "nfe", "n", "reference_n")
            ]
        differences = [row for row in rows(cell) if row["kind"] == "difference"]
        for row in differences:
            ours, base = (measured[row[who], row["sampler"]][row["metric"]] for who in ("model", "baseline"))
            assert float(row["mean"]) == ours - base
        assert len(differences) == (5 if cell.bindings["table"] == "table3" else 0)


def test_a_table_of_the_paper_reads_what_its_numbers_were_made_with(made, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "copy"))

    def name_the_papers(params: dict[str, Any]) -> None:
        params["tables"]["table3"]["paper"] = "table3"
        params["figures"]["figure3"]["paper"] = "figure3"

    write_params(name_the_papers)
    cells = grid.load()
    cell = cells.cell("table", study="mini", table="table3")
    make([cell, cells.cell("figure", study="mini", figure="figure3")])
    assert {row["reason"] for row in rows(cell)} == {"the paper has no figure for the data set digits_mini"}
    files = [Path(path) for path in cell.inputs if path.endswith("metrics.json")]
    behind = [json.loads(Path(path).read_text()) for path in cell.inputs if path.endswith("recipe.json")]
    found = {one.model: one.made_with for one in origin.attach(results.load(files), behind)}
    common = {
        "gp_weight": 0.0,
        "weight_decay": 0.0,
        "batch_size": 16,
        "T": 20,
        "schedule": "cosine",
        "dropout": 0.1,
        "sampling_precision": "float32",
        "reference_n": 256,
        "reference": "the first images",
        "preprocessing": "none",
    }
    assert found == {"adm": ({"gamma": 0.0, **common},), "adm-ip": ({"gamma": 0.1, **common},)}


@pytest.mark.usefixtures("project")
def test_the_report_shows_every_table_and_figure():
    study = grid.load().studies.load("mini")
    page = html.unescape(Path("report/mini/index.html").read_text())
    for name, view in {**study.tables, **study.figures}.items():
        assert f">{view.title}</h2>" in page, name
    for name, view in study.figures.items():
        png = base64.b64encode(Path(f"figures/mini/{name}/figure.png").read_bytes()).decode()
        assert view.kind == "samples" or png in page, name  # images of sets are cut out, to choose from
    (cell,) = (cell for cell in CELLS if cell.bindings.get("table") == "table1")
    assert f"{float(rows(cell)[0]['mean']):.2f}"[:-1] in page


@pytest.mark.usefixtures("project")
def test_one_image_of_a_set_as_a_png(tmp_path):
    cell = next(cell for cell in CELLS if cell.stage.verb == "sample")
    path = tmp_path / "one.jpg"  # its name does not say what is written
    assert ipdiff(*cell.command.split()[1:], "--index", "33", "--out", str(path)) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    with np.load(cell.outputs[0]) as file:
        assert np.array_equal(np.asarray(Image.open(path)), file["arr_0"][33, :, :, 0])
    assert ipdiff(*cell.command.split()[1:], "--index", "5000", "--out", str(path)) == 2


# A preempted job


def test_a_terminated_training_goes_on_and_ends_at_the_same_bytes(empty):
    write_params(
        lambda params: (
            params["datasets"]["digits_mini"].update(checkpoints=[80], final_step={"default": 80}),
            params.update(tables={}, figures={}, work={"save_every": 5}),
        )
    )
    prepare = ["prepare", "--dataset", "digits_mini"]
    training = ["train", "--dataset", "digits_mini", "--model", "adm", "--seed", "0", "--step", "80"]
    assert ipdiff(*prepare) == 0
    program = "import sys; from ipdiff.cli import main; sys.exit(main())"
    job = subprocess.Popen([sys.executable, "-c", program, *training], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list(Path("work").glob("states/**/0*")) or job.poll() is not None)
    os.kill(job.pid, signal.SIGTERM)
    said = job.communicate(timeout=PATIENCE_S)[1]
    assert job.returncode == 75, said
    assert "run me again" in said
    assert not Path("runs").exists()
    assert ipdiff(*training) == 0
    disturbed = {path.name: path.read_bytes() for path in Path("runs/digits_mini/adm/s0/80").iterdir()}
    shutil.rmtree("work")
    assert ipdiff(*training) == 0
    assert {path.name: path.read_bytes() for path in Path("runs/digits_mini/adm/s0/80").iterdir()} == disturbed


# A user's own images


def pets(root: Path) -> None:
    """40 colour PNGs in two directories, one class darker than the other."""
    random = np.random.default_rng(0)
    for number in range(40):
        kind = ("cats", "dogs")[number % 2]
        (root / kind).mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 128, (8, 8, 3)) + 120 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(root / kind / f"{number:02d}.png")


def test_a_users_own_images_from_directory_and_zip(empty):
    pets(Path("raw/pets"))
    with zipfile.ZipFile("raw/pets.zip", "w") as archive:
        for path in sorted(Path("raw/pets").rglob("*.png")):
            archive.write(path, path.relative_to("raw/pets"))
    names = {"pets_dir": "raw/pets", "pets_zip": "raw/pets.zip"}

    def change(params):
        mini = params["datasets"].pop("digits_mini")
        for name, raw in names.items():
            params["datasets"][name] = {
                **mini,
                "source": {"reader": "folder", "image_size": 8, "channels": 3, "raw": raw},
                "sampling": {"num_samples": 16, "batch_size": 8},
                "checkpoints": [3],
                "final_step": {"default": 3},
            }
        table = {
            "title": "Pets & co",
            "datasets": list(names),
            "models": ["adm", "adm-ip"],
            "samplers": ["ancestral-5"],
            "metrics": ["fid", "sfid", "pixel_fd"],
            "rows": ["dataset", "model"],
            "columns": ["metric"],
            "compare": {"adm-ip": "adm"},
        }
        params.update(title="Mine", tables={"pets": table}, figures={})

    write_params(change, Path("studies/mine/params.yaml"))
    cells = grid.load().study("mine")
    make(cells)
    assert recipe(cells[0])["inputs"].keys() <= set(names.values())
    for name in names:
        images, labels = np.load(f"data/{name}/images.npy"), np.load(f"data/{name}/labels.npy")
        assert images.shape == (40, 8, 8, 3)
        assert labels.tolist() == [0] * 20 + [1] * 20
        assert images[labels == 0].max() < 128 < images[labels == 1].mean()
    (table,) = (cell for cell in cells if cell.stage.verb == "table")
    figures: dict[str, list[tuple[str, ...]]] = {name: [] for name in names}
    for row in rows(table):
        figures[row["dataset"]].append((row["kind"], row["model"], row["metric"], row["mean"]))
    assert len(figures["pets_dir"]) == 9
    assert figures["pets_dir"] == figures["pets_zip"]  # the same images, so the same numbers
    assert "Pets &amp; co" in Path("report/mine/index.html").read_text()
