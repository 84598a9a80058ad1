"""A study's report: one self-contained HTML page."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ipdiff.errors import UserError
from ipdiff.report import labels, paper
from ipdiff.report.entries import Entry, read_csv
from ipdiff.report.pages import cards
from ipdiff.report.pages.outcome import Pair, pairs
from ipdiff.report.pages.style import page
from ipdiff.report.spec import Figure, Study
from ipdiff.report.tables import layout, table
from ipdiff.report.tables.layout import Panel, Text
from ipdiff.report.tables.render import spans

OUTCOME = (
    "Each row is one comparison from the tables below: a model minus its baseline, paired by training seed; "
    "{better}. <b>Better</b> and <b>worse</b>: the mean difference is larger than the standard deviation "
    "of the differences across seeds. <b>Within spread</b>: it is not. That is a plain mark of size, not a "
    "significance test. A comparison that stands in several tables is counted once."
)
MARKS = {
    "better": "\N{CHECK MARK}",
    "worse": "\N{MULTIPLICATION X}",
    "within spread": "\N{ALMOST EQUAL TO}",
    "one seed": "\N{WHITE CIRCLE}",
}


def run(
    study_name: str,
    study: Study,
    tables: dict[str, Path],
    figures: dict[str, Path],
    recipes: Iterable[Mapping[str, Any]],
    out: Path,
) -> None:
    """Write out/index.html from finished tables and figures, and out/cards.html: where each number comes from.

    Args:
        study_name: the study's key in params.yaml; part of the links ../../tables/STUDY/TABLE/.
        study: what was asked for; its order is the page's.
        tables: directory of each table, with table.csv.
        figures: directory of each figure, with figure.png and figure.csv.
        recipes: recipes of every artifact that the numbers were made from.
        out: directory to write into.

    Raises:
        UserError: a table or figure of the study is missing or malformed.
    """
    frames = {name: _frame(name, study, tables) for name in study.tables}
    pictures = {name: _picture(name, figures) for name in study.figures}
    found = pairs({name: frame.entries for name, frame in frames.items()})
    body = [
        _opening(study),
        _outcome(found, study),
        _contents(study),
        *(_table(study_name, name, frame) for name, frame in frames.items()),
        *(_figure(study_name, name, study.figures[name], data) for name, data in pictures.items()),
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").write_bytes(page(study.title, "\n".join(body)).encode())
    shown = [entry for frame in frames.values() for entry in frame.entries]
    for name, figure in study.figures.items():
        if figure.kind == "lines":
            shown += read_csv(figures[name] / "figure.csv")
    cards.run(study.title, shown, recipes, out)


def _frame(name: str, study: Study, tables: dict[str, Path]) -> table.Frame:
    if name not in tables:
        raise UserError(f"report: table '{name}' of the study was not given; make it first")
    return table.frame(study.tables[name], read_csv(tables[name] / "table.csv"), paper.values())


def _picture(name: str, figures: dict[str, Path]) -> bytes:
    if name not in figures:
        raise UserError(f"report: figure '{name}' of the study was not given; make it first")
    path = figures[name] / "figure.png"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: expected a PNG ({error.strerror}); make the figure again") from error
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise UserError(f"{path}: expected a PNG; make the figure again")
    return data


def _opening(study: Study) -> str:
    names = ", ".join(labels.dataset(name) for name in study.datasets)
    note = f'\n<p class="lead">{_prose(study.note)}</p>' if study.note else ""
    counts = f"{_count(len(study.tables), 'table')}, {_count(len(study.figures), 'figure')}"
    return (
        f'<header>\n<p class="kicker">ipdiff report</p>\n<h1>{escape(study.title)}</h1>{note}\n'
        f'<p class="facts">{escape(names)} · {counts} · training seeds '
        f"{escape(_seed_text(study))}</p>\n</header>"
    )


def _seed_text(study: Study) -> str:
    default = ", ".join(map(str, study.seeds["default"]))
    others = [
        f"{labels.model(name)}: {', '.join(map(str, seeds))}"
        for name, seeds in study.seeds.items()
        if name != "default"
    ]
    return default + (f" ({'; '.join(others)})" if others else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _contents(study: Study) -> str:
    tables = [
        f'<li><a href="#table-{escape(name)}">{_prose(view.title)}</a></li>' for name, view in study.tables.items()
    ]
    figures = [
        f'<li><a href="#figure-{escape(name)}">{_prose(view.title)}</a></li>' for name, view in study.figures.items()
    ]
    parts = [(title, items) for title, items in (("Tables", tables), ("Figures", figures)) if items]
    lists = "".join(f"<div><h3>{title}</h3><ol>{''.join(items)}</ol></div>" for title, items in parts)
    return f'<nav aria-label="Contents"><h2>Contents</h2><div class="columns">{lists}</div></nav>'


# What came out --------------------------------------------------------------------------------------------


def _outcome(found: Sequence[Pair], study: Study) -> str:
    if not found:
        body = "<p>No table of this study compares a model with a baseline.</p>"
    else:
        better = labels.better(metric for pair in found for metric in pair.metrics)
        body = f"<p>{OUTCOME.format(better=better)}</p>\n" + "\n".join(_pair(pair, study) for pair in found)
    return f'<section id="outcome">\n<h2>What came out</h2>\n{body}\n</section>'


def _pair(pair: Pair, study: Study) -> str:
    bars = "".join(_bar(metric, pair.counts(metric)) for metric in pair.metrics)
    rows = "".join(_case(entry, names, study, pair.decimals[entry.metric]) for entry, names in pair.cases)
    how = "" if pair.same_sampler else ", with different samplers"
    head = f"{escape(labels.model(pair.model))} against {escape(labels.model(pair.baseline))}{how}"
    return f"""<div class="pair">
