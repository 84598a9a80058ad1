"""Ours beside other tools in strict turns (ours, theirs, ours, theirs, ...): `python -m benchmarks --peers`.

The paper's CIFAR-10 network, an update of 8 images and 4 steps of ancestral sampling: the authors' code (a fetched
copy, `--official DIR`), and diffusers' `UNet2DModel` of the same shape in the plain loop of its tutorial, whose loss is
the mean squared error alone. Twice: each in a process of its own, as it is shipped; and both in one process, where
they share what this package asks of the allocator. FID of features: torch-fidelity, pytorch-fid and clean-fid.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from benchmarks.rows import ROOT, STAGE, seconds

STEPS = 4
"""Network calls of a turn of sampling."""
NETWORKS = ("official", "diffusers")
FID = {"torch-fidelity": "torch_fidelity", "pytorch-fid": "pytorch_fid", "clean-fid": "cleanfid"}
"""Peers that measure FID, and the module of each."""
Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Turns:
    """Seconds of ours and of a peer's, turn by turn.

    Attributes:
        what: the work.
        peer: who else did it.
        ours: seconds of each turn; the first, in which both warmed up, is left out.
        theirs: likewise, each right after ours.
    """

    what: str
    peer: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """How many times as long theirs took as ours before it, in ascending order."""
        return sorted(theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True))

    @property
    def ratio(self) -> float:
        """Their median."""
        return statistics.median(self.ratios)


def describe(rows: Iterable[Turns]) -> str:
    """The rows as text, with a heading: seconds are medians, the range is that of adjacent pairs."""
    lines = [f"{'what':58} {'peer':14} {'ours':>8} {'theirs':>8} {'ratio':>6}  range"]
    for row in rows:
        times = f"{statistics.median(row.ours):7.3g}s {statistics.median(row.theirs):7.3g}s"
        spread = f"{row.ratio:5.2f}x  [{row.ratios[0]:.2f}, {row.ratios[-1]:.2f}] of {len(row.ratios)} pairs"
        lines.append(f"{row.what:58} {row.peer:14} {times} {spread}")
    return "\n".join(lines)


def as_json(rows: Iterable[Turns]) -> list[dict[str, Any]]:
    """The rows as plain data, each with its ratio and its range."""
    return [{**dataclasses.asdict(row), "ratio": row.ratio, "range": [row.ratios[0], row.ratios[-1]]} for row in rows]


def refused(official: Path) -> str:
    """Why a directory is no copy of the authors' code; empty where it is one."""
    if (official / "guided_diffusion/script_util.py").is_file():
        return ""
    return (
        f"--official {official}: no guided_diffusion/script_util.py in it; give a copy of github.com/forever208/DDPM-IP"
    )


def missing(official: Path | None) -> dict[str, str]:
    """Peers that are left out, and why."""
    found = {} if official else {"official": "give a fetched copy of its code with --official DIR"}
    modules = {"diffusers": "diffusers", **FID}
    return found | {
        peer: f"{module} is not installed"
        for peer, module in modules.items()
        if importlib.util.find_spec(module) is None
    }


def table(official: Path | None, threads: int, turns: int, quick: bool) -> Iterator[Turns]:
    """All rows, each as soon as it is measured; `quick`: tiny sizes, which say only that it runs."""
    left_out, folder = missing(official), str(official.resolve()) if official else ""
    what = "tiny network" if quick else "CIFAR-10 float32, batch 8"
    for peer in (peer for peer in NETWORKS if peer not in left_out):
        for work in ("training", "sampling"):
            settings = {"work": work, "threads": threads, "quick": quick, "official": folder}
            if not (quick and work == "training"):  # a process of each kind shows that they run
                with _or_left_out(peer), Apart("networks", ["ours", peer], settings, threads) as both:
                    yield _turns(f"{what}, {work}, in one process", peer, both, both, turns)
            if not (quick and work == "sampling"):
                with _or_left_out(peer), ExitStack() as stack:
                    each = [Apart("networks", [name], settings, threads) for name in ("ours", peer)]
                    ours, other = (stack.enter_context(worker) for worker in each)
                    yield _turns(f"{what}, {work}, each as shipped", peer, ours, other, turns)
    n, dim = (300, 32) if quick else (20_000, 2048)
    measuring = [peer for peer in FID if peer not in left_out]
    settings = {"n": n, "dim": dim}
    names = ["ours", *measuring]
    with Here(distances(names, **settings)) if quick else Apart("distances", names, settings, threads) as worker:
        for peer in measuring:
            yield _turns(f"FID, 2 x {n:,} x {dim} features", peer, worker, worker, turns)


@contextmanager
def _or_left_out(peer: str) -> Iterator[None]:
    """Another version of a peer may not do what is asked for here; the others are still worth measuring."""
    try:
        yield
    except RuntimeError as error:
        print(f"{peer}: left out: {error}")


# Turns ----------------------------------------------------------------------------------------------------


class Worker(Protocol):
    """What does work of several names, on demand."""

    def turn(self, name: str) -> float:
        """Seconds of one piece of it."""
        ...


