"""Training on from another run's checkpoint, by the commands: what is read, recorded and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from unit import params_factory

from ipdiff import cli
from ipdiff.data.images import load_images
from ipdiff.pipeline import config
from ipdiff.training.host_feeder import HostFeeder
from ipdiff.training.run import Run

START = "runs/tiny/adm/s0/8"
TUNED = "runs/tiny/tuned/s0"


def params() -> dict[str, Any]:
    raw = params_factory.small()
    raw["models"]["tuned"] = {"family": "adm", "gamma": 0.1, "start": {"model": "adm"}}
    return raw


def train(model: str, step: int) -> int:
    return cli.main(["train", "--dataset", "tiny", "--model", model, "--seed", "0", "--step", str(step)])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which a run is trained, and another one on from it. To be read only."""
    project = tmp_path_factory.mktemp("project")
    params_factory.write(project, params())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        assert cli.main(["prepare", "--dataset", "tiny"]) == 0
        assert [train(model, step) for model in ("adm", "tuned") for step in (4, 8)] == [0] * 4
    return project


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to change."""
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "project"))
    return Path()


def recipe(directory: str) -> dict[str, Any]:
    return json.loads(Path(directory, "recipe.json").read_text())


def test_the_checkpoint_is_that_of_a_run_with_these_weights(project: Path) -> None:
    known = config.load(project / config.path_of("small"))
    run = Run(
        known.run_spec("tiny", "tuned", 0),
        load_images(Path("data/tiny/images.npy")),
        load_file(f"{START}/ema.safetensors"),
    )
    feeder = HostFeeder(run)
    for _ in range(8):
        feeder.advance()
    found = load_file(f"{TUNED}/8/ema.safetensors")
    assert {name: value.tobytes() for name, value in found.items()} == {
        name: value.tobytes() for name, value in run.ema_weights().items()
    }


def test_the_recipes_name_what_it_was_started_from(project: Path) -> None:
    weights = recipe(START)["outputs"]["ema.safetensors"]
    for step in (4, 8):
        assert recipe(f"{TUNED}/{step}")["inputs"][f"{START}/ema.safetensors"] == weights
    assert recipe(f"{TUNED}/4")["params"]["models.tuned"] == params()["models"]["tuned"]
    assert not any("ema.safetensors" in path for path in recipe(START)["inputs"])


def test_lost_states_are_trained_again_from_the_start(project: Path) -> None:
    before = recipe(f"{TUNED}/8")
    shutil.rmtree("work")
    shutil.rmtree(f"{TUNED}/8")
    assert train("tuned", 8) == 0
    assert recipe(f"{TUNED}/8") == before
    shutil.rmtree("work")
    assert cli.main(["resume", "--dataset", "tiny", "--model", "tuned", "--seed", "0", "--step", "8"]) == 0
    assert recipe("states/tiny/tuned/s0/8")["outputs"]["state.safetensors"] == before["state"]


def rewrite(raw: dict[str, Any]) -> None:
    params_factory.write(Path(), raw)


def test_a_segment_does_not_go_on_from_another_start(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(params_factory.put(params(), "models.tuned.start.step", 4))
    assert train("tuned", 8) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        f"ipdiff: {TUNED}/4/recipe.json is of other parameters, or of another start, than there are now"
    )
    assert said.count("\n") == 1


def test_a_segment_does_not_go_on_without_its_start(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = params()
    del raw["models"]["tuned"]["start"]
    rewrite(raw)
    assert train("tuned", 8) == 2
    assert "of another start" in capsys.readouterr().err


def test_weights_of_another_network_are_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(params_factory.put(params(), "datasets.tiny.families.adm.network.num_res_blocks", 2))
    assert train("tuned", 4) == 2
    assert capsys.readouterr().err == (
        f"ipdiff: {START}/ema.safetensors is of another network than params.yaml has now: its num_res_blocks is 1, "
        "not 2; make it again\n"
    )


def test_an_imported_checkpoint_is_a_start(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = params_factory.put(params(), "models.official", {"family": "adm", "imported": True})
    rewrite(params_factory.put(raw, "models.tuned.start", {"model": "official", "step": 70}))
    assert train("tuned", 4) == 2
    assert (
        "runs/tiny/official/s0/70 is not here: get its checkpoint; then `ipdiff import FILE" in capsys.readouterr().err
    )
    given = ["import", f"{START}/ema.safetensors", "--as", "tiny/official", "--step", "70"]
    assert cli.main(given) == 0
    before = recipe(f"{TUNED}/4")
    assert train("tuned", 4) == 0
    after = recipe(f"{TUNED}/4")
    assert after["state"] == before["state"]
    assert after["inputs"].keys() - before["inputs"].keys() == {
        f"runs/tiny/official/s0/70/{name}" for name in ("ema.safetensors", "recipe.json")
    }
