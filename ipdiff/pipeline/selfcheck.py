"""Before a run computes on a GPU by own kernels and captured programs: do they give there what plain operations give?

A process of its own tries them on a small network, so that what crashes or hangs takes nothing with it. The verdict is
kept in the user's cache for this device, driver, torch and code. What failed is switched off for the run, which goes
on with torch's own operations, launched one by one: slower, the same to rounding.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipdiff.device import kernels, program
from ipdiff.device.spec import Compute, Precision
from ipdiff.pipeline.stages import STAGES
from ipdiff.pipeline.store.code_digests import code_digest
from ipdiff.spec import ADMNetwork, DDPMNetwork, Diffusion, Objective, RunSpec, Training
from ipdiff.work.files import write_whole
from ipdiff.work.locks import locked

SWITCH = "IPDIFF_SELF_CHECK"
"""Environment variable: 0 leaves the check out."""
PATHS = {kernels.SWITCH: "own kernels", program.SWITCH: "captured programs"}
"""What can be switched off, by its environment variable."""
BOUNDS: dict[Precision, float] = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 5e-2}
"""Relative error of norms, losses and gradients that rounding explains."""
LEVELS: dict[Precision, float] = {"float32": 0.1, "float16": 2.0, "bfloat16": 3.0}
"""Mean difference of images drawn by both ways, in levels of 0..255."""
PATIENCE = 300.0
"""Seconds after which a check hangs; a machine that compiles the kernels for the first time takes about 20."""


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: of `CHECKS`.
        error: the error found; None: it ended with `why`.
        bound: the largest that is right.
        seconds: it took.
        why: what ended it.
    """

    name: str
    error: float | None
    bound: float
    seconds: float
    why: str = ""

    @property
    def right(self) -> bool:
        """Whether what was tried can be used."""
        return self.error is not None and self.error <= self.bound

    def __str__(self) -> str:
        found = self.why if self.error is None else f"error {self.error:.2g}, at most {self.bound:.2g}"
        return f"{self.name}: {found}"


def spec_for(family: str, compute: Compute) -> RunSpec:
    """A small run that meets every kind of operation of a large one; of any family but `ddpm` it is an ADM network."""
    adm = family != "ddpm"
    network = ADMNetwork(64, [1, 2], 1, [8], num_head_channels=32, dropout=0.1)
    return RunSpec(
        family="adm" if adm else "ddpm",
        network=network if adm else DDPMNetwork(64, [1, 2], 1, [8], dropout=0.1),
        diffusion=Diffusion("cosine", 100, learn_sigma=True) if adm else Diffusion("linear", 100),
        training=Training(8, 1e-3, ema_decay=0.1, timesteps="loss-second-moment" if adm else "antithetic"),
        objective=Objective(0.1, "eps", 0.0, 0.0),
        compute=compute,
        image_size=16,
        channels=3,
        seed=0,
    )


@contextmanager
def _plain() -> Iterator[None]:
    """Torch's own operations, one by one."""
    before = {name: os.environ.get(name) for name in PATHS}
    os.environ.update(dict.fromkeys(PATHS, "0"))
    kernels.available.cache_clear()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        kernels.available.cache_clear()


def _images() -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), dtype=np.uint8)


def _distance(found: Any, expected: Any) -> float:
    """Relative to the expected size; infinite where a number is none."""
    import numpy as np

    error = float(np.linalg.norm(np.subtract(found, expected)) / max(float(np.linalg.norm(expected)), 1e-30))
    return error if np.isfinite(error) else float("inf")


def _random_numbers(spec: RunSpec) -> float:
    """Normals and masks of the kernel against numpy's: how many differ."""
    import numpy as np
    import torch

    from ipdiff import rng
    from ipdiff.device.streams import draws_on

    draws, index = draws_on(torch.device(spec.compute.device)), range(3, 20)
    normals = draws.normals(5, rng.Purpose.EPS, index, (3, 16, 16), step=7).cpu().numpy()
    mask = draws.keep_mask(2**63 + 1, index, (16, 16, 24), 19661, step=2**40, lane=3).cpu().numpy()
    wrong = normals != rng.normals(5, rng.Purpose.EPS, index, (3, 16, 16), step=7)
    other = mask != rng.keep_mask(2**63 + 1, index, (16, 16, 24), 19661, step=2**40, lane=3)
    return float(np.count_nonzero(wrong) + np.count_nonzero(other))


