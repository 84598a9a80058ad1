"""The paper's figures (`paper_values.yaml`) and when one may stand beside ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ipdiff.errors import UserError
from ipdiff.report import labels
from ipdiff.report.results import Protocol, Result
from ipdiff.sample_sets.spec import Sampler

FILE = Path(__file__).parent / "paper_values.yaml"
UNKNOWN = "unknown"
"""What the file says where the paper and its code do not."""
CONDITIONS = {
    "gamma": "gamma",
    "gp_weight": "gradient penalty",
    "weight_decay": "weight decay",
    "batch_size": "batch size",
    "T": "T",
    "schedule": "noise schedule",
    "dropout": "dropout",
    "sampling_precision": "sampling precision",
    "reference_n": "size of the reference set",
    "reference": "reference set",
    "preprocessing": "preprocessing",
}
"""What a figure was made with, besides what names it, and how a reason calls that."""


@dataclass(frozen=True)
class Entry:
    """One cell the paper reports. A sampler or step of None is one the paper does not state.

    `made_with` holds a value or UNKNOWN for each of CONDITIONS.
    """

    dataset: str
    model: str
    sampler: Sampler | None
    step: int | None
    metrics: dict[str, float]
    made_with: Mapping[str, Any]

    @property
    def unknown(self) -> tuple[str, ...]:
        """What the paper does not say of it, and is not compared."""
        names = [CONDITIONS[key] for key, value in self.made_with.items() if value == UNKNOWN]
        names += ["training steps"] if self.step is None else []
        return (*names, *(["grid of timesteps"] if self.sampler and "{grid}" in self.sampler.row.name else []))

    def same_sampler(self, sampler: Sampler) -> bool:
        """Whether it was drawn by this kind of sampler with this T' (and eta); the grid is not compared.

        Precision and number of images are compared apart, and are a reason.
        """
        return self.sampler == replace(sampler, grid="", precision=None, images=None)


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables or figures, with a caveat to all of it and others to some data sets' figures."""

    source: str
    caveat: str
    caveats: Mapping[str, str]
    features: str
    n: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Match:
    """The paper's value for a result, whether it means the same thing as ours, and if not, why."""

    value: float | None
    comparable: bool
    reason: str
    unknown: tuple[str, ...] = ()


def values() -> dict[str, PaperTable]:
    """The paper's figures by table key; UserError if the file is malformed."""
    return _read()[0]


def names() -> dict[str, str]:
    """What data sets and models of the paper are called besides -> their name in its figures; raises as `values`."""
    return _read()[1]


@cache
def _read() -> tuple[dict[str, PaperTable], dict[str, str]]:
    try:
        data = yaml.safe_load(FILE.read_text(encoding="utf-8"))
        made_with, also = data.pop("made_with"), data.pop("also_called")
        return {key: _table(value, made_with) for key, value in data.items()}, also
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{FILE}: not a file of the paper's figures ({type(error).__name__}: {error})") from error


def select(key: str | None) -> PaperTable | None:
    """The paper's table of that key; UserError names the known ones."""
    if key is not None and key not in values():
        raise UserError(f"paper: '{key}' is no table of the paper's figures; use one of {', '.join(values())}")
    return None if key is None else values()[key]


def match(table: PaperTable | None, result: Result, metric: str) -> Match:
    """Find the paper's value for a result of ours.

    It is comparable when data set, model, kind of sampler, T' (and eta) are the same, the features and the
    number of samples are the same, the training steps agree, and each of CONDITIONS, wherever they are known
    of the paper's figure.

    Returns:
        The value (None if the paper has none), whether it is comparable, and the reasons if it is not.
    """
    if table is None:
        return Match(None, False, "no table of the paper was named")
    sampler, dataset, model = (
        Sampler.parse(result.sampler),
        *(names().get(n, n) for n in (result.dataset, result.model)),
    )
    asked: tuple[tuple[Callable[[Entry], bool], str], ...] = (
        (lambda e: e.dataset == dataset, f"has no figure for the data set {labels.dataset(result.dataset)}"),
        (lambda e: e.model == model, f"has no figure for {labels.model(result.model)} on this data set"),
        (lambda e: e.sampler is not None, "does not say with which T' it was drawn"),
        (lambda e: e.same_sampler(sampler), f"has no figure for this sampler ({sampler.label()})"),
        (lambda e: metric in e.metrics, f"does not report {labels.metric(metric)} here"),
    )
    found = list(table.entries)
    for holds, otherwise in asked:
        found = [entry for entry in found if holds(entry)]
        if not found:
            return Match(None, False, f"the paper {otherwise}")
    entry = next((entry for entry in found if entry.step in (None, result.step)), None)
    if entry is None and len(found) > 1:
        return Match(None, False, f"the paper has no figure at {result.step:,} training steps")
    entry = entry or found[0]
    reason = "; ".join(dict.fromkeys(_differences(table, entry, result, result.how(metric))))
    return Match(entry.metrics[metric], not reason, reason, entry.unknown)


def _differences(table: PaperTable, entry: Entry, result: Result, protocol: Protocol) -> Iterator[str]:
    """All that is known to differ between ours and the paper's."""
    if protocol.features != table.features:
        yield f"features differ: {protocol.features} here, {table.features} in the paper"
    if protocol.n != table.n:
        yield f"N differs: {protocol.n:,} samples here, {table.n:,} in the paper"
    if entry.step not in (None, result.step):
        yield f"training steps differ: {result.step:,} here, {entry.step:,} in the paper"
    if not result.made_with:
        yield "no recipe says what ours was made with"
    for made in result.made_with:
        for key, theirs in entry.made_with.items():
            if theirs not in (UNKNOWN, made[key]):
                yield f"{CONDITIONS[key]} differs: {_text(made[key])} here, {_text(theirs)} in the paper"


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _table(data: dict[str, Any], made_with: dict[str, Any]) -> PaperTable:
    protocol = data["protocol"]
    entries = tuple(_entry(dict(entry), made_with, data.get("made_with", {})) for entry in data["entries"])
    caveats = data.get("caveat", ""), dict(data.get("caveats", {}))
    return PaperTable(data["source"], *caveats, protocol["features"], int(protocol["n"]), entries)


def _entry(data: dict[str, Any], made_with: dict[str, Any], own: dict[str, Any]) -> Entry:
    """An entry, made with what is said of its model, of its data set and family, and what the table says otherwise."""
    dataset, model, sampler, step = (data.pop(key, None) for key in ("dataset", "model", "sampler", "step"))
    of_model = dict(made_with["models"][model])
    family = of_model.pop("family")
    said = {**of_model, **made_with["data_sets"][dataset][family], **own}
    if said.keys() != CONDITIONS.keys():
        raise ValueError(f"{dataset} {model}: made_with has {sorted(said)}, expected {sorted(CONDITIONS)}")
    metrics = {key: float(value) for key, value in data.items()}
    return Entry(dataset, model, Sampler.parse(sampler) if sampler else None, step, metrics, said)
