"""What a target needs, against counts made by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from unit import params_factory

from ipdiff import cli
from ipdiff.device.spec import Compute
from ipdiff.errors import UserError
from ipdiff.nets import costs
from ipdiff.pipeline import config, grid
from ipdiff.pipeline.commands.planning import plan
from ipdiff.pipeline.commands.planning.plan import Planner
from ipdiff.pipeline.commands.planning.rates import DEVICES, SHARES, Kind, Named, Speed
from ipdiff.pipeline.commands.planning.text import describe
from ipdiff.pipeline.grid.freshness import Freshness

ROOT = Path(__file__).parents[3]


@pytest.fixture
def planner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planner:
    """A plan of the tests' study, nothing of it made."""
    monkeypatch.chdir(tmp_path)
    params_factory.write(tmp_path, params_factory.small())
    return Planner(Freshness(grid.load()))


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
    network = costs.of(spec)
    assert cost.cells == 2
    assert cost.images == 8 * spec.training.batch_size
    assert cost.evaluations == 3 * cost.images
    assert cost.flops == cost.evaluations * network.flops
    assert cost.bytes == 2 * 4 * network.parameters


def test_sampling_counts_an_evaluation_for_each_step(planner: Planner) -> None:
    cost = planner.plan(["samples/tiny/adm/s0/8/ancestral-4"]).verbs["sample"]
    count = planner.studies.dataset("tiny").sampling.num_samples
    assert (cost.cells, cost.images, cost.evaluations) == (1, count, 4 * count)


def test_what_is_computed_in_another_precision_has_no_hours_from_that_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = params_factory.put(params_factory.small(), "datasets.photos.sampling.precision", "bfloat16")
    params_factory.write(tmp_path, raw)
    for name, other in (("tiny", {"sample": ["photos"]}), ("photos", {})):
        found = plan.run(["samples/photos/adm/s0/4/ancestral-4"], Speed(name, train=10.0, sample=100.0))
        assert found.unmeasured == found.as_json()["unmeasured"] == other
        assert (found.verbs["sample"].seconds > 0) == (not other)
        assert ("another precision or on another kind of device: sample of photos" in describe(found)) == bool(other)


def test_hours_follow_from_a_speed(planner: Planner) -> None:
    found = timed(planner, Speed("tiny", train=10.0, sample=100.0)).plan(["samples/tiny/adm/s0/8/ancestral-4"])
    train, sample = found.verbs["train"], found.verbs["sample"]
    assert train.seconds == train.least == train.most == pytest.approx(train.images / 10)
    assert sample.seconds == pytest.approx(sample.evaluations / 100)
    assert "100 image-steps/s of tiny" in describe(found)


def test_without_a_speed_or_a_device_there_are_no_hours(planner: Planner) -> None:
    found = planner.plan(["small"])
    assert (found.total.seconds, found.wall_clock, found.chain) == (0, (0, 0, 0), [])
    assert "hours: name a device with --device, or" in describe(found)
    assert "together" not in describe(found)


def test_a_gpu_has_no_hours_for_what_a_cpu_computes(planner: Planner) -> None:
    found = timed(planner, Named("h100")).plan(["samples/tiny/adm/s0/8/ancestral-4"])
    assert found.total.seconds == 0
    assert found.unmeasured == {"train": ["tiny"], "sample": ["tiny"]}
    assert found.memory == []


def test_cells_that_wait_for_each_other_take_as_long_as_their_chain(planner: Planner) -> None:
    """One run of two segments and its samples: a second device changes nothing; another run beside it does."""
    speed, chain = Speed("tiny", train=10.0, sample=100.0), ["runs/tiny/adm/s0/4", "runs/tiny/adm/s0/8"]
    target = "samples/tiny/adm/s0/8/ancestral-4"
    for devices in (1, 2):
        found = timed(planner, speed, devices).plan([target])
        assert found.chain == [*chain, target]
        assert found.wall_clock[1] == found.chain_seconds == pytest.approx(found.total.seconds)
    both = [target, target.replace("adm", "adm-ip")]
    alone, together = (timed(planner, speed, devices).plan(both) for devices in (1, 2))
    assert alone.wall_clock[1] == pytest.approx(alone.total.seconds)
    assert together.wall_clock[1] == pytest.approx(alone.total.seconds / 2)


def timed(planner: Planner, speed: Speed | Named, devices: int = 1) -> Planner:
    return Planner(planner.fresh, speed, devices)


def test_precision_and_recall_count_pairs_of_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raw = params_factory.small()
    raw["datasets"]["tiny"] |= {"reference": {"images": 50, "seed": 0, "neighbours": True}}
    params_factory.write(tmp_path, raw)
    verbs = Planner(Freshness(grid.load())).plan(["small"]).verbs
    width, drawn = raw["datasets"]["tiny"]["classifier"]["features"], [64, 64, 64, 64, 48]
    assert (verbs["neighbours"].images, verbs["neighbours"].flops) == (50, 2 * width * 50**2)
    assert verbs["neighbours"].bytes == 50 * (width + 5) * 4
    assert (verbs["halves"].cells, verbs["halves"].images) == (2, 2 * 50), "of 64 and of 48 samples: half of 50 images"
    assert verbs["evaluate"].flops == sum(2 * width * n * (n + 50) for n in drawn)


