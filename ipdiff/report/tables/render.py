"""Markdown and LaTeX of a laid-out table."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ipdiff.report.labels import prose
from ipdiff.report.tables.layout import Panel, Row, Text

TEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "\N{MINUS SIGN}": "$-$",
        "\N{PLUS-MINUS SIGN}": r"$\pm$",
    }
)


def markdown(title: str, panels: Sequence[Panel], notes: Sequence[str]) -> str:
    """A title, a pipe table for each panel, the notes."""
    parts = [f"### {_md(title)}"]
    for panel in panels:
        if panel.caption:
            parts.append(f"**{_md(panel.caption)}**")
        header = [*panel.stubs, *(" ".join(column) for column in panel.columns)]
        rule = ["---"] * len(panel.stubs) + ["---:"] * len(panel.columns)
        body = [[_md(label) for label in row.labels] + [_md_cell(cell) for cell in row.cells] for row in panel.rows]
        lines = [[_md(text) for text in header], rule, *body]
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join([*parts, *map(_md, notes)]) + "\n"


def tex(name: str, title: str, panels: Sequence[Panel], notes: Sequence[str]) -> str:
    """A `table` environment with one `tabular` for each panel; needs the package booktabs."""
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(title)}}}",
        rf"\label{{tab:{re.sub('[^A-Za-z0-9:-]', '-', name)}}}",
    ]
    for panel in panels:
        if panel.caption:
            lines.append(rf"\par\smallskip {_tex(panel.caption)}\par")
        lines += [
            rf"\begin{{tabular}}{{{'l' * len(panel.stubs)}{'r' * len(panel.columns)}}}",
            r"\toprule",
            *(" & ".join(line) + r" \\" for line in _tex_header(panel)),
            r"\midrule",
            *(" & ".join(_tex_row(row)) + r" \\" for row in panel.rows),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    lines += [rf"\par\smallskip\footnotesize {_tex(note)}" for note in notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _tex(text: str) -> str:
    """Any text, safe in LaTeX, with T' and eta as mathematics."""
    return prose(text, _tex_mathematics, lambda code: rf"\texttt{{{code.translate(TEX)}}}")


def _tex_mathematics(text: str) -> str:
    return re.sub(r"\beta =", r"$\\eta$ =", re.sub(r"\bT'", "$T'$", text.translate(TEX)))


def _md(text: str) -> str:
    safe = prose(text, lambda plain: re.sub(r"([\\|*_`<>\[\]])", r"\\\1", plain), "`{}`".format)
    return safe.replace("\n", " ")


def _md_cell(cell: Text | None) -> str:
    if cell is None:
        return ""
    main = f"**{cell.main}**" if cell.best else cell.main
    return " ".join(part for part in (main, cell.verdict, f"\\[{cell.paper}\\]" if cell.paper else "") if part)


def _tex_header(panel: Panel) -> list[list[str]]:
    *upper, last = panel.header()
    blank = [""] * len(panel.stubs)
    return [
        *([*blank, *(rf"\multicolumn{{{width}}}{{c}}{{{_tex(text)}}}" for text, width in line)] for line in upper),
        [*map(_tex, panel.stubs), *(_tex(text) for text, _ in last)],
    ]


def _tex_row(row: Row) -> list[str]:
    fields = [*map(_tex, row.labels), *map(_tex_cell, row.cells)]
    return [rf"\textit{{{field}}}" if row.difference and field else field for field in fields]


def _tex_cell(cell: Text | None) -> str:
    if cell is None:
        return ""
    main = rf"\textbf{{{_tex(cell.main)}}}" if cell.best else _tex(cell.main)
    paper = f"[{_tex(cell.paper)}]" if cell.paper else ""
    return " ".join(part for part in (main, cell.verdict, paper) if part)
