"""Does input perturbation help? Train a study's network over several seeds and compare, paired.

    python benchmarks/effect.py --set confirm --seeds 300 301 302 303 --out work/effect
    python benchmarks/effect.py --set fashion --seeds 10 11 12 13 --device cuda --out work/fashion
    python benchmarks/effect.py --summary --out work/effect

Uses the pipeline's own trainer, sampler and metrics. Every run is a line of JSON (configuration, gamma, seed, metrics
by sampler, seconds). On a CPU each run has one thread; on a GPU the runs in turn are captured in CUDA graphs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ipdiff.device.spec import Compute
from ipdiff.pipeline.config import Params, Studies
from ipdiff.sample_sets.spec import Sampler
from ipdiff.spec import Objective, RunSpec

ANCESTRAL = [f"ancestral-{steps}" for steps in (5, 10, 20, 50)]
DDIM = ["ddim0-uniform10", "ddim0.5-uniform10"]
EXPOSURE = ["exposure-100", "exposure-300", "exposure-500"]
"""Table 1: real images diffused to t, t steps back."""

DIGITS: dict[str, Any] = {
    "dataset": "digits",
    "model": "adm",
    "steps": 5000,
    "samplers": [*ANCESTRAL, *DDIM, *EXPOSURE],
    "n": 3000,
    "exposure_n": 1000,
}
FASHION: dict[str, Any] = {
    **DIGITS,
    "dataset": "fashion",
    "steps": 8000,
    "samplers": [*ANCESTRAL, "ancestral-100", *DDIM, *EXPOSURE, "exposure-700"],
    "n": 5000,
}
NARROW: dict[str, Any] = {"network": {"channel_mult": [1, 1]}, "training": {"lr": 3e-3}}
BATCH = {"cpu": 500, "cuda": 2500}
"""Images drawn at once; an image is the same in any batch but for sums of another order."""
SETS: dict[str, dict[str, dict[str, Any]]] = {
    "pilot": {"5000": {**DIGITS, "gammas": [0.0, 0.2]}},
    "strengths": {"5000": {**DIGITS, "gammas": [0.1, 0.3]}},
    "narrow": {"5000 narrow": {**DIGITS, "gammas": [0.0, 0.2], **NARROW}},
    "shorter": {"2500": {**DIGITS, "gammas": [0.0, 0.2], "steps": 2500}},
    "confirm": {"5000": {**DIGITS, "gammas": [0.0, 0.2]}},
    "fashion": {"8000": {**FASHION, "gammas": [0.0, 0.1, 0.2]}},
    "fashion longer": {"32000": {**FASHION, "gammas": [0.0, 0.1, 0.2], "steps": 32000}},
}
"""Configurations by name: what is asked of each, and where it differs from its study's network and training."""


@cache
def params_of(dataset: str) -> Params:
    """The parameters of the study that has the data set."""
    return Studies().owner(dataset)


def spec_of(options: dict[str, Any], gamma: float, seed: int, compute: Compute) -> RunSpec:
    """The run of a configuration."""
    spec = params_of(options["dataset"]).run_spec(options["dataset"], options["model"], seed)
    training = dataclasses.replace(spec.training, lr_decay_steps=options["steps"], **options.get("training", {}))
    network = dataclasses.replace(spec.network, **options.get("network", {}))
    objective = Objective(gamma, "eps", 0.0, 0.0)
    return dataclasses.replace(spec, network=network, training=training, objective=objective, compute=compute)


