"""The package as others get it: a wheel beside torch and numpy alone, and a package whose types a checker reads."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/library.md").read_text(), re.MULTILINE | re.DOTALL)[0]
"""The first example of the library's page: a network, its training and its images."""


def run(*command: str | Path, cwd: Path, code: int = 0) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, env=None)
    assert done.returncode == code, f"{command}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built of what git tracks and of new modules."""
    pytest.importorskip("setuptools", reason="setuptools is not installed: no wheel can be built")
    source = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "ipdiff", source / "ipdiff", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, source)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--wheel-dir", "dist")
    run(sys.executable, "-m", "pip", "wheel", *options, ".", cwd=source)
    (made,) = (source / "dist").glob("ipdiff-*.whl")
    return made


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("ipdiff/")}
    files = (path for path in (ROOT / "ipdiff").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert held == {path.relative_to(ROOT).as_posix() for path in files}


@pytest.mark.slow
def test_it_trains_and_draws_with_torch_and_numpy_alone(wheel: Path, tmp_path: Path) -> None:
    """The example of docs/library.md, in an environment that has nothing else; and `--help`."""
    run(sys.executable, "-m", "venv", "bare", cwd=tmp_path)
    python = tmp_path / "bare/bin/python"
    pip = (python, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--constraint", ROOT / "constraints.txt", "torch", "numpy", cwd=tmp_path)
    run(*pip, "--no-deps", wheel, cwd=tmp_path)
    (tmp_path / "example.py").write_text(
        f"{EXAMPLE}\n"
        "import importlib.util as u, ipdiff, sys\n"
        "names = ('pydantic', 'yaml', 'scipy', 'safetensors', 'PIL', 'diffusers', 'dvc', 'snakemake')\n"
        "assert not [name for name in names if u.find_spec(name)], 'the environment is not bare'\n"
        "assert ipdiff.__file__.startswith(sys.prefix), ipdiff.__file__\n"
        "config = {'_class_name': 'DDPMScheduler', 'num_train_timesteps': 100}\n"
        "again = GaussianDiffusion.from_scheduler(config, gamma=0.1)\n"
        "print(tuple(images.shape), bool(images.isfinite().all()), again.T)\n"
    )
    assert run(python, "-I", "example.py", cwd=tmp_path) == "(4, 1, 8, 8) True 100\n"
    assert "train" in run(python, "-I", "-m", "ipdiff", "--help", cwd=tmp_path)


CONSUMER = """
from typing import Any

import torch
from torch import Tensor, nn

from ipdiff import GaussianDiffusion, sample
from ipdiff.metrics import fid, kid, save_statistics


def train(net: nn.Module, x0: Tensor, t: Tensor, scheduler: Any) -> Tensor:
    diffusion = GaussianDiffusion.from_scheduler(scheduler, gamma=0.1)
    loss: Tensor = diffusion.training_losses(net, x0, t, torch.randn_like(x0), torch.randn_like(x0))["loss"].mean()
    images: Tensor = sample(net, diffusion, (4, 3, 8, 8), sampler="ancestral-20", seed=0)
    found: dict[str, Any] = fid(images, "photos", features=lambda x: x.mean((2, 3)), size=8)
    found |= kid(images, "photos.zip", subsets=5)
    save_statistics("photos", "photos.npz")
    return loss + found["fid"]
"""


@pytest.mark.slow
def test_a_type_checker_reads_the_package(tmp_path: Path) -> None:
    """A consumer passes in strict mode; three mistakes in it are three errors."""
    pytest.importorskip("pyright", reason="pyright is not installed: types were not checked")
    assert (ROOT / "ipdiff/py.typed").is_file()
    (tmp_path / "ipdiff").symlink_to(ROOT / "ipdiff")
    (tmp_path / "pyrightconfig.json").write_text('{"include": ["own.py", "wrong.py"], "strict": ["own.py"]}')
    (tmp_path / "own.py").write_text(CONSUMER)
    command = (sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson")
    assert '"errorCount": 0' in run(*command, "-p", ".", cwd=tmp_path)
    wrong = CONSUMER.replace("seed=0", 'seed="0"').replace("subsets=5", "subset=5").replace("loss: Tensor", "loss: int")
    (tmp_path / "wrong.py").write_text(wrong)
    assert '"errorCount": 3' in run(*command, "-p", ".", cwd=tmp_path, code=1)
