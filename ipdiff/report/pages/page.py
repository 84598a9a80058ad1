"""Pages from templates: the files in `templates/`, filled in with what a page shows."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from ipdiff.report import labels
from ipdiff.report.tables import layout

TEMPLATES = Path(__file__).parent / "templates"


def write(name: str, out: Path, context: dict[str, Any]) -> None:
    """Write out/NAME.html from the template of that name."""
    (out / f"{name}.html").write_bytes(render(name, context))


def render(name: str, context: dict[str, Any]) -> bytes:
    """The page of the template of that name; what the context holds is escaped."""
    return _environment().get_template(f"{name}.html.jinja").render(context).encode()


def prose(text: str) -> Markup:
    """Escaped text with T' and eta set as mathematics."""
    return Markup(labels.prose(text, _mathematics, lambda code: Markup("<code>{}</code>").format(code)))


def _mathematics(text: str) -> str:
    safe = escape(re.sub(r"\bT'", "T\N{PRIME}", text))
    return re.sub(r"\beta =", "<i>\N{GREEK SMALL LETTER ETA}</i> =", safe)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {name: axis.name for name, axis in labels.AXES.items()}
    made.filters["prose"] = prose
    made.globals["layout"] = layout
    for name, file in {"style": "style.css", "script": "script.js"}.items():
        made.globals[name] = Markup((TEMPLATES / file).read_text(encoding="utf-8"))
    return made
