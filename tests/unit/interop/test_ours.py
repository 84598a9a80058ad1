"""One file of a run's weights is enough to go on with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from unit.tiny import ADM, DDIM, change

from ipdiff import sample
from ipdiff.data.images import to_uint8
from ipdiff.errors import UserError
from ipdiff.interop import ours
from ipdiff.nets import build
from ipdiff.sample_sets.sample import ImageSampler
from ipdiff.sample_sets.spec import Sampler
from ipdiff.spec import RunSpec


def write(path: Path, spec: RunSpec) -> Path:
    net = build.network(spec)
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(value.shape, generator=generator) * 0.1 for name, value in net.state_dict().items()}
    save_file(weights, path, spec.metadata(dataset="tiny", model="adm-ip", step=8))
    return path


@pytest.mark.parametrize("spec", [change(ADM, gamma=0.15), DDIM], ids=["adm", "ddpm"])
def test_it_draws_what_the_stage_draws(spec: RunSpec, tmp_path: Path) -> None:
    path = write(tmp_path / "ema.safetensors", spec)
    found = ours.load(path)
    assert found.spec == spec
    assert found.about == {"dataset": "tiny", "model": "adm-ip", "step": 8, "gamma": spec.objective.gamma}
    assert np.array_equal(found.diffusion.gamma, np.full(spec.diffusion.T, spec.objective.gamma))
    drawn = sample(found.net, found.diffusion, (3, 1, 4, 4), "ancestral-5", seed=spec.seed, first=2)
    stage = ImageSampler(spec, path, Sampler.parse("ancestral-5"), clip_denoised=True, compute=spec.compute)
    difference = to_uint8(drawn, "truncate").astype(int) - stage.draw(range(2, 5))
    assert np.abs(difference).max() <= 1


def test_what_is_no_checkpoint_of_this_project_is_refused_in_one_line(tmp_path: Path) -> None:
    def said(path: Path) -> str:
        with pytest.raises(UserError) as refused:
            ours.load(path)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    path = write(tmp_path / "ema.safetensors", ADM)
    assert "missing" in said(tmp_path / "missing.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert "damaged or truncated safetensors" in said(path)
    other = tmp_path / "other.safetensors"
    save_file({"w": torch.zeros(2)}, other)
    assert "does not say which run it is of" in said(other)
    for text in ("{", "[]", "{}", '{"run": {}}', '{"run": {"family": "x", "training": {}, "objective": {}}}'):
        save_file({"w": torch.zeros(2)}, other, {"ipdiff": text})
        assert "does not say which run it is of" in said(other)
    save_file({"w": torch.zeros(2)}, other, ADM.metadata(step=8))
    assert "not the network of the run that it names" in said(other)
