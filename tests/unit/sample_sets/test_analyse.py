"""Statistics of the prediction error."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from unit.tiny import IMAGES, RUNS, files

from ipdiff import rng
from ipdiff.device.spec import Compute
from ipdiff.errors import UserError
from ipdiff.nets import build
from ipdiff.report.figures import curves
from ipdiff.rng import Purpose
from ipdiff.sample_sets import prediction_error
from ipdiff.sample_sets.spec import Analysis
from ipdiff.schedule import make_betas

SPEC = RUNS["adm"]
SETTINGS = Analysis(images=16, batch_size=8, timesteps=4, normality_samples=10)
ORDER = np.random.default_rng(1).permutation(400)
ABOUT = {"dataset": "digits", "model": "adm", "seed": 3, "step": 8}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of a random network, and images."""
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    net = build.network(SPEC)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_file(net.state_dict(), folder / "ema.safetensors")
    np.save(folder / "images.npy", IMAGES)
    return folder / "ema.safetensors", folder / "images.npy"


def analysed(inputs: tuple[Path, Path], out: Path, **changes: int) -> Path:
    out.mkdir()
    settings = dataclasses.replace(SETTINGS, **changes)
    prediction_error.run(SPEC, *inputs, settings, ABOUT, out, compute=Compute())
    return out


def rows(path: Path) -> list[dict[str, float]]:
    with path.open() as stream:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(stream)]


def test_the_papers_timesteps() -> None:
    settings = Analysis(images=2, batch_size=1)
    assert prediction_error.timesteps(settings, 1000) == list(range(0, 1000, 10))
    assert prediction_error.timesteps(settings, 20) == list(range(20))


def test_normal_errors_are_rejected_at_the_tests_own_rate() -> None:
    settings = dataclasses.replace(SETTINGS, normality_samples=50)
    drawn = (0.3 + 0.7 * np.random.default_rng(0).standard_normal((400, 1500))).astype(np.float32)
    found = prediction_error.summarise(0, drawn, settings, ORDER)
    assert found.nu == pytest.approx(0.7, rel=0.01)
    assert found.mean == pytest.approx(0.3, abs=0.01)
    assert found.rejected == pytest.approx(0.05, abs=3 * (0.05 * 0.95 / 1500) ** 0.5)
    inside = found.histogram[
        (prediction_error.EDGES[:-1] >= -1 - 1e-9) & (prediction_error.EDGES[:-1] < 1 - 1e-9)
    ].sum()
    assert inside == pytest.approx(0.6827, abs=0.005)
    assert found.histogram.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", ["uniform", "constant"])
def test_other_errors_are_rejected(kind: str) -> None:
    drawn = np.random.default_rng(0).random((400, 50)) if kind == "uniform" else np.full((400, 50), 0.25)
    settings = dataclasses.replace(SETTINGS, normality_samples=200)
    assert prediction_error.summarise(0, drawn.astype(np.float32), settings, ORDER).rejected == 1.0


def test_the_error_is_that_of_one_network_call(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    found = rows(analysed(inputs, tmp_path / "out") / "errors.csv")
    assert [row["t"] for row in found] == [0, 5, 10, 15]
    net = build.network(SPEC)
    from safetensors.torch import load_file

    net.load_state_dict(load_file(inputs[0]))
    net.eval()
    kept = np.sort(rng.permutation(SPEC.seed, Purpose.ANALYSIS_ORDER, len(IMAGES))[:16])
    x0 = torch.from_numpy(IMAGES[kept]).permute(0, 3, 1, 2).float() / 127.5 - 1
    alphas_cumprod = np.cumprod(1 - make_betas("cosine", 20))
    for row in found:
        t = int(row["t"])
        eps = torch.from_numpy(rng.normals(SPEC.seed, Purpose.ANALYSIS_EPS, range(16), (1, 4, 4), step=t))
        a = float(alphas_cumprod[t])
        x_t = a**0.5 * x0 + (1 - a) ** 0.5 * eps
        with torch.no_grad():
            predicted = net(x_t, torch.full((16,), t))[:, :1]
        error = (((x_t - (1 - a) ** 0.5 * predicted) / a**0.5).clamp(-1, 1) - x0).flatten(1).double().numpy()
        assert row["nu"] == pytest.approx(error.std(0).mean(), rel=1e-5)
        assert row["mean"] == pytest.approx(error.mean(), abs=1e-6)


def test_the_same_bytes_again_and_the_same_numbers_for_any_batch(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = analysed(inputs, tmp_path / "a"), analysed(inputs, tmp_path / "b")
    assert files(first) == files(second)
    other = analysed(inputs, tmp_path / "c", batch_size=5)
    for ours, theirs in zip(rows(first / "errors.csv"), rows(other / "errors.csv"), strict=True):
        assert ours["nu"] == pytest.approx(theirs["nu"], rel=1e-5)


def test_the_summary_says_what_it_is_of(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    out = analysed(inputs, tmp_path / "out", normality_samples=50)
    found = rows(out / "errors.csv")
    summary = json.loads((out / "analysis.json").read_text())
    assert summary == {
        **ABOUT, "n": 16, "T": 20, "alpha": 0.05, "normality_samples": 16,
        "nu": pytest.approx(np.mean([row["nu"] for row in found])),
        "rejected": pytest.approx(np.mean([row["rejected"] for row in found])),
    }  # fmt: skip
    shown = rows(out / "histogram.csv")
    assert {row["t"] for row in shown} == {5, 10, 15}


def test_the_figure_shows_what_was_analysed(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    where = tmp_path / "analysis/digits/adm/s3/8"
    where.parent.mkdir(parents=True)
    analysed(inputs, where)
    curves.draw("errors", [where / "errors.csv"], tmp_path, {})
    with (tmp_path / "figure.csv").open() as stream:
        drawn = list(csv.DictReader(stream))
    assert {(row["dataset"], row["model"], row["seed"], row["step"]) for row in drawn} == {("digits", "adm", "3", "8")}
    assert [float(row["nu"]) for row in drawn] == [row["nu"] for row in rows(where / "errors.csv")]
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("text", ["", "t,nu\n0,1\n", "t,nu,mean,rejected\n0,nan,0,0\n"])
def test_a_file_that_is_no_analysis_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "analysis/digits/adm/s3/8/errors.csv"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(UserError, match=r"errors\.csv: expected analysis/DATASET"):
        curves.read(path, curves.KINDS["errors"])