def _norms(spec: RunSpec) -> float:
    """A norm with scale, shift and SiLU, and its five gradients, against torch's in float64."""
    import torch

    from ipdiff.device.compute import dtype
    from ipdiff.nets.layers import GroupNorm

    worst, device = 0.0, torch.device(spec.compute.device)
    for channels, size in ((64, 16), (384, 8), (1024, 4)):
        generator = torch.Generator().manual_seed(channels)
        x, dy = (torch.randn(4, channels, size, size, generator=generator) for _ in "xy")
        weight, bias, *affine = torch.randn(2 + 2 * 4, channels, generator=generator)
        scale, shift = (torch.stack(part)[:, :, None, None] for part in (affine[:4], affine[4:]))
        norm = GroupNorm(32, channels).to(device)
        exact = GroupNorm(32, channels).double()
        with torch.no_grad():
            for one in (norm, exact):
                one.weight.copy_(weight)
                one.bias.copy_(bias)
        low = x.to(device, dtype(spec.compute), memory_format=torch.channels_last)
        single = [low, *(part.to(device) for part in (scale, shift))]
        double = [part.detach().double().cpu() for part in single]
        results = []
        for layer, parts in ((norm, single), (exact, double)):
            parts = [part.detach().requires_grad_() for part in parts]
            y = layer.activated(*parts)
            gradient = dy.to(y.device, low.dtype).to(y.dtype)
            grads = torch.autograd.grad(y, [*parts, layer.weight, layer.bias], gradient)
            results.append([part.detach().double().cpu().numpy() for part in (y, *grads)])
        worst = max(worst, *(_distance(one, other) for one, other in zip(*results, strict=True)))
    return worst


def _updates(spec: RunSpec) -> float:
    """The losses, and the gradients as Adam remembers them, of updates by a captured program against plain ones."""
    import numpy as np

    from ipdiff.training.device_feeder import DeviceFeeder
    from ipdiff.training.host_feeder import HostFeeder
    from ipdiff.training.run import Run

    def trained(make: Callable[[Run], Any]) -> dict[str, Any]:
        with closing(make(Run(spec, _images()))) as feeder:
            for _ in range(3):
                feeder.advance()
            return feeder.settle().state()

    with _plain():
        expected = trained(HostFeeder)
    found = trained(DeviceFeeder)
    moments = [name for name in expected if name.startswith("optimizer.exp_avg.")]
    parts = [np.concatenate([state[name].ravel() for name in moments]) for state in (found, expected)]
    return max(_distance(found["loss"], expected["loss"]), _distance(*parts))


def _sampling(spec: RunSpec) -> float:
    """Images drawn by a captured chain against those of single steps."""
    import numpy as np
    import torch
    from safetensors.numpy import save_file

    from ipdiff.data.images import to_uint8
    from ipdiff.sample_sets.sample import ImageSampler
    from ipdiff.sample_sets.spec import Sampler
    from ipdiff.training.run import Run

    def sampler() -> ImageSampler:
        return ImageSampler(spec, path, Sampler.parse("ancestral-4"), clip_denoised=True, compute=spec.compute)

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "ema.safetensors")
        weights = Run(spec, _images()).ema_weights()
        generator = np.random.default_rng(0)
        drawn = {name: generator.normal(0, 0.02, value.shape).astype(np.float32) for name, value in weights.items()}
        save_file({name: value if value.any() else drawn[name] for name, value in weights.items()}, path)
        with _plain(), torch.inference_mode():
            expected = to_uint8(sampler().walk(range(4)))
        found = sampler().draw(range(4))
    return float(np.abs(found.astype(int) - expected).mean())


CHECKS: dict[str, tuple[str, Callable[[RunSpec], float], Callable[[Precision], float]]] = {
    "random numbers": (kernels.SWITCH, _random_numbers, lambda precision: 0.0),
    "norms": (kernels.SWITCH, _norms, lambda precision: BOUNDS[precision]),
    "updates": (program.SWITCH, _updates, lambda precision: BOUNDS[precision]),
    "sampling": (program.SWITCH, _sampling, lambda precision: LEVELS[precision]),
}
"""What is tried: the switch of what it tries, the function that gives an error, and the largest right one."""


