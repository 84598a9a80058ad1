"""How tables and figures name models, data sets, metrics and samplers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ipdiff.metrics.spec import METRICS
from ipdiff.metrics.spec import label as metric_label
from ipdiff.sample_sets.spec import Sampler

MODELS = {
    "adm": "ADM",
    "adm-ip": "ADM-IP",
    "adm-gp": "ADM-GP",
    "adm-wd": "ADM-WD",
    "ddpm-y": "DDPM-y",
    "ddim": "DDIM",
    "ddim-ip": "DDIM-IP",
}
DATASETS = {
    "cifar10": "CIFAR-10",
    "fashion_mnist": "Fashion-MNIST",
    "imagenet32": "ImageNet 32",
    "lsun_tower64": "LSUN tower 64",
    "celeba64": "CelebA 64",
    "ffhq128": "FFHQ 128",
}

AXES = {"dataset": "data set", "model": "model", "step": "training steps", "metric": "metric"}
MINUS = "\N{MINUS SIGN}"


def model(name: str) -> str:
    """ADM-IP for adm-ip; a variant keeps its suffix: adm-ip-g01 is `ADM-IP (g01)`; others as they are."""
    known = [key for key in MODELS if name == key or name.startswith(key + "-")]
    if not known:
        return name
    key = max(known, key=len)
    return MODELS[key] + (f" ({name[len(key) + 1 :]})" if name != key else "")


def dataset(name: str) -> str:
    """A published data set's usual spelling; any other as it is."""
    return DATASETS.get(name, name)


def metric(name: str, features: str = "", digest: str = "") -> str:
    """FID for fid, and so on; of features that have names of their own for it, that name."""
    return metric_label(name, features, digest) if name in METRICS else name


def better(metrics: Mapping[str, str]) -> str:
    """Which way is better: `lower is better`, or which metrics go which way.

    Args:
        metrics: label -> metric; those of which neither is better are passed over.
    """
    judged = {label: METRICS[name].higher for label, name in metrics.items() if METRICS[name].higher is not None}
    higher = [label for label, is_higher in judged.items() if is_higher]
    if not higher:
        return "lower is better"
    if len(higher) == len(judged):
        return "higher is better"
    return f"lower is better, but for {' and '.join(higher)}"


def sampler(name: str) -> str:
    """What the sampler does, e.g. `T' = 100`."""
    return Sampler.parse(name).label()


def sampler_axis(names: Iterable[str]) -> tuple[str, bool]:
    """Header of a column of samplers, and whether the bare number of steps says which one is meant."""
    headers = {Sampler.parse(name).row.header for name in names}
    return ("sampler", False) if len(headers) > 1 or "" in headers else (headers.pop(), True)


def number(value: float, decimals: int, *, signed: bool = False) -> str:
    """Fixed-point text with a true minus sign; a rounded zero has no sign."""
    text = f"{abs(value):,.{decimals}f}"
    if not any(digit in text for digit in "123456789"):
        return text
    return (MINUS if value < 0 else "+" if signed else "") + text


def decimals(values: Iterable[float]) -> int:
    """Decimals that show three significant digits of the smallest of `values`, 2 at least, 5 at most.

    Two decimals is what the paper prints.
    """
    smallest = min((abs(value) for value in values if value), default=1.0)
    needed = 2
    while needed < 5 and smallest * 10**needed < 100:
        needed += 1
    return needed
