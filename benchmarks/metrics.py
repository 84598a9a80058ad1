"""What measuring costs: FID's moments and distance, precision and recall, features; each in a process like a stage's.

The limit of each is the arithmetic that it cannot do without, alone and in the same process: the matrix products, the
decompositions, the network's forward pass.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.rows import ROOT, Row, answer, in_process, quickest, seconds

IMAGES = 50_000
"""Images of a set, as the paper's FID has them."""
FEATURES = 2048
MEASURED = 12_288
"""Images a side of precision and recall: three blocks; its time is scaled to `IMAGES`."""
BATCH = 64
"""Rows that a network gives at a time."""

Ask = Callable[..., dict[str, Any]]
"""Calls a function of this module by name."""


def table(threads: int, budget: float, quick: bool) -> Iterator[Row]:
    """Rows of everything here; `quick`: tiny sizes, most of them in this process, which say only that it runs."""
    images, dim, measured = (2_048, 64, 5_000) if quick else (IMAGES, FEATURES, MEASURED)
    ask = _here if quick else _apart
    yield from _fid(ask, images, dim)
    yield from _overlap(measured, images, dim, threads)
    yield from _inception(ask, threads, budget, quick)
    yield from _classifier(ask, budget)


def _apart(name: str, *arguments: float | str) -> dict[str, Any]:
    return in_process("benchmarks.metrics", name, *arguments)


def _here(name: str, *arguments: float | str) -> dict[str, Any]:
    return FUNCTIONS[name](*map(str, arguments))


def _fid(ask: Ask, images: int, dim: int) -> Iterator[Row]:
    found = ask("fid", images, dim)
    size = f"{images:,} x {dim}"
    yield Row(f"moments of {size} features, float64", found["moments"], found["products"], "s", "the products alone")
    what = f"Frechet distance of Gaussians of {dim} dimensions"
    yield Row(what, found["distance"], found["decompositions"], "s", "2 Cholesky, 2 products, eigvalsh alone")
    yield Row(f"FID, moments of one set of {size}", found["moments"] + found["distance"], 30, "s", "goal")
    yield Row(f"FID, moments of both sets of {size}", 2 * found["moments"] + found["distance"], 30, "s", "goal")
    memory = _apart("fid_memory", 2 * dim, dim)  # peak memory is a process', and the same for any number of images
    yield Row(f"peak memory of FID of two sets beyond the features, {dim}", memory["mib"], 300, "MiB", "goal")


def _overlap(measured: int, images: int, dim: int, threads: int) -> Iterator[Row]:
    found = _apart("overlap", measured, dim, threads)  # peak memory is a process'
    size = f"{measured:,} x {measured:,} x {dim}, {threads} threads"
    for what in ("radii", "overlap"):
        name = {"radii": "radii of a set", "overlap": "precision and recall"}[what]
        yield Row(f"{name}, {size}", found[what], found[f"{what}_products"], "s", "the products alone")
    more = {what: _more(what, images, measured) for what in ("radii", "overlap")}
    ours, alone = (sum(found[what + part] * more[what] for what in more) for part in ("", "_products"))
    yield Row(f"both for {images:,} images a side, scaled", ours, alone, "s", "the products alone, scaled")
    yield Row(f"peak memory of both beyond the features, {size}", found["mib"], 512, "MiB", "goal, for any N")


def _more(what: str, images: int, measured: int) -> float:
    """How many times the products of `images` are those of `measured`."""
    from ipdiff.metrics.scores.overlap import BLOCK

    def products(n: int) -> float:
        sizes = [min(BLOCK, n - start) for start in range(0, n, BLOCK)]
        own = sum(size * size for size in sizes)
        return (n * n + own) / 2 if what == "radii" else n * n  # of a set with itself every pair of blocks once

    return products(images) / products(measured)


