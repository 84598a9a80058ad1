"""The benchmark's own arithmetic, and that its one command runs."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from unit.tiny import RUNS

from benchmarks import __main__ as benchmarks
from benchmarks import metrics, peers
from benchmarks.configurations import CIFAR10, FFHQ128
from benchmarks.rows import Row, as_json, describe
from ipdiff import cli
from ipdiff.device.spec import Compute
from ipdiff.metrics.scores import overlap
from ipdiff.nets import costs
from ipdiff.pipeline.commands.planning import rates
from ipdiff.pipeline.commands.study import bench
from ipdiff.pipeline.commands.study.bench import SHAPES, Measured


def test_rates_are_those_of_the_quicker_quarter(monkeypatch):
    now = [0.0]

    def counter():
        return now[0]

    durations = iter([9.0, 9.0, 1.0, 9.0, 2.0, 9.0])  # the first call warms up

    def call():
        now[0] += next(durations)

    monkeypatch.setattr(bench.time, "perf_counter", counter)
    assert bench._rates({"work": call}, 29.0, torch.device("cpu")) == {"work": 1 / 2.0}


def test_rows_count_arithmetic_and_feed_a_plan():
    rows = bench.measure("small", RUNS["adm-ip"], 4, 0.05)
    flops = costs.of(RUNS["adm-ip"]).flops
    assert [row.unit for row in rows] == ["images/s", "image-steps/s"]
    assert rows[0].gflops == pytest.approx(3e-9 * flops * rows[0].speed)
    assert rows[1].gflops == pytest.approx(1e-9 * flops * rows[1].speed)
    assert rows[0].limit == rows[1].limit > 0
    option = bench.for_plan("small", rows).removeprefix("--speed ")
    assert rates.Speed.parse(option).sample == pytest.approx(rows[1].speed, rel=1e-3)


def test_sampling_is_held_against_convolutions_of_its_own_precision(monkeypatch):
    rates = {"train": 1.0, "sample": 1.0}
    rates |= {
        f"{kind} conv {shape}": speed for kind, speed in (("float32", 1.0), ("bfloat16", 8.0)) for shape in SHAPES
    }
    monkeypatch.setattr(bench, "_rates", lambda calls, *_: {key: rates[key] for key in calls})
    low = Compute(precision="bfloat16")
    same, other = (bench.measure("small", RUNS["adm"], 4, 1.0, sampling) for sampling in (None, low))
    assert same[0].limit == same[1].limit == other[0].limit
    assert other[1].limit == 8 * other[0].limit


def test_the_paper_s_networks_have_their_published_arithmetic():
    """18.53 GFLOP a CIFAR-10 image, counted with the official code."""
    cost = costs.of(CIFAR10)
    assert cost.parameters == 57_094_662
    assert cost.flops / 1e9 == pytest.approx(18.53, abs=0.01)
    assert costs.of(FFHQ128).parameters == 542_811_398


def test_description_shows_the_share():
    text = bench.describe([Measured("digits training", 1234.5, "images/s", 71.0, 284.0)])
    assert text.splitlines()[1].split() == ["digits", "training", "1,234", "images/s", "71", "284", "25%"]


def test_a_matrix_product_stands_beside_the_limit():
    row = Measured("training", 1234.5, "images/s", 71.0, 284.0, matmul=710.0)
    assert "25%, 10% of a matrix product's 710" in bench.describe([row])
    assert bench.as_json([row])[0]["of_matmul"] == pytest.approx(0.1)


def test_normals_are_counted():
    assert bench.normals(torch.device("cpu"), 0.01) > 1e5


def test_a_configuration_that_cannot_be_measured_costs_no_other(monkeypatch, capsys):
    def measure(name, *more):
        if "small" in name:
            raise torch.OutOfMemoryError("CUDA out of memory.\nmore")
        return [Measured(f"{name} {what}", 1.0, "images/s", 1.0, 2.0) for what in ("training", "sampling")]

    monkeypatch.setattr(benchmarks.bench, "measure", measure)
    monkeypatch.setattr(
        benchmarks.configurations, "all_of", lambda *_: [(name, CIFAR10, 1) for name in ("small", "large")]
    )
    assert len(benchmarks.speeds(1, 1.0, False)) == 2
    assert "small: not measured: CUDA out of memory.\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits_mini", "--seconds", "0"], "--seconds is 0"),
        (["imagenet32", "--model", "ddim"], "families.ddpm: missing"),
    ],
)
def test_refusals_are_one_line(arguments, message, capsys):
    assert cli.main(["bench", "--dataset", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_row_s_ratio_is_1_at_the_limit_and_more_beyond_it():
    slow, fast = (Row("x", ours, 30.0, "s", "goal") for ours in (60.0, 15.0))
    assert (slow.ratio, fast.ratio) == (0.5, 2.0)
    assert Row("x", 80.0, 100.0, "images/s", "the network alone").ratio == 0.8
    assert describe([slow]).splitlines()[1].split() == ["x", "60", "30", "s", "50%", "goal"]
    assert as_json([slow])[0]["ratio"] == 0.5


def test_products_of_a_set_with_itself_are_about_half_of_those_with_another(monkeypatch):
    monkeypatch.setattr(overlap, "BLOCK", 4)
    assert metrics._more("overlap", 8, 4) == 4
    assert metrics._more("radii", 8, 4) == 3  # two blocks: three of the four pairs


def test_quick_benchmarks_write_everything(tmp_path, monkeypatch, capsys):
    path = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", "--threads", "1", "--json", str(path)])
    benchmarks.main()
    found = json.loads(path.read_text())
    assert {"cpu", "device", "load", "date"} <= found["machine"].keys()
    assert {row["what"].split()[0] for row in found["speed"]} == {"tiny"}
    assert {row["what"] for row in found["scaling"]} == {"image size", "batch", "T'", "cells", "processes"}
    assert all(row["cost"] > 0 for row in found["scaling"])
    rows = [*found["metrics"], *found["startup"]]
    assert all(0 < row["ours"] < float("inf") and 0 < row["ratio"] < float("inf") for row in rows)
    for what in ("moments", "FID", "radii", "precision and recall", "peak memory", "Inception", "ipdiff --help"):
        assert any(row["what"].startswith(what) for row in rows), what
    assert "tiny float32 sampling" in capsys.readouterr().out


def test_peers_are_compared_by_adjacent_pairs():
    row = peers.Turns("work", "other", (1.0, 2.0, 4.0), (2.0, 2.0, 6.0))
    assert row.ratios == [1.0, 1.5, 2.0]
    assert row.ratio == 1.5
    assert "1.50x  [1.00, 2.00] of 3 pairs" in peers.describe([row])
    assert peers.as_json([row])[0]["range"] == [1.0, 2.0]


def test_turns_are_taken_one_after_the_other_and_the_first_pair_does_not_count():
    done = []

    def work(name):
        return lambda: done.append(name)

    worker = peers.Here({name: work(name) for name in ("ours", "other")})
    row = peers._turns("work", "other", worker, worker, 2)
    assert done == ["ours", "other"] * 3
    assert len(row.ours) == len(row.theirs) == 2


def test_peers_are_measured_in_processes_of_their_own(tmp_path, monkeypatch, capsys):
    path = tmp_path / "found.json"
    command = ["benchmarks", "--peers", "--quick", "--threads", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", command)
    benchmarks.main()
    found = json.loads(path.read_text())
    assert {row["peer"] for row in found["peers"]} | found["left out"].keys() == {*peers.NETWORKS, *peers.FID}
    assert "diffusers" not in found["left out"]
    assert all(0 < row["range"][0] <= row["ratio"] <= row["range"][1] for row in found["peers"])
    assert "official: left out: give a fetched copy of its code with --official DIR\n" in capsys.readouterr().out


def test_a_peer_that_fails_costs_no_other(capfd):
    settings = {"work": "sampling", "threads": 1, "quick": True, "official": "/nowhere"}
    with peers._or_left_out("official"), peers.Apart("networks", ["official"], settings, 1) as worker:
        worker.turn("official")
    said = capfd.readouterr()
    assert "official: left out: the process of official ended with code 1\n" in said.out
    assert "guided_diffusion" in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--official", "."], "--official .: no guided_diffusion/script_util.py in it"),
        (["--turns", "0"], "--turns is 0; use 1 or more"),
    ],
)
def test_peers_refusals_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--peers", *arguments])
    with pytest.raises(SystemExit, match="2"):
        benchmarks.main()
    assert message in capsys.readouterr().err.splitlines()[-1]
