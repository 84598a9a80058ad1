"""What a target needs, against counts made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from unit import params_factory

from ipdiff.errors import UserError
from ipdiff.pipeline import grid
from ipdiff.pipeline.commands.study import plan
from ipdiff.pipeline.commands.study.plan import Planner, Speed
from ipdiff.pipeline.grid.freshness import Freshness


@pytest.fixture
def planner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planner:
    """A plan of the tests' study, nothing of it made."""
    monkeypatch.chdir(tmp_path)
    params_factory.write(tmp_path, params_factory.small())
    return Planner(Freshness(grid.load()))


def spec_key(planner: Planner) -> str:
    return json.dumps(planner.studies.owner("tiny").run_spec("tiny", "adm", 0).to_json())


def test_every_cell_is_counted_once(planner: Planner) -> None:
    found = planner.plan(["small"])
    cells = planner.fresh.grid.study("small")
    assert found.total.cells == found.total.missing == len(cells)
    assert {verb: cost.cells for verb, cost in found.verbs.items()} == {
        verb: sum(cell.stage.verb == verb for cell in cells) for verb in found.verbs
    }


def test_training_counts_three_passes_an_image(planner: Planner) -> None:
    cost = planner.plan(["runs/tiny/adm/s0/8"]).verbs["train"]
    spec = planner.studies.owner("tiny").run_spec("tiny", "adm", 0)
    flops, parameters = plan.network(spec_key(planner))
    assert cost.cells == 2
    assert cost.images == 8 * spec.training.batch_size
    assert cost.evaluations == 3 * cost.images
    assert cost.flops == cost.evaluations * flops
    assert cost.bytes == 2 * 4 * parameters


def test_sampling_counts_an_evaluation_for_each_step(planner: Planner) -> None:
    cost = planner.plan(["samples/tiny/adm/s0/8/ancestral-4"]).verbs["sample"]
    count = planner.studies.dataset("tiny").sampling.num_samples
    assert (cost.cells, cost.images, cost.evaluations) == (1, count, 4 * count)


def test_sampling_in_another_precision_has_no_hours_from_that_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = params_factory.put(params_factory.small(), "datasets.photos.sampling.precision", "bfloat16")
    params_factory.write(tmp_path, raw)
    for name, other in (("tiny", ["photos"]), ("photos", [])):
        speed = Speed(name, train=10.0, sample=100.0)
        found, data = plan.run(["samples/photos/adm/s0/4/ancestral-4"], speed)
        assert found.otherwise == data["other_precision"] == other
        assert ("sampled in another precision than tiny" in plan.describe(found, speed)) == bool(other)


def test_hours_follow_from_a_speed(planner: Planner) -> None:
    planner.speed = Speed("tiny", train=10.0, sample=100.0)
    found = planner.plan(["samples/tiny/adm/s0/8/ancestral-4"])
    assert found.verbs["train"].seconds == pytest.approx(found.verbs["train"].images / 10)
    assert found.verbs["sample"].seconds == pytest.approx(found.verbs["sample"].evaluations / 100)
    assert "100 image-steps/s of tiny" in plan.describe(found, planner.speed)


def test_precision_and_recall_count_pairs_of_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raw = params_factory.small()
    raw["datasets"]["tiny"] |= {"reference": {"images": 50, "seed": 0, "neighbours": True}}
    params_factory.write(tmp_path, raw)
    costs = Planner(Freshness(grid.load())).plan(["small"]).verbs
    width, drawn = raw["datasets"]["tiny"]["classifier"]["features"], [64, 64, 64, 64, 48]
    assert (costs["neighbours"].images, costs["neighbours"].flops) == (50, 2 * width * 50**2)
    assert costs["neighbours"].bytes == 50 * (width + 5) * 4
    assert (costs["halves"].cells, costs["halves"].images) == (2, 2 * 50), "of 64 and of 48 samples: half of 50 images"
    assert costs["evaluate"].flops == sum(2 * width * n * (n + 50) for n in drawn)


def test_a_table_needs_less_than_its_study(planner: Planner) -> None:
    assert planner.plan(["table:small/table1"]).total.cells < planner.plan(["small"]).total.cells


@pytest.mark.parametrize("text", ["x", "tiny", "tiny=1", "tiny=0,1", "tiny=a,b", "=1,2"])
def test_a_speed_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="write DATASET=TRAIN,SAMPLE"):
        Speed.parse(text)