def run(family: str, compute: Compute) -> Iterator[Check]:
    """Run every check here, one after the other."""
    spec = spec_for(family, compute)
    for name, (_, check, bound) in CHECKS.items():
        began, error, why = time.perf_counter(), None, ""
        try:
            error = check(spec)
        except Exception as failure:  # whatever breaks there would break the run
            why = f"{type(failure).__name__}: {str(failure).strip().splitlines()[0] if str(failure) else 'no reason'}"
        yield Check(name, error, bound(compute.precision), time.perf_counter() - began, why)


def elsewhere(family: str, compute: Compute, command: Sequence[str] | None = None) -> list[Check]:
    """Run every check in a process of its own; those that it did not come to have its end as their reason."""
    told = [family, json.dumps(dataclasses.asdict(compute))]
    command = command or [sys.executable, "-m", "ipdiff.pipeline.selfcheck", *told]
    environment = {name: value for name, value in os.environ.items() if name not in PATHS}
    began, end = time.perf_counter(), ""
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE
        )
        said, code = done.stdout, done.returncode
        end = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    except subprocess.TimeoutExpired as late:
        said = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        end = f"no answer in {PATIENCE:g} s"
    found = [Check(**json.loads(line)) for line in said.splitlines() if line.startswith("{")]
    seconds = time.perf_counter() - began
    missing = list(CHECKS)[len(found) :]
    return [*found, *(Check(name, None, 0.0, seconds, end) for name in missing)]


def trust(family: str, compute: Compute) -> None:
    """Switch off, for this process and those it starts, what gives other numbers on this GPU; say so in one line each.

    Nothing happens on a CPU, where the switches are off already, or without a GPU (`compute.configure` says so).
    """
    if compute.device != "cuda" or os.environ.get(SWITCH) == "0" or not kernels.available():
        return
    import torch

    if not torch.cuda.is_available():
        return
    apply(_verdict(family, compute))


def apply(verdict: Sequence[Check]) -> None:
    """Switch off what a verdict finds wrong."""
    for switch, what in PATHS.items():
        wrong = [check for check in verdict if CHECKS[check.name][0] == switch and not check.right]
        if wrong and os.environ.get(switch) != "0":
            os.environ[switch] = "0"
            print(
                f"ipdiff: the self-check of this GPU failed ({wrong[0]}): going on without {what}, more slowly; "
                "`ipdiff doctor --gpu` shows everything",
                file=sys.stderr,
                flush=True,
            )
    kernels.available.cache_clear()


def _verdict(family: str, compute: Compute) -> list[Check]:
    """The verdict on this machine: the one kept, or a new one."""
    codes = [code_digest(STAGES[verb].module) for verb in ("train", "sample")]
    deciding = [family, dataclasses.asdict(compute), *_machine(), *codes]
    key = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:32]
    if (folder := cache()) is None:
        return elsewhere(family, compute)
    path = folder / f"{key}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            return _kept(path) or _keep(path, elsewhere(family, compute))
    except OSError:  # a home that cannot be written: checked each time
        return elsewhere(family, compute)


def cache() -> Path | None:
    """Where verdicts are kept, in the user's cache directory; None: nowhere, so that each run is checked."""
    from ipdiff.metrics.outside.cache import folder

    return None if (base := folder()) is None else base / "gpu"


def _kept(path: Path) -> list[Check]:
    try:
        return [Check(**check) for check in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError):
        return []


def _keep(path: Path, checks: list[Check]) -> list[Check]:
    write_whole(path, json.dumps([dataclasses.asdict(check) for check in checks]).encode())
    return checks


def _machine() -> list[str]:
    """What a verdict holds for, besides the code."""
    import torch

    versions = [torch.__version__, str(torch.version.cuda)]
    try:
        driver = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except OSError:
        driver = ""
    return [torch.cuda.get_device_name(), driver, *versions]


def main(family: str, compute: str) -> None:
    """Print what every check found, a line of JSON each as soon as it is known."""
    for check in run(family, Compute(**json.loads(compute))):
        print(json.dumps(dataclasses.asdict(check)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
