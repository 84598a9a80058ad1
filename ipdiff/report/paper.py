"""The paper's figures (`ipdiff/paper_values.yaml`) and when one may stand beside ours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ipdiff.errors import UserError
from ipdiff.report import labels
from ipdiff.report.records import Protocol
from ipdiff.spec import Sampler

FILE = Path(__file__).parent.parent / "paper_values.yaml"


@dataclass(frozen=True)
class Entry:
    """One cell the paper reports. A sampler kind or step of None is one the paper does not state."""

    dataset: str
    model: str
    kind: str | None
    eta: float | None
    sample_steps: int | None
    step: int | None
    metrics: dict[str, float]

    def same_sampler(self, sampler: Sampler) -> bool:
        """Whether it was drawn by this kind of sampler with this T' (and eta); the grid is not compared."""
        eta = sampler.eta if sampler.kind == "ddim" else None
        return (self.kind, self.eta, self.sample_steps) == (sampler.kind, eta, sampler.steps)


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables or figures; the caveat concerns `caveat_datasets`, or all if empty."""

    key: str
    source: str
    caveat: str
    caveat_datasets: tuple[str, ...]
    features: str
    n: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Match:
    """The paper's value for a cell, whether it means the same thing as ours, and if not, why."""

    value: float | None
    comparable: bool
    reason: str


def load(path: Path = FILE) -> dict[str, PaperTable]:
    """Read the paper's figures by table key; UserError if the file is malformed."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {key: _table(key, value) for key, value in data.items()}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a file of the paper's figures ({type(error).__name__}: {error})") from error


@cache
def values() -> dict[str, PaperTable]:
    """The figures shipped with the package, read once."""
    return load()


def select(key: str | None, tables: dict[str, PaperTable]) -> PaperTable | None:
    """The paper's table of that key; UserError names the known ones."""
    if key is not None and key not in tables:
        raise UserError(f"paper: '{key}' is no table of the paper's figures; use one of {', '.join(tables)}")
    return tables[key] if key is not None else None


def match(
    table: PaperTable | None,
    dataset: str,
    model: str,
    step: int,
    sampler: str,
    metric: str,
    protocol: Protocol,
) -> Match:
    """Find the paper's value for a cell of ours.

    It is comparable when data set, model, kind of sampler, T' (and eta) are the same, the features and the
    number of samples are the same, and the training steps agree wherever the paper states them.

    Returns:
        The value (None if the paper has none), whether it is comparable, and the reason if it is not.
    """
    if table is None:
        return Match(None, False, "no table of the paper was named")
    found = [entry for entry in table.entries if entry.dataset == dataset]
    if not found:
        return Match(None, False, f"the paper has no figure for the data set {labels.dataset(dataset)}")
    found = [entry for entry in found if entry.model == model]
    if not found:
        return Match(None, False, f"the paper has no figure for {labels.model(model)} on this data set")
    found = [entry for entry in found if entry.same_sampler(Sampler.parse(sampler))]
    if not found:
        return Match(None, False, f"the paper has no figure for this sampler ({labels.sampler(sampler)})")
    found = [entry for entry in found if metric in entry.metrics]
    if not found:
        return Match(None, False, f"the paper does not report {labels.metric(metric)} here")
    entry = next((entry for entry in found if entry.step in (None, step)), None)
    if entry is None and len(found) > 1:
        return Match(None, False, f"the paper has no figure at {step:,} training steps")
    reason = _protocol_differs(table, protocol) or ("" if entry else _step_differs(found[0], step))
    return Match((entry or found[0]).metrics[metric], not reason, reason)


def _protocol_differs(table: PaperTable, protocol: Protocol) -> str:
    if protocol.features != table.features:
        return f"features differ: {protocol.features} here, {table.features} in the paper"
    if protocol.n != table.n:
        return f"N differs: {protocol.n:,} samples here, {table.n:,} in the paper"
    return ""


def _step_differs(entry: Entry, step: int) -> str:
    return f"training steps differ: {step:,} here, {entry.step:,} in the paper"


def _table(key: str, data: dict[str, Any]) -> PaperTable:
    protocol = data["protocol"]
    entries = tuple(_entry(dict(entry)) for entry in data["entries"])
    caveat = data.get("caveat", ""), tuple(data.get("caveat_datasets", ()))
    return PaperTable(key, data["source"], *caveat, protocol["features"], int(protocol["n"]), entries)


def _entry(data: dict[str, Any]) -> Entry:
    name, eta, steps = data.pop("sampler", None), data.pop("eta", None), data.pop("sample_steps", None)
    kind = "ddim" if eta is not None else None
    if name is not None:
        sampler = Sampler.parse(name)
        kind, steps = sampler.kind, sampler.steps
        eta = sampler.eta if kind == "ddim" else None
    return Entry(
        data.pop("dataset"),
        data.pop("model"),
        kind,
        None if eta is None else float(eta),
        steps,
        data.pop("step", None),
        {key: float(value) for key, value in data.items()},
    )