class Here(AbstractContextManager["Here"]):
    """A worker in this process."""

    def __init__(self, calls: Mapping[str, Call]) -> None:
        self._calls = calls

    def turn(self, name: str) -> float:
        """See `Worker`."""
        return seconds(self._calls[name])

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""


class Apart(AbstractContextManager["Apart"]):
    """A worker in a process of its own, whose BLAS has as many threads as torch."""

    def __init__(self, function: str, names: list[str], settings: Mapping[str, Any], threads: int) -> None:
        environment = {**os.environ, **dict.fromkeys(STAGE, str(threads)), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "benchmarks.peers", function, json.dumps(names), json.dumps(settings)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)

    def turn(self, name: str) -> float:
        """See `Worker`. Raises RuntimeError where the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(name, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            pass  # it ended, and the answer is missing
        for line in self._process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise RuntimeError(f"the process of {name} ended with code {self._process.wait()}")

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._process.terminate()
        self._process.communicate()


def _turns(what: str, peer: str, first: Worker, second: Worker, turns: int) -> Turns:
    pairs = [(first.turn("ours"), second.turn(peer)) for _ in range(turns + 1)][1:]
    ours, theirs = zip(*pairs, strict=True)
    return Turns(what, peer, ours, theirs)


def main() -> None:
    """Be the process of `Apart`: what is asked for on a line of stdin is done and timed."""
    function, names, settings = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    calls = {"networks": networks, "distances": distances}[function](names, **settings)
    for line in sys.stdin:
        print("seconds", seconds(calls[line.strip()]), flush=True)


# Networks -------------------------------------------------------------------------------------------------


def networks(names: Iterable[str], work: str, threads: int, quick: bool, official: str) -> dict[str, Call]:
    """An update, or `STEPS` steps of sampling, by each of these names."""
    import torch

    from benchmarks import configurations

    batch = 4 if quick else 8
    spec = configurations.change(configurations.TINY if quick else configurations.CIFAR10, batch, threads=threads)
    torch.set_num_threads(threads)
    makers = {"ours": _ours, "diffusers": _diffusers, "official": _official}
    calls = {}
    for name in names:
        call = makers[name](spec, work, official)
        calls[name] = call if name == "ours" else _as_they_come(call)
    return calls


def _as_they_come(call: Call) -> Call:
    """Without the deterministic algorithms that this package asks torch for."""
    import torch

    def free() -> None:
        mode = torch.get_deterministic_debug_mode()
        torch.set_deterministic_debug_mode(0)
        try:
            call()
        finally:
            torch.set_deterministic_debug_mode(mode)

    return free


def _images(spec: Any) -> Any:
    import numpy as np

    shape = (64, spec.image_size, spec.image_size, spec.channels)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _ours(spec: Any, work: str, _: str) -> Call:
    from ipdiff.pipeline.commands.study import bench
    from ipdiff.training.run import Run
    from ipdiff.training.segment import feeder_for

    feeder = feeder_for(Run(spec, _images(spec)))
    if work == "training":
        return feeder.advance
    sampler = bench.sampler_of(feeder.settle(), spec.compute)
    return lambda: sampler.draw(range(spec.training.batch_size))


def _diffusers(spec: Any, work: str, _: str) -> Call:
    import torch

    from ipdiff.interop import diffusers as theirs
    from ipdiff.interop import schedulers

    library: Any = import_module("diffusers")
    net = library.UNet2DModel.from_config(theirs.unet_config(spec))
    scheduler = library.DDPMScheduler.from_config(schedulers.config(spec, True))
    batch, shape = spec.training.batch_size, (spec.channels, spec.image_size, spec.image_size)
    if work == "sampling":

        @torch.no_grad()
        def draw() -> None:
            scheduler.set_timesteps(STEPS)
            x = torch.randn(batch, *shape)
            for t in scheduler.timesteps:
                x = scheduler.step(net(x, t).sample, t, x).prev_sample
            ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8)

        net.eval()
        return draw
    optimizer = torch.optim.AdamW(net.parameters(), lr=spec.training.lr)
    ema = library.training_utils.EMAModel(net.parameters(), decay=0.9999)
    images = torch.from_numpy(_images(spec)).permute(0, 3, 1, 2).contiguous()

    def update() -> None:
        x0 = images[torch.randint(len(images), (batch,))].float() / 127.5 - 1
        eps, t = torch.randn_like(x0), torch.randint(spec.diffusion.T, (batch,))
        x_t = scheduler.add_noise(x0, eps + spec.objective.gamma * torch.randn_like(x0), t)
        loss = (net(x_t, t).sample[:, : spec.channels] - eps).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(net.parameters())

    net.train()
    return update


def _official(spec: Any, work: str, folder: str) -> Call:
    """The authors' network, process, optimiser step and EMA, as their TrainLoop calls them; data come from memory."""
    import copy

    import torch

    sys.path.insert(0, folder)
    module = {
        name: import_module(f"guided_diffusion.{name}") for name in ("script_util", "fp16_util", "nn", "resample")
    }
    net = spec.network
    flags: dict[str, Any] = {
        "image_size": spec.image_size,
        "num_channels": net.model_channels,
        "num_res_blocks": net.num_res_blocks,
        "channel_mult": ",".join(map(str, net.channel_mult)),
        "attention_resolutions": ",".join(map(str, net.attention_resolutions)),
        "num_head_channels": net.num_head_channels,
        "dropout": net.dropout,
        "resblock_updown": net.resblock_updown,
        "use_new_attention_order": True,
        "learn_sigma": True,
        "rescale_learned_sigmas": True,
        "noise_schedule": spec.diffusion.schedule,
        "diffusion_steps": spec.diffusion.T,
        "input_pertub": spec.objective.gamma,
    }
    known = module["script_util"].model_and_diffusion_defaults()
    flags = {key: value for key, value in flags.items() if key in known}  # guided-diffusion itself perturbs nothing
    if work == "sampling":
        flags["timestep_respacing"] = str(STEPS)
    model, process = module["script_util"].create_model_and_diffusion(**known | flags)
    batch, shape = spec.training.batch_size, (spec.channels, spec.image_size, spec.image_size)
    if work == "sampling":

        def draw() -> None:
            x = process.p_sample_loop(model, (batch, *shape), clip_denoised=True)
            ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8)

        model.eval()
        return draw
    trainer = module["fp16_util"].MixedPrecisionTrainer(model=model, use_fp16=False, fp16_scale_growth=1e-3)
    optimizer = torch.optim.AdamW(trainer.master_params, lr=spec.training.lr, weight_decay=0.0)
    ema, timesteps = copy.deepcopy(trainer.master_params), module["resample"].UniformSampler(process)
    images = torch.from_numpy(_images(spec)).permute(0, 3, 1, 2).contiguous()

    def update() -> None:
        trainer.zero_grad()
        x0 = images[torch.randint(len(images), (batch,))].float() / 127.5 - 1
        t, weights = timesteps.sample(batch, x0.device)
        loss = (process.training_losses(model, x0, t)["loss"] * weights).mean()
        trainer.backward(loss)
        trainer.optimize(optimizer)
        module["nn"].update_ema(ema, trainer.master_params, rate=0.9999)

    model.train()
    return update


