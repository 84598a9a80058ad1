"""A study's report: one self-contained HTML page, and the cards of its numbers."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ipdiff.errors import UserError
from ipdiff.report import labels
from ipdiff.report.figures import monitor
from ipdiff.report.pages import answer, cards, front, page
from ipdiff.report.pages.outcome import pairs
from ipdiff.report.spec import Study
from ipdiff.report.tables import table
from ipdiff.report.tables.entries import names, read_csv


def run(
    study_name: str,
    study: Study,
    tables: dict[str, Path],
    figures: dict[str, Path],
    recipes: Iterable[Mapping[str, Any]],
    out: Path,
    unperturbed: Mapping[str, str] | None = None,
) -> None:
    """Write out/index.html from finished tables and figures, and out/cards.html: where each number comes from.

    Args:
        study_name: the study's key in params.yaml; part of the links ../../tables/STUDY/TABLE/.
        study: what was asked for; its order is the page's.
        tables: directory of each table, with table.csv.
        figures: directory of each figure, with figure.png and figure.csv.
        recipes: recipes of every artifact that the numbers were made from.
        out: directory to write into.
        unperturbed: by model with input perturbation, its like without: what the page's first sentence is about.

    Raises:
        UserError: a table or figure of the study is missing or malformed.
    """
    frames = {name: _frame(name, study, tables) for name in study.tables}
    grids = [name for name, figure in study.figures.items() if figure.kind == "samples"]
    pictures = {name: _picture(name, figures) for name in study.figures if name not in grids}
    found = pairs({name: frame.entries for name, frame in frames.items()})
    shown = [entry for frame in frames.values() for entry in frame.entries]
    warnings: dict[str, list[str]] = {}
    for name, figure in study.figures.items():
        if figure.is_curve:
            drawn = read_csv(figures[name] / "figure.csv")
            shown += drawn
            warnings[name] = monitor.lines(drawn) if figure.kind == "monitor" else []
    out.mkdir(parents=True, exist_ok=True)
    better = labels.better({entry.label: entry.metric for pair in found for entry, _ in pair.cases})
    named = names(shown)
    bases = unperturbed or {}
    answers = answer.answers(frames.values(), bases, named)
    images = {name: front.strips(_given("figure", name, figures), named, bases) for name in grids}
    context = {"study_name": study_name, "study": study, "frames": frames, "pictures": pictures, "names": named}
    context |= {"answers": answers, "rule": answer.rule(answers), "pairs": found, "better": better}
    context |= {"leading": front.leading(study, bases), "images": images, "warnings": warnings}
    page.write("index", out, context)
    cards.run(study.title, shown, recipes, out)


def _given(kind: str, name: str, folders: dict[str, Path]) -> Path:
    if name not in folders:
        raise UserError(f"report: {kind} '{name}' of the study was not given; make it first")
    return folders[name]


def _frame(name: str, study: Study, tables: dict[str, Path]) -> table.Frame:
    return table.frame(study.tables[name], read_csv(_given("table", name, tables) / "table.csv"))


def _picture(name: str, figures: dict[str, Path]) -> dict[str, Any]:
    """A figure's PNG as text, and how large it is shown."""
    path = _given("figure", name, figures) / "figure.png"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: expected a PNG ({error.strerror}); make the figure again") from error
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise UserError(f"{path}: expected a PNG; make the figure again")
    width, height = (round(0.72 * int.from_bytes(data[at : at + 4], "big")) for at in (16, 20))
    return {"base64": b64encode(data).decode(), "width": width, "height": height}