def _inception(ask: Ask, threads: int, budget: float, quick: bool) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/inception.pt"
        width, size = (1 / 32, 8) if quick else (1, 32)
        subprocess.run([sys.executable, "tests/inception.py", path, "0", str(width)], cwd=ROOT, check=True)
        found = ask("inception", path, 4 if quick else BATCH, size, threads, budget)
    what = f"Inception's features and statistics, {size}x{size}, {threads} threads" + (", narrow" if quick else "")
    yield Row(what, found["ours"], found["forward"], "images/s", "the network's own forward pass")
    yield Row(what, found["ours"], found["layers"], "images/s", "its layers alone, channels last, resized input")


def _classifier(ask: Ask, budget: float) -> Iterator[Row]:
    found = ask("classifier", budget)
    what = "the digits classifier's features and statistics, 1 thread"
    yield Row(what, found["ours"], found["forward"], "images/s", "the network's own forward pass")


# In processes of their own ---------------------------------------------------------------------------------


def _features(images: int, dim: int) -> NDArray[np.float32]:
    """Positive, correlated rows: [images, dim] float32; made a piece at a time, so that no more memory is used."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((dim, dim), dtype=np.float32) / np.float32(dim**0.5)
    out = np.empty((images, dim), np.float32)
    for start in range(0, images, 500):
        part = out[start : start + 500]
        np.abs(rng.standard_normal(part.shape, dtype=np.float32) @ mix, out=part)
    return out


def fid(images: str, dim: str) -> dict[str, Any]:
    """Seconds of the moments of float32 rows given 64 at a time, and of the distance; and of their limits."""
    from scipy import linalg

    from ipdiff.metrics.scores.frechet import Moments, frechet_distance

    rows = _features(int(images), int(dim))
    block = rows[: Moments.BLOCK].astype(np.float64)
    found = Moments(rows.shape[1])

    def observe() -> None:
        for start in range(0, len(rows), BATCH):
            found.update(rows[start : start + BATCH])
        _ = found.mu, found.cov

    products = [seconds(lambda: block.T @ block) for _ in range(4)]
    moments = seconds(observe)
    products += [seconds(lambda: block.T @ block) for _ in range(4)]
    mu, cov = found.mu, found.cov
    other = cov + np.diag(np.linspace(0, 0.1, len(cov)))

    def decompose() -> None:
        first, second = (linalg.cholesky(each, lower=True) for each in (cov, other))
        overlap = first.T @ second
        linalg.eigvalsh(overlap @ overlap.T)

    calls = {"distance": lambda: frechet_distance(mu, cov, mu * 1.01, other), "decompositions": decompose}
    return {"moments": moments, "products": min(products) * len(rows) / len(block), **quickest(calls, 0, 1)}


def fid_memory(images: str, dim: str) -> dict[str, Any]:
    """MiB that the moments of two sets and their distance take beyond the features."""
    from ipdiff.metrics.scores.frechet import Moments, frechet_distance

    rows = _features(int(images), int(dim))
    held, found = _status("VmRSS"), []
    for scale in (1.0, 1.01):
        seen = Moments(rows.shape[1])
        for start in range(0, len(rows), BATCH):
            seen.update(scale * rows[start : start + BATCH])
        found += [seen.mu, seen.cov]
    frechet_distance(*found)
    return {"mib": (_status("VmHWM") - held) / 1024}


def overlap(images: str, dim: str, threads: str) -> dict[str, Any]:
    """Seconds of the radii of a set and of precision and recall, and of their products; MiB beyond the features."""
    import torch

    from ipdiff.device.compute import configure
    from ipdiff.device.spec import Compute
    from ipdiff.metrics.scores.overlap import BLOCK, K, precision_recall, radii

    compute = Compute(threads=int(threads))
    configure(compute)
    n = int(images)
    samples, reference = _features(n, int(dim)), _features(n, int(dim))
    held = _status("VmRSS")
    rows = torch.from_numpy(samples[:BLOCK])
    own, found = radii(samples, compute)[:, K - 1], {}
    found["radii"] = seconds(lambda: radii(samples, compute))
    found["overlap"] = seconds(lambda: precision_recall(samples, own, reference, own, compute))
    found["mib"] = (_status("VmHWM") - held) / 1024
    product = quickest({"product": lambda: rows @ rows.T}, 0, 5)["product"] / len(rows) ** 2
    sizes = [min(BLOCK, n - start) for start in range(0, n, BLOCK)]
    found["radii_products"] = product * (n * n + sum(size * size for size in sizes)) / 2
    found["overlap_products"] = product * n * n
    return found


def _status(key: str) -> int:
    """A figure of this process in KiB: VmRSS (now) or VmHWM (its most)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def inception(path: str, batch: str, size: str, threads: str, budget: str) -> dict[str, Any]:
    """Images a second: uint8 images to observed features, the network's forward pass, and its layers alone."""
    import torch

    from ipdiff.device.compute import configure
    from ipdiff.device.spec import Compute
    from ipdiff.metrics.features.inception import SIZE, InceptionFeatures

    compute, n = Compute(threads=int(threads)), int(batch)
    extractor = InceptionFeatures(Path(path), compute)
    images = np.random.default_rng(0).integers(0, 256, (n, int(size), int(size), 3), dtype=np.uint8)
    device = configure(compute)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch prefers torch.export; the file is TorchScript
        network = torch.jit.load(path, map_location=device).eval()
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32)
    ready = torch.randn(n, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def forward() -> None:
        network(x, return_features=True)

    @torch.no_grad()
    def layers() -> None:
        network.layers(ready)

    forward()  # TorchScript compiles in its second call
    return _rates(extractor, images, {"forward": forward, "layers": layers}, float(budget))


def classifier(budget: str) -> dict[str, Any]:
    """The same of the digits study's classifier, with random weights."""
    import torch

    from ipdiff.data.images import to_network
    from ipdiff.metrics.features.classifier_features import ClassifierFeatures
    from ipdiff.metrics.features.classifier_net import FeatureNet, initialise, save
    from ipdiff.pipeline import config

    dataset = config.load(ROOT / "params.yaml").dataset("digits")
    net = FeatureNet(dataset.classifier, 8, 1, 10).eval()
    initialise(net, 0)
    with tempfile.TemporaryDirectory() as folder:
        save(net, Path(folder) / "classifier.safetensors")
        extractor = ClassifierFeatures(Path(folder) / "classifier.safetensors", dataset.classifier, dataset.compute)
    images = np.random.default_rng(0).integers(0, 256, (extractor.batch_size, 8, 8, 1), dtype=np.uint8)
    x = to_network(images)

    @torch.no_grad()
    def forward() -> None:
        net.features(x)

    return _rates(extractor, images, {"forward": forward}, float(budget))


def _rates(extractor: Any, images: NDArray[np.uint8], alone: dict[str, Callable[[], None]], budget: float) -> Any:
    """Images a second of `alone`, and of features with what observes them (whose share is measured apart)."""
    from ipdiff.metrics.features.extractors import Pooled, Statistics, show
    from ipdiff.metrics.scores.frechet import Moments

    n = len(images)
    found = quickest({"ours": lambda: show(extractor, images), **alone}, budget)
    features = extractor(images)
    statistics, kept = Statistics(), Pooled(2 * Moments.BLOCK)

    def observe() -> None:  # whole blocks, as the moments take them
        for _ in range(Moments.BLOCK // n):
            statistics(features)
            kept(features)

    observe()
    found["ours"] += seconds(observe) / (Moments.BLOCK // n)
    return {name: n / time for name, time in found.items()}


FUNCTIONS = {"fid": fid, "fid_memory": fid_memory, "overlap": overlap, "inception": inception, "classifier": classifier}

if __name__ == "__main__":
    answer(FUNCTIONS)