# FID ------------------------------------------------------------------------------------------------------


def distances(names: Iterable[str], n: int, dim: int) -> dict[str, Call]:
    """Moments of two sets of float32 features and their Frechet distance, by each of these names."""
    import numpy as np

    rng = np.random.default_rng(0)
    first, second = (np.abs(rng.standard_normal((n, dim), np.float32) @ _mix(rng, dim)) for _ in range(2))
    second *= np.float32(1.01)

    def moments(rows: Any) -> tuple[Any, Any]:
        return np.mean(rows, axis=0), np.cov(rows, rowvar=False)

    def fidelity() -> object:
        import torch

        module = import_module("torch_fidelity.metric_fid")
        sides = [module.fid_features_to_statistics(torch.from_numpy(rows)) for rows in (first, second)]
        return module.fid_statistics_to_metric(*sides, verbose=False)

    def pytorch_fid() -> object:
        return import_module("pytorch_fid.fid_score").calculate_frechet_distance(*moments(first), *moments(second))

    def clean_fid() -> object:
        return import_module("cleanfid.fid").frechet_distance(*moments(first), *moments(second))

    def ours() -> object:
        from ipdiff.metrics.scores.frechet import Moments, frechet_distance

        found = []
        for rows in (first, second):
            seen = Moments(dim)
            for start in range(0, n, 64):  # as a network gives them
                seen.update(rows[start : start + 64])
            found += [seen.mu, seen.cov]
        return frechet_distance(*found)

    calls = {"ours": ours, "torch-fidelity": fidelity, "pytorch-fid": pytorch_fid, "clean-fid": clean_fid}
    return {name: _quietly(calls[name]) for name in names}


def _mix(rng: Any, dim: int) -> Any:
    import numpy as np

    return rng.standard_normal((dim, dim), np.float32) / np.float32(dim**0.5)


def _quietly(call: Call) -> Call:
    """Without what scipy warns of, and without torchvision where it is absent."""

    def quiet() -> None:
        with warnings.catch_warnings(), torchvision_or_names():
            warnings.simplefilter("ignore")
            call()

    return quiet


class StandIn(types.ModuleType):
    """A module whose every name is an empty class."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # a package, so that parts of it can be asked for

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or type(name, (), {})


@contextmanager
def torchvision_or_names() -> Iterator[None]:
    """Let peers be imported that import torchvision for networks which nothing here uses.

    Its builds go with one build of torch each, so it is no dependency; where it is absent, names stand in for it.
    """
    parts = ("", ".transforms", ".transforms.functional", ".models", ".models.inception", ".datasets")
    names = [] if importlib.util.find_spec("torchvision") else [f"torchvision{part}" for part in parts]
    sys.modules |= {name: StandIn(name) for name in names}
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


if __name__ == "__main__":
    main()
