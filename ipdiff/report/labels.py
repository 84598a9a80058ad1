"""How tables and figures name models, data sets, metrics and samplers, and draw models."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ipdiff.metrics.spec import METRICS
from ipdiff.metrics.spec import label as metric_label
from ipdiff.report.spec import Gamma
from ipdiff.sample_sets.spec import Sampler


class Model(NamedTuple):
    """How a model is named and drawn."""

    label: str
    colour: str
    marker: str


MODELS = {
    "adm": Model("ADM", "#0072B2", "o"),
    "adm-ip": Model("ADM-IP", "#D55E00", "s"),
    "adm-gp": Model("ADM-GP", "#009E73", "^"),
    "adm-wd": Model("ADM-WD", "#CC79A7", "D"),
    "ddpm-y": Model("DDPM-y", "#B8860B", "v"),
    "ddim": Model("DDIM", "#56B4E9", "P"),
    "ddim-ip": Model("DDIM-IP", "#000000", "X"),
}
"""The paper's models, in Okabe and Ito's colours (told apart with any colour vision)."""
DATASETS = {
    "cifar10": "CIFAR-10",
    "fashion_mnist": "Fashion-MNIST",
    "imagenet32": "ImageNet 32",
    "lsun_tower64": "LSUN tower 64",
    "celeba64": "CelebA 64",
    "ffhq128": "FFHQ 128",
    "cifar10_official": "CIFAR-10",
    "imagenet32_official": "ImageNet 32",
    "lsun_tower64_official": "LSUN tower 64",
    "celeba64_official": "CelebA 64",
    "ffhq128_official": "FFHQ 128",
}

MINUS = "\N{MINUS SIGN}"


def model(name: str) -> str:
    """ADM-IP for adm-ip; a variant keeps its suffix: adm-ip-g01 is `ADM-IP (g01)`; others as they are."""
    known = [key for key in MODELS if name == key or name.startswith(key + "-")]
    if not known:
        return name
    key = max(known, key=len)
    return MODELS[key].label + (f" ({name[len(key) + 1 :]})" if name != key else "")


def models(gammas: Iterable[tuple[str, Gamma]]) -> dict[str, str]:
    """How a view names its models: by their gamma, as `ADM-IP, gamma 0.1`; no two of them alike.

    Args:
        gammas: models and their strength of input perturbation; a model that has several of them is named without one.
    """
    found: dict[str, set[Gamma]] = {}
    for name, strength in gammas:
        found.setdefault(name, set()).add(strength)
    known = {name: strengths.pop() if len(strengths) == 1 else () for name, strengths in found.items()}
    short = {name: _by_gamma(_without_gamma(name, strength), strength) for name, strength in known.items()}
    alike = list(short.values())
    return {
        name: text if alike.count(text) == 1 else _by_gamma(model(name), known[name]) for name, text in short.items()
    }


def _by_gamma(text: str, strength: Gamma) -> str:
    return f"{text}, gamma {gamma(strength)}" if max(strength, default=0) > 0 else text


def _without_gamma(name: str, strength: Gamma) -> str:
    """A paper's model without a suffix that says its gamma: ADM-IP for adm-ip-g01 of gamma 0.1."""
    kind, _, suffix = name.rpartition("-g")
    digits = f"0.{suffix[1:]}" if suffix.startswith("0") else suffix
    said = kind in MODELS and suffix.isdecimal() and strength == (float(digits),)
    return model(kind if said else name)


def gamma(strength: Gamma) -> str:
    """A strength: `0.1`; `0 to 0.1` where it changes over training or over t."""
    if len(strength) < 2:
        return "".join(f"{value:g}" for value in strength)
    first, last = strength if len(strength) == 2 else (min(strength), max(strength))
    return f"{first:g} to {last:g}"


def dataset(name: str) -> str:
    """A published data set's usual spelling; any other as it is."""
    return DATASETS.get(name, name)


def metric(name: str, features: str = "", digest: str = "") -> str:
    """FID for fid, and so on; of features that have names of their own for it, that name."""
    return metric_label(name, features, digest)


def better(metrics: Mapping[str, str]) -> str:
    """Which way is better: `lower is better`, or which metrics go which way.

    Args:
        metrics: label -> metric; those of which neither is better are passed over: nothing is said where all are.
    """
    judged = {label: METRICS[name].higher for label, name in metrics.items() if METRICS[name].higher is not None}
    if not judged:
        return ""
    higher = [label for label, is_higher in judged.items() if is_higher]
    if not higher:
        return "lower is better"
    if len(higher) == len(judged):
        return "higher is better"
    return f"lower is better, but for {' and '.join(higher)}"


def sampler(name: str) -> str:
    """What the sampler does, e.g. `T' = 100`."""
    return Sampler.parse(name).label()


class Axis(NamedTuple):
    """How a table calls an axis, what stands on it, and of which attribute of an entry."""

    header: str
    name: Callable[[Any], str]
    of: str


AXES = {
    "dataset": Axis("data set", dataset, "dataset"),
    "model": Axis("model", model, "model"),
    "step": Axis("training steps", "{:,}".format, "step"),
    "sampler": Axis("sampler", sampler, "sampler"),
    "method": Axis("sampler", lambda name: Sampler.parse(name).method, "sampler"),
    "sample_steps": Axis("T'", lambda name: f"T' = {Sampler.parse(name).steps}", "sampler"),
    "metric": Axis("metric", str, "label"),
}


def sampler_axis(names: Iterable[str]) -> Axis:
    """Of rows: the bare number of steps under its header, where that says which sampler is meant."""
    samplers = [Sampler.parse(name) for name in names]
    headers = {sampler.row.header if sampler.bare else "" for sampler in samplers}
    if len(headers) > 1 or "" in headers:
        return AXES["sampler"]
    return Axis(headers.pop(), lambda name: str(Sampler.parse(name).steps), "sampler")


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


def prose(text: str, plain: Callable[[str], str], code: Callable[[str], str]) -> str:
    """A sentence in a markup: `code` writes what stands between backticks, `plain` the rest."""
    parts = re.split("`([^`]+)`", text)
    return "".join((code if place % 2 else plain)(part) for place, part in enumerate(parts))
