"""The card of every number: what it was made from, by digest, and the command that makes it again.

A card is what the recipes say, link by link: metrics <- samples <- checkpoint <- data. What differs from one making
to the next (versions, hardware, seconds) stands in the receipts; a card links to them, and shows none of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from ipdiff.report import labels, origin
from ipdiff.report.entries import Entry
from ipdiff.report.origin import CHAIN, Link, Recipe
from ipdiff.report.pages.style import page
from ipdiff.work.recipes import RECIPE

LEAD = (
    "One card for each point of the tables and figures, one line for each training seed. A digest is the md5 of the "
    "file, the same as in dvc.lock and in DVC's cache; it leads to the recipe, which names the inputs, the parameters "
    "and the digest of the code. The receipt, where there is one, says with what versions, on what machine and in how "
    "many seconds. The command makes the number again from what is missing; <code>ipdiff pull</code> with the same "
    "path brings it from a remote, and <code>ipdiff verify</code> hashes it."
)


def anchor(dataset: str, model: str, step: int, sampler: str) -> str:
    """The name of a point's card on the page."""
    return f"{dataset}/{model}/{step}/{sampler}"


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
    read = origin.by_cell(recipes)
    points: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        if entry.kind == "value":
            at = anchor(entry.dataset, entry.model, entry.step, entry.sampler)
            points.setdefault(at, {})[entry.metric] = entry
    cards = "\n".join(_card(at, list(metrics.values()), read) for at, metrics in points.items())
    body = f"""<header>
<p class="kicker">ipdiff report</p>
<h1>{escape(title)}: where each number comes from</h1>
<p class="lead">{LEAD}</p>
<p class="facts"><a href="index.html">back to the report</a></p>
</header>
{cards}"""
    (out / "cards.html").write_bytes(page(f"{title}: numbers", body).encode())


def _card(at: str, entries: list[Entry], recipes: Mapping[str, Recipe]) -> str:
    first = entries[0]
    head = f"{labels.dataset(first.dataset)}, {labels.model(first.model)}, {first.step:,} steps, "
    heads = [*(labels.metric(entry.metric) for entry in entries), "metrics", *(name for name, _ in CHAIN), "reference"]
    columns = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    rows = "".join(_row(place, seed, entries, recipes) for place, seed in enumerate(first.seeds))
    return (
        f'<section class="card" id="{escape(at)}">\n<h2>{escape(head + labels.sampler(first.sampler))}</h2>\n'
        f'<div class="scroll"><table><thead><tr><th scope="col">seed</th>{columns}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>\n</section>"
    )


def _row(place: int, seed: int, entries: list[Entry], recipes: Mapping[str, Recipe]) -> str:
    entry = entries[0]
    directory = origin.metrics_of(entry.dataset, entry.model, seed, entry.step, entry.sampler)
    recipe = origin.get(directory, recipes)
    links: dict[str, Link | None] = {"metrics": Link(directory, "metrics.json", recipe["outputs"]["metrics.json"])}
    behind = origin.chain(recipe, recipes)
    links |= {name: None for name, _ in CHAIN} | behind
    links["reference"] = origin.source_of(recipe, origin.REFERENCE)
    values = "".join(f'<td class="n">{number.values[place]:.6g}</td>' for number in entries)
    fields = "".join(f"<td>{_link(link)}</td>" for link in links.values())
    span = len(entries) + len(links)
    made_from = [recipe, *(recipes[link.directory] for link in behind.values())]
    parameters = {key: value for one in made_from for key, value in one["params"].items()}
    parameters |= {f"imported {one['cell']}": one["source"] for one in made_from if "source" in one}
    return (
        f'<tr><th scope="row" rowspan="2">{seed}</th>{values}{fields}</tr>\n'
        f'<tr><td colspan="{span}"><code>snakemake --cores all {escape(directory)}/metrics.json</code>'
        f"<details><summary>code {escape(recipe['code'][:8])}, parameters</summary>"
        f"<code>{escape(json.dumps(parameters, sort_keys=True))}</code></details></td></tr>\n"
    )


def _link(link: Link | None) -> str:
    if link is None:
        return "imported"
    return (
        f'<a href="../../{escape(link.directory)}/{RECIPE}" title="{escape(f"{link.directory}/{link.file}")}">'
        f"<code>{escape(link.digest[:12])}</code></a> "
        f'<a class="receipt" href="../../receipts/{escape(link.directory)}.json">receipt</a>'
    )
