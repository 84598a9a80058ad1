"""Drift: nothing where there is no exposure bias, what was put in where there is."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from unit.tiny import RUNS, change

from ipdiff.data.images import to_network
from ipdiff.device.spec import Compute
from ipdiff.errors import UserError
from ipdiff.nets import build
from ipdiff.report.figures import curves
from ipdiff.sample_sets import drift
from ipdiff.sample_sets.sample import ImageSampler
from ipdiff.sample_sets.spec import Analysis, Sampler

T, N = 300, 384
SPEC = change(RUNS["ddim"], T=T)
SETTINGS = Analysis(images=N, batch_size=96)
IMAGES = np.clip(np.random.default_rng(0).normal(127.5, 32, (N, 4, 4, 1)).round(), 0, 255).astype(np.uint8)
SPREAD = float(to_network(IMAGES).var())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Some weights, and images whose pixels are normal and independent."""
    folder = tmp_path_factory.mktemp("files")
    save_file(build.network(SPEC).state_dict(), folder / "ema.safetensors")
    np.save(folder / "images.npy", IMAGES)
    return folder / "ema.safetensors", folder / "images.npy"


def measured(files: tuple[Path, Path], out: Path, name: str, says: float = 1.0) -> list[dict[str, float]]:
    """The rows for a network that is right for such images, but for a factor."""
    draw = ImageSampler(SPEC, files[0], Sampler.parse(name), clip_denoised=False, compute=Compute(), images=IMAGES)
    table = SPEC.diffusion.alphas_cumprod()

    def network(x: Tensor, t: Tensor) -> Tensor:
        a = float(table[int(t[0])])
        return says * x * (1 - a) ** 0.5 / (a * SPREAD + 1 - a)

    draw.model = network  # pyright: ignore[reportAttributeAccessIssue]
    out.mkdir()
    drift.run(draw, files[1], SETTINGS, out)
    with (out / "drift.csv").open() as stream:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(stream)]


def test_a_chain_with_the_right_network_does_not_drift(files: tuple[Path, Path], tmp_path: Path) -> None:
    rows = measured(files, tmp_path / "right", f"ddim0-{T}")
    assert [row["t"] for row in rows] == list(range(T - 1, -1, -1))
    assert tuple(rows[0]) == drift.COLUMNS
    for row in rows:
        assert row["delta"] < 4 * row["delta_floor"]
        together = np.hypot(row["eps_chain_se"], row["eps_data_se"])
        assert abs(row["eps_chain"] - row["eps_data"]) < 6 * together + 0.01 * row["eps_data"]


@pytest.mark.parametrize("says", [0.9, 1.1])
def test_a_network_that_says_too_much_or_too_little_drifts(
    files: tuple[Path, Path], tmp_path: Path, says: float
) -> None:
    rows = measured(files, tmp_path / "wrong", f"ddim0-{T}", says)
    assert rows[0]["delta"] < 4 * rows[0]["delta_floor"]  # both begin with noise
    assert rows[-1]["delta"] > 20 * rows[-1]["delta_floor"]
    # More taken away than there is leaves too little, and the network then says less than at diffused images.
    assert (rows[-1]["eps_chain"] < rows[-1]["eps_data"]) == (says > 1)


def test_epsilon_scaling_takes_a_constant_excess_away(files: tuple[Path, Path], tmp_path: Path) -> None:
    wrong = measured(files, tmp_path / "wrong", f"ddim0-{T}", 1.1)
    scaled = measured(files, tmp_path / "scaled", f"ddim0-{T}-es1.1", 1.1)
    assert all(row["delta"] < 4 * row["delta_floor"] for row in scaled)
    assert scaled[-1]["eps_data"] == pytest.approx(wrong[-1]["eps_data"])  # what the network says is not scaled


@pytest.mark.parametrize("name", ["ancestral-10", "unipc-logsnr8", "exposure-40"])
def test_every_sampler_is_measured_at_its_own_steps(files: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    rows = measured(files, tmp_path / "a", name)
    draw = ImageSampler(SPEC, files[0], Sampler.parse(name), clip_denoised=False, compute=Compute(), images=IMAGES)
    assert [row["t"] for row in rows] == draw.timesteps[: draw.nfe][::-1].tolist()
    assert rows[0]["delta"] < 4 * rows[0]["delta_floor"]
    measured(files, tmp_path / "b", name)
    assert (tmp_path / "a/drift.csv").read_bytes() == (tmp_path / "b/drift.csv").read_bytes()


def test_the_figure_shows_what_was_measured(files: tuple[Path, Path], tmp_path: Path) -> None:
    paths = []
    for model, says in (("adm", 1.1), ("adm-ip", 1.0)):
        for sampler in ("ddim0-5", "unipc-5"):
            where = tmp_path / f"drift/digits/{model}/s3/8/{sampler}"
            where.parent.mkdir(parents=True, exist_ok=True)
            measured(files, where, sampler, says)
            paths.append(where / "drift.csv")
    curves.draw("drift", paths, tmp_path, {})
    with (tmp_path / "figure.csv").open() as stream:
        drawn = list(csv.DictReader(stream))
    assert len(drawn) == 20
    assert {(row["model"], row["sampler"], row["seed"], row["step"]) for row in drawn} == {
        (model, sampler, "3", "8") for model in ("adm", "adm-ip") for sampler in ("ddim0-5", "unipc-5")
    }
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    paths[0].write_text("t,delta\n0,1\n")
    with pytest.raises(
        UserError, match=r"drift\.csv: expected drift/DATASET/MODEL/sSEED/STEP/SAMPLER/drift\.csv with t, "
    ):
        curves.draw("drift", paths, tmp_path, {})


def test_no_generator_of_torch_is_used(files: tuple[Path, Path], tmp_path: Path) -> None:
    before = torch.get_rng_state()
    measured(files, tmp_path / "a", "ancestral-5")
    assert torch.equal(torch.get_rng_state(), before)