def test_kid_and_coverage_count_their_own_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raw = params_factory.small()
    raw["datasets"]["tiny"] |= {"reference": {"images": 50, "seed": 0, "neighbours": True}}
    cell, width = "metrics/tiny/adm/s0/8/ancestral-4", raw["datasets"]["tiny"]["classifier"]["features"]
    params_factory.write(tmp_path, raw)
    before = plan.run([cell]).verbs["evaluate"].flops
    raw["datasets"]["tiny"] |= {"metrics": ["kid", "coverage"], "kid": {"subsets": 7, "subset_size": 20, "seed": 0}}
    params_factory.write(tmp_path, raw)
    more = plan.run([cell]).verbs["evaluate"].flops - before
    drawn = raw["datasets"]["tiny"]["sampling"]["num_samples"]
    assert more == 2 * width * (drawn * 50 + 7 * 3 * 20**2)


def test_a_table_needs_less_than_its_study(planner: Planner) -> None:
    assert planner.plan(["table:small/table1"]).total.cells < planner.plan(["small"]).total.cells


@pytest.mark.parametrize("text", ["x", "tiny", "tiny=1", "tiny=0,1", "tiny=a,b", "=1,2", "tiny=inf,1", "tiny=nan,1"])
def test_a_speed_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="write DATASET=TRAIN,SAMPLE"):
        Speed.parse(text)


def test_a_device_that_is_unknown_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UserError, match="did you mean 'h100'.*v100.*--speed"):
        Named.parse("h10")


def test_measured_shares_are_those_of_the_speeds_they_come_from() -> None:
    """images/s and image-steps/s of one H200, by the networks' arithmetic: 160, 227, 280; 221, 308, 327 TFLOP/s."""
    speeds: dict[Kind, dict[str, float]] = {
        "train": {"cifar10": 2877, "lsun_tower64": 345, "ffhq128": 117},
        "sample": {"cifar10": 11926, "lsun_tower64": 1405, "ffhq128": 410},
    }
    studies = config.Studies(ROOT)
    device = Named("h200")
    for kind, known in speeds.items():
        passes = costs.UPDATE if kind == "train" else 1
        for name, speed in known.items():
            flops = costs.of(studies.owner(name).run_spec(name, "adm", 0)).flops
            rate = device.rate(kind, flops, Compute("cuda", precision="bfloat16"))
            assert rate is not None
            assert rate[1] == pytest.approx(speed * passes * flops, rel=0.01)
            assert rate[0] <= rate[1] <= rate[2]


def test_a_device_in_float32_has_its_own_peak() -> None:
    half, single = (
        Named("a100").rate("sample", 2e10, Compute("cuda", precision=kind)) for kind in ("float16", "float32")
    )
    assert half is not None
    assert single is not None
    assert half[1] / single[1] == pytest.approx(DEVICES["a100"].half / DEVICES["a100"].single)
    assert half[1] == pytest.approx(312e12 * min(SHARES["sample"].values()))


def test_the_paper_study_has_the_arithmetic_that_torch_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by torch's counter before there were formulas; the study in 1,300 hours needs 278 TFLOP/s."""
    monkeypatch.chdir(ROOT)
    found = plan.run(["paper"], Speed("imagenet32", 5000, 17000))
    assert found.verbs["train"].flops == pytest.approx(812_277.1e15, rel=1e-6)
    assert found.verbs["sample"].flops == pytest.approx(553_284.4e15, rel=1e-6)
    assert 5000 * costs.UPDATE * 18.53e9 == pytest.approx(278e12, rel=1e-3)
    assert found.verbs["train"].seconds == pytest.approx(found.verbs["train"].flops / 278e12, rel=1e-3)
    assert found.total.seconds / 3600 == pytest.approx(1300, rel=0.02)


def test_memory_of_the_paper_s_networks_is_held_against_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = plan.run(["paper"], Named("v100"))
    faces = next(one for one in found.memory if one.name.startswith("ffhq128"))
    assert (faces.images, faces.total) == (128, faces.fixed + 128 * faces.image)
    assert faces.image < 430 * 2**20 < faces.whole
    for memory in (faces.total, faces.total - 1):
        assert faces.largest(memory) == 128 - (memory < faces.total)
    assert faces.largest(0) == 0
    (line,) = (line for line in describe(found).splitlines() if "training ffhq128" in line)
    assert f"more than 16.0 GB, which hold {faces.largest(16 * 10**9)} at a time, and it is cut so" in line
    assert "v100 has no bfloat16" in describe(found)


def test_a_plan_does_not_import_torch() -> None:
    code = (
        "import sys; from ipdiff import cli; "
        "cli.main(['plan', 'paper', '--device', 'H100']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "--gpus is 0; use 1 or more"),
        (["--device", "h100", "--speed", "cifar10=1,2"], "--device or --speed, not both"),
        (["--device", "H-100"], "did you mean 'h100'"),
        (["--speed", "cifar=1,2"], "dataset 'cifar'"),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.main(["plan", "mini", *arguments]) == 2
    said = capsys.readouterr()
    assert (message in said.err, said.err.count("\n"), said.out) == (True, 1, "")