<h3>{head}</h3>
<div class="bars">{bars}</div>
<details open><summary>{_count(len(pair.cases), "comparison")}, case by case</summary>
<div class="scroll"><table class="cases">
<thead><tr><th>data set</th><th>sampler</th><th>training steps</th><th>metric</th>\
<th class="n">difference</th><th>says</th><th>table</th></tr></thead>
<tbody>{rows}</tbody>
</table></div></details>
</div>"""


def _bar(metric: str, counts: dict[str, int]) -> str:
    total = sum(counts.values())
    parts = "".join(
        f'<span class="{_css(name)}" style="flex-grow:{count}" title="{name}: {count}"></span>'
        for name, count in counts.items()
        if count
    )
    words = ", ".join(
        f'<span class="{_css(name)} mark">{MARKS[name]} {name} {count}</span>'
        for name, count in counts.items()
        if count
    )
    return (
        f'<div class="bar"><b>{escape(labels.metric(metric))}</b><span class="stack" aria-hidden="true">'
        f'{parts}</span><span>{words} <span class="muted">of {total}</span></span></div>'
    )


def _case(entry: Entry, names: Sequence[str], study: Study, places: int) -> str:
    links = ", ".join(f'<a href="#table-{escape(name)}">{escape(name)}</a>' for name in names if name in study.tables)
    steps, sampler = layout.step_text(entry), layout.sampler_text(entry)
    return (
        f"<tr><td>{escape(labels.dataset(entry.dataset))}</td><td>{_prose(sampler)}</td><td>{steps}</td>"
        f'<td>{escape(labels.metric(entry.metric))}</td><td class="n">{layout.mean_text(entry, places)}</td>'
        f'<td class="{_css(entry.verdict)} mark">{MARKS[entry.verdict]} {entry.verdict}</td>'
        f"<td>{links}</td></tr>"
    )


# Tables ---------------------------------------------------------------------------------------------------


def _table(study_name: str, name: str, frame: table.Frame) -> str:
    drawn = "\n".join(_panel(panel) for panel in frame.panels)
    own, rest = [note for note in frame.notes if note == frame.table.note], frame.notes
    parts = [*own, " ".join(note for note in rest if note not in own)]
    notes = "".join(f"<p>{_prose(note)}</p>" for note in parts)
    links = _links(f"../../tables/{study_name}/{name}", ("table.csv", "table.md", "table.tex"))
    return (
        f'<section class="table" id="table-{escape(name)}">\n<h2>{_prose(frame.table.title)}</h2>\n{drawn}\n'
        f'<div class="notes">{notes}</div>\n{links}\n</section>'
    )


def _links(folder: str, files: Sequence[str]) -> str:
    links = " ".join(f'<a href="{escape(f"{folder}/{file}")}">{file.rpartition(".")[2]}</a>' for file in files)
    return f'<p class="files">{links}</p>'


def _panel(panel: Panel) -> str:
    caption = f"<caption>{_prose(panel.caption)}</caption>" if panel.caption else ""
    rows = "".join(_rows(panel))
    return f'<div class="scroll"><table>{caption}<thead>{_header(panel)}</thead>\n<tbody>{rows}</tbody></table></div>'


def _header(panel: Panel) -> str:
    depth = len(panel.columns[0])
    lines: list[str] = []
    for level in range(depth):
        stubs = "".join(f'<th rowspan="{depth}" scope="col">{_prose(stub)}</th>' for stub in panel.stubs)
        columns = [(column[-1], 1) for column in panel.columns] if level == depth - 1 else spans(panel.columns, level)
        fields = "".join(
            f'<th class="{"n" if level == depth - 1 else "span"}" scope="col" colspan="{width}">{_prose(text)}</th>'
            for text, width in columns
        )
        lines.append(f"<tr>{stubs if level == 0 else ''}{fields}</tr>")
    return "".join(lines)


def _rows(panel: Panel) -> list[str]:
    made: list[str] = []
    before: tuple[str, ...] = ()
    for row in panel.rows:
        shared = next((place for place, (a, b) in enumerate(zip(row.labels, before, strict=False)) if a != b), 0)
        heads = "".join(
            f'<th scope="row"{" class=again" if place < shared else ""}>{_prose(label)}</th>'
            for place, label in enumerate(row.labels)
        )
        kinds = (["difference"] if row.difference else []) + (
            ["group"] if before and not shared and len(row.labels) > 1 else []
        )
        attribute = f' class="{" ".join(kinds)}"' if kinds else ""
        made.append(f"<tr{attribute}>{heads}{''.join(_cell(cell) for cell in row.cells)}</tr>\n")
        before = row.labels
    return made


def _cell(cell: Text | None) -> str:
    if cell is None:
        return "<td></td>"
    main = f"<b>{escape(cell.main)}</b>" if cell.best else escape(cell.main)
    main = f'<a class="number" href="cards.html#{escape(cell.card)}">{main}</a>'
    mark = f'<span class="mark">{MARKS[cell.verdict]} {cell.verdict}</span>' if cell.verdict else ""
    theirs = f'<span class="paper" title="in the paper">[{escape(cell.paper)}]</span>' if cell.paper else ""
    below = f'<span class="below">{mark}{theirs}</span>' if mark or theirs else ""
    return f'<td class="n {_css(cell.verdict)}">{main}{below}</td>'


# Figures --------------------------------------------------------------------------------------------------


CAPTIONS = {
    "lines": "Lines: mean over training seeds, which the legend names where they differ; bars: standard deviation; "
    "faint dots: single seeds; dashed with crosses: the paper's curve, where it is comparable.",
    "samples": "The first images of each set, not chosen.",
    "errors": "One line for each training seed. Left: the standard deviation of the error of one network call's "
    "prediction of x0, averaged over pixels. Right: in how many pixels the Shapiro-Wilk test rejects a normal error.",
}


def _figure(study_name: str, name: str, figure: Figure, data: bytes) -> str:
    note = f"{_prose(figure.note)} " if figure.note else ""
    links = _links(f"../../figures/{study_name}/{name}", ("figure.csv", "figure.png"))
    pixels = int.from_bytes(data[16:20], "big")
    width = pixels if figure.kind == "samples" else round(0.72 * pixels)
    return (
        f'<section id="figure-{escape(name)}">\n<h2>{_prose(figure.title)}</h2>\n<figure>'
        f'<img alt="{escape(figure.title)}" width="{width}" '
        f'src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        f"<figcaption>{note}{CAPTIONS[figure.kind]}</figcaption></figure>\n{links}\n</section>"
    )


def _css(verdict: str) -> str:
    return {"within spread": "within", "one seed": "one"}.get(verdict, verdict)


def _prose(text: str) -> str:
    """Escaped text with T' and eta set as mathematics."""
    safe = re.sub(r"\bT&#x27;", "T\N{PRIME}", escape(text))
    return re.sub(r"\beta =", "<i>\N{GREEK SMALL LETTER ETA}</i> =", safe)
