"""The card of every number: what it was made from, by digest, and the command that makes it again.

A card is what the recipes say, link by link: metrics <- samples <- checkpoint <- data. What differs from one making
to the next (versions, hardware, seconds) stands in the receipts; a card links to them, and shows none of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipdiff.report import origin
from ipdiff.report.origin import CHAIN, Link, Recipe
from ipdiff.report.pages import page
from ipdiff.report.results import grouped
from ipdiff.report.tables.entries import Entry, names

LINKS = ("metrics", *CHAIN, "reference")


@dataclass(frozen=True)
class Made:
    """One seed's number: its metrics file, what of LINKS stands behind it, and with what parameters it was made."""

    seed: int
    directory: str
    code: str
    links: Mapping[str, Link]
    parameters: str


def run(title: str, entries: Iterable[Entry], recipes: Iterable[Recipe], out: Path) -> None:
    """Write out/cards.html.

    Args:
        title: the study's title.
        entries: the numbers of its tables and figures; differences have no card of their own.
        recipes: recipes of every artifact that the numbers were made from.
        out: directory to write into.

    Raises:
        UserError: the recipe of a number, or of what it was made from, was not given.
    """
    entries = list(entries)
    read = origin.by_cell(recipes)
    points = grouped((entry for entry in entries if entry.kind == "value"), lambda entry: entry.card)
    cards = {at: _fullest(group) for at, group in points.items()}
    context = {"title": title, "points": cards, "names": names(entries), "links": LINKS}
    page.write("cards", out, {**context, "seeds": lambda entries: _made(entries, read), "value": _value})


def _fullest(entries: Iterable[Entry]) -> list[Entry]:
    """An entry for each metric: that of most seeds, since a view may show fewer of them than another."""
    return [max(group, key=lambda one: one.seed_count) for group in grouped(entries, lambda one: one.metric).values()]


def _value(entry: Entry, seed: int) -> str:
    return f"{entry.values[entry.seeds.index(seed)]:.6g}" if seed in entry.seeds else ""


def _made(entries: Sequence[Entry], recipes: Mapping[str, Recipe]) -> Iterator[Made]:
    entry = entries[0]  # they are of one point, and may differ in their seeds
    for seed in sorted({seed for each in entries for seed in each.seeds}):
        directory = origin.metrics_of(entry.dataset, entry.model, seed, entry.step, entry.sampler)
        recipe = origin.get(directory, recipes)
        links = origin.chain(recipe, recipes)
        made_from = [recipe, *(recipes[links[name].directory] for name in CHAIN if name in links)]
        parameters = {key: value for one in made_from for key, value in one["params"].items()}
        parameters |= {f"imported {one['cell']}": one["source"] for one in made_from if "source" in one}
        trained = recipes[links["checkpoint"].directory]["inputs"].items()
        parameters |= {f"trained on from {path}": md5 for path, md5 in trained if path.endswith("/ema.safetensors")}
        links["metrics"] = Link(directory, "metrics.json", recipe["outputs"]["metrics.json"])
        yield Made(seed, directory, recipe["code"], links, json.dumps(parameters, sort_keys=True))
