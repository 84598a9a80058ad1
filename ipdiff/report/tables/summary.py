"""A study in at most 30 numbers, by which experiments are compared: `dvc metrics diff`, `dvc exp show`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ipdiff.metrics.spec import METRICS, rounded
from ipdiff.report.results import grouped
from ipdiff.report.tables.entries import Entry, read_csv

MOST = 30
"""Numbers of a summary."""
KINDS = 2
"""Metrics of a summary."""


def run(tables: Sequence[Path], out: Path) -> None:
    """Write out/summary.json: metric -> model/sampler -> mean over its seeds, for each data set's last checkpoint.

    The data set stands before the model where there are several.

    Args:
        tables: table.csv files of a study's tables, in their order.
        out: directory to write into.

    Raises:
        UserError: one is no table's csv.
    """
    shown = choose(entry for path in tables for entry in read_csv(path))
    several = len({entry.dataset for entry in shown}) > 1
    found: dict[str, dict[str, float]] = {}
    for entry in shown:
        point = f"{entry.dataset}/" * several + f"{entry.model}/{entry.sampler}"
        found.setdefault(entry.metric, {})[point] = rounded(entry.mean)
    (out / "summary.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")


def choose(entries: Iterable[Entry], most: int = MOST) -> list[Entry]:
    """The values that say most, each once and with the most seeds: of the last checkpoints, and the first metrics.

    Those that differ in the model alone stand or fall together: they are what is compared. The larger of such groups
    come first, then those of the tables' order, each where there is still room for it. If none has room, the first
    values are taken.
    """
    values: dict[tuple[str, str], Entry] = {}
    last: dict[str, int] = {}
    for entry in entries:
        known = values.get((entry.card, entry.metric))
        if entry.judged and (known is None or known.seed_count < entry.seed_count):
            values[entry.card, entry.metric] = entry
            last[entry.dataset] = max(entry.step, last.get(entry.dataset, 0))
    final = [entry for entry in values.values() if entry.step == last[entry.dataset]]
    metrics = [name for name in METRICS if any(entry.metric == name for entry in final)][:KINDS]
    final = [entry for entry in final if entry.metric in metrics]
    groups = grouped(final, lambda one: (one.dataset, one.sampler, one.metric)).values()
    chosen: list[Entry] = []
    for group in sorted(groups, key=len, reverse=True):
        if len(chosen) + len(group) <= most:
            chosen += group
    return chosen or final[:most]
