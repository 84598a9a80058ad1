"""Does input perturbation help on the digits? Train configurations over several seeds and compare, paired.

    python benchmarks/digits_effect.py --set pilot --seeds 10 11 --out work/effect
    python benchmarks/digits_effect.py --set confirm --seeds 300 301 302 303 --out work/effect
    python benchmarks/digits_effect.py --summary work/effect

Uses the pipeline's own trainer, sampler and metrics; two runs side by side, one thread each. Every run is a
line of JSON (configuration, gamma, seed, step, metrics by sampler, seconds).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ipdiff.pipeline import config
from ipdiff.sample_sets.spec import Sampler
from ipdiff.spec import Objective, RunSpec

ANCESTRAL = [f"ancestral-{steps}" for steps in (5, 10, 20, 50)]
DDIM = ["ddim0-uniform10", "ddim0.5-uniform10"]
EXPOSURE = ["exposure-100", "exposure-300", "exposure-500"]
"""Table 1: real images diffused to t, t steps back."""

BASE = {
    "model": "adm",
    "steps": 5000,
    "batch_size": 64,
    "T": 1000,
    "lr": 2e-3,
    "lr_decay": "cosine",
    "learn_sigma": False,
    "timesteps": "uniform",
    "ema_decay": 0.998,
    "width": 16,
    "channel_mult": [1, 2],
    "samplers": [*ANCESTRAL, *DDIM, *EXPOSURE],
    "n": 3000,
    "exposure_n": 1000,
}
"""The digits study's runs."""
NARROW: dict[str, Any] = {"channel_mult": [1, 1], "lr": 3e-3}
SETS: dict[str, dict[str, dict[str, Any]]] = {
    "pilot": {"5000": {"gammas": [0.0, 0.2]}},
    "strengths": {"5000": {"gammas": [0.1, 0.3]}},
    "narrow": {"5000 narrow": {**NARROW, "gammas": [0.0, 0.2]}},
    "shorter": {"2500": {"gammas": [0.0, 0.2], "steps": 2500}},
    "confirm": {"5000": {"gammas": [0.0, 0.2]}},
}


def spec_of(options: dict[str, Any], gamma: float, seed: int) -> RunSpec:
    """The run of a configuration."""
    params = config.load()
    dataset, family = params.dataset("digits"), params.family("digits", options["model"])
    training = dataclasses.replace(
        family.training,
        batch_size=options["batch_size"],
        lr=options["lr"],
        lr_decay=options["lr_decay"],
        lr_decay_steps=options["steps"],
        timesteps=options["timesteps"],
        ema_decay=options["ema_decay"],
    )
    diffusion = dataclasses.replace(family.diffusion, T=options["T"], learn_sigma=options["learn_sigma"])
    network = dataclasses.replace(family.network, model_channels=options["width"], channel_mult=options["channel_mult"])
    return RunSpec(
        family=params.model(options["model"]).family,
        network=network,
        diffusion=diffusion,
        training=training,
        objective=Objective(gamma, "eps", 0.0, 0.0),
        compute=dataset.compute,
        image_size=8,
        channels=1,
        seed=seed,
    )


def measure(job: tuple[str, dict[str, Any], float, int, str]) -> dict[str, Any]:
    """Train one run, sample it with every sampler, and measure."""
    from safetensors.numpy import save_file

    from ipdiff.data.images import load_images
    from ipdiff.sample_sets.sample import ImageSampler
    from ipdiff.training.host_feeder import HostFeeder
    from ipdiff.training.run import Run
    from ipdiff.work.shards import cut

    name, options, gamma, seed, folder = job
    spec = spec_of(options, gamma, seed)
    images = load_images(Path(folder) / "images.npy")
    feeder, started = HostFeeder(Run(spec, images)), time.time()
    for _ in range(options["steps"]):
        feeder.advance()
    trained = time.time()
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / "ema.safetensors"
        save_file(feeder.run.ema_weights(), weights)
        for text in options["samplers"]:
            draw = ImageSampler(
                spec,
                weights,
                Sampler.parse(text),
                clip_denoised=options.get("clip", True),
                compute=spec.compute,
                images=images,
            )
            count = options["exposure_n" if text in EXPOSURE else "n"]
            found[text] = metrics(np.concatenate([draw.draw(b) for b in cut(count, 500)]), folder)
    return {
        "config": name,
        "gamma": gamma,
        "seed": seed,
        "loss": float(feeder.run.losses[-500:].mean()),
        "train_s": round(trained - started, 1),
        "sample_s": round(time.time() - trained, 1),
        "metrics": found,
    }