def measure(job: tuple[str, dict[str, Any], float, int, Compute, str]) -> dict[str, Any]:
    """Train one run, sample it with every sampler, and measure."""
    from safetensors.numpy import save_file

    from ipdiff.data.images import load_images
    from ipdiff.sample_sets.sample import ImageSampler
    from ipdiff.training.run import Run
    from ipdiff.training.segment import feeder_for
    from ipdiff.work.shards import cut

    name, options, gamma, seed, compute, folder = job
    spec = spec_of(options, gamma, seed, compute)
    family = params_of(options["dataset"]).family(options["dataset"], options["model"])
    images = load_images(Path(folder) / "images.npy")
    started = time.time()
    feeder = feeder_for(Run(spec, images))
    for _ in range(options["steps"]):
        feeder.advance()
    run, trained = feeder.settle(), time.time()
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / "ema.safetensors"
        save_file(run.ema_weights(), weights)
        for text in options["samplers"]:
            draw = ImageSampler(
                spec,
                weights,
                Sampler.parse(text),
                clip_denoised=family.clip_denoised,
                quantise=family.quantise,
                compute=compute,
                images=images,
            )
            count = options["exposure_n" if draw.sampler.row.from_images else "n"]
            samples = np.concatenate([draw.draw(batch) for batch in cut(count, BATCH[compute.device])])
            found[text] = metrics(samples, options["dataset"], compute, folder)
    return {
        "config": name,
        "gamma": gamma,
        "seed": seed,
        "loss": float(run.losses[-500:].mean()),
        "train_s": round(trained - started, 1),
        "sample_s": round(time.time() - trained, 1),
        "metrics": found,
    }


def metrics(samples: np.ndarray, dataset: str, compute: Compute, folder: str) -> dict[str, float]:
    """FID, sFID and pixel distance of a sample set against the references in `folder`."""
    from ipdiff.data.arrays import load_npz
    from ipdiff.metrics import evaluate
    from ipdiff.metrics.features.classifier_features import ClassifierFeatures
    from ipdiff.metrics.features.extractors import Statistics, show
    from ipdiff.metrics.spec import METRICS, Measured

    settings = params_of(dataset).dataset(dataset).feature_settings
    extractor = ClassifierFeatures(Path(folder) / "classifier.safetensors", settings, compute)
    found = Statistics()
    show(extractor, samples, found)
    ours, real = Measured(found.arrays(extractor, samples.shape[1:])), Measured(load_npz(Path(folder) / "stats.npz"))
    return evaluate.values(ours, real, evaluate.possible(METRICS, ours, real), compute)


def references(name: str, compute: Compute, folder: Path) -> None:
    """Images, classifier and reference statistics of a data set, made once; a file that is there is kept."""
    from ipdiff.data import prepare
    from ipdiff.data.download import obtain
    from ipdiff.metrics import classifier, reference
    from ipdiff.metrics.features.extractors import Network

    params, dataset = params_of(name), params_of(name).dataset(name)
    assert dataset.classifier is not None
    images, weights = folder / "images.npy", folder / "classifier.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "labels.npy").exists():
        prepare.run(dataset.source, folder, [obtain(archive) for archive in params.archives(dataset.source)])
    if not weights.exists():
        classifier.run(dataset.classifier, compute, images, folder / "labels.npy", folder)
    if not (folder / "stats.npz").exists():
        network = Network("classifier", weights, dataset.classifier)
        reference.run(dataset.reference, network, compute, images, folder)


def run(set_name: str, seeds: Iterable[int], out: Path, compute: Compute, workers: int) -> None:
    """Measure every configuration of a set that is not in the results yet; a set is of one data set."""
    for dataset in {options["dataset"] for options in SETS[set_name].values()}:
        references(dataset, compute, out)
    results = out / "results.jsonl"
    kept = read(out)
    results.write_text("".join(f"{json.dumps(r)}\n" for r in kept))  # without a line that a kill tore
    done = {(r["config"], r["gamma"], r["seed"]) for r in kept}
    jobs = [
        (name, options, gamma, seed, compute, str(out))
        for name, options in SETS[set_name].items()
        for seed in seeds
        for gamma in options["gammas"]
        if (name, gamma, seed) not in done
    ]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        failed: list[BaseException] = []
        for measured in as_completed([pool.submit(measure, job) for job in jobs]):
            if error := measured.exception():
                failed.append(error)
                print(f"a run failed, the others go on: {error!r}", file=sys.stderr, flush=True)
                continue
            line = json.dumps(measured.result())
            with results.open("a") as stream:
                stream.write(line + "\n")
            print(line, flush=True)
    if failed:
        raise failed[0]


def read(out: Path) -> list[dict[str, Any]]:
    """All results so far."""
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


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
    parser.add_argument("--out", type=Path, default=Path("work/effect"), help="one for each data set")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--summary", action="store_true", help="of what --out has already")
    args = parser.parse_args()
    if args.set:
        run(args.set, args.seeds, args.out, Compute(args.device), args.workers)
    summary(args.out)


if __name__ == "__main__":
    main()