def metrics(samples: np.ndarray, folder: str) -> dict[str, float]:
    """FID, sFID and pixel distance of a sample set against the references in `folder`."""
    from ipdiff.data.arrays import load_npz
    from ipdiff.metrics import evaluate
    from ipdiff.metrics.features.classifier_features import ClassifierFeatures
    from ipdiff.metrics.features.extractors import Statistics, show
    from ipdiff.metrics.spec import METRICS, Measured

    dataset = config.load().dataset("digits")
    extractor = ClassifierFeatures(Path(folder) / "classifier.safetensors", dataset.classifier, dataset.compute)
    found = Statistics()
    show(extractor, samples, found)
    ours, real = Measured(found.arrays(extractor, samples.shape[1:])), Measured(load_npz(Path(folder) / "stats.npz"))
    return evaluate.values(ours, real, evaluate.possible(METRICS, ours, real), dataset.compute)


def references(folder: Path) -> None:
    """Images, classifier and reference statistics of the study, made once."""
    from ipdiff.data import prepare
    from ipdiff.metrics import classifier, reference
    from ipdiff.metrics.features.extractors import Network

    dataset = config.load().dataset("digits")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "stats.npz").exists():
        prepare.run(dataset.source, folder)
        classifier.run(dataset.classifier, dataset.compute, folder / "images.npy", folder / "labels.npy", folder)
        network = Network("classifier", folder / "classifier.safetensors", dataset.classifier)
        reference.run(dataset.reference, network, dataset.compute, folder / "images.npy", folder)


def run(set_name: str, seeds: Iterable[int], out: Path, workers: int) -> None:
    """Measure every configuration of a set that is not in the results yet."""
    references(out)
    results = out / "results.jsonl"
    done = {(r["config"], r["gamma"], r["seed"]) for r in read(out)}
    jobs = [
        (name, {**BASE, **options}, gamma, seed, str(out))
        for name, options in SETS[set_name].items()
        for seed in seeds
        for gamma in options["gammas"]
        if (name, gamma, seed) not in done
    ]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for result in pool.map(measure, jobs):
            with results.open("a") as stream:
                stream.write(json.dumps(result) + "\n")
            print(json.dumps(result), flush=True)


def read(out: Path) -> list[dict[str, Any]]:
    """All results so far."""
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def summary(out: Path) -> None:
    """For each configuration and sampler: baseline, perturbed, paired difference with its spread over seeds."""
    table: dict[tuple[str, float], dict[int, dict[str, Any]]] = defaultdict(dict)
    for r in read(out):
        table[r["config"], r["gamma"]][r["seed"]] = r
    for (name, gamma), runs in sorted(table.items()):
        base = table.get((name, 0.0), {})
        seconds = np.mean([r["train_s"] for r in runs.values()])
        print(
            f"\n{name} gamma {gamma}: {len(runs)} seeds, {seconds:.0f} s a training, "
            f"loss {np.mean([r['loss'] for r in runs.values()]):.4f}"
        )
        for sampler in next(iter(runs.values()))["metrics"]:
            row = [f"  {sampler:16s}"]
            for metric in ("fid", "sfid", "pixel_fd"):
                mine = {s: r["metrics"][sampler][metric] for s, r in runs.items()}
                row.append(f"{metric} {np.mean(list(mine.values())):8.4f}")
                if gamma and (common := sorted(mine.keys() & base.keys())):
                    d = np.array([mine[s] - base[s]["metrics"][sampler][metric] for s in common])
                    spread = d.std(ddof=1) if len(d) > 1 else float("nan")
                    row.append(f"({d.mean():+.4f} +- {spread:.4f}, {int((d < 0).sum())}/{len(d)} lower)")
            print(" ".join(row))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11])
    parser.add_argument("--out", type=Path, default=Path("work/effect"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--summary", action="store_true")
    args = parser.parse_args()
    if args.set:
        run(args.set, args.seeds, args.out, args.workers)
    summary(args.out)


if __name__ == "__main__":
    main()
