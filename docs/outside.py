"""What the manual shows that lies outside of docs/: pages of other folders, and files that its pages link to.

A hook of MkDocs (mkdocs.yml). On GitHub a link such as `../ipdiff/rng.py` works as it is; a site has to bring the file
along. So the pages in `PAGES` are added, other files that a page links to are copied as text, and a link to a folder,
which a site cannot show, becomes its text.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "config/README.md": "params.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Pages elsewhere in the project, and their names in the manual."""
LINK = re.compile(r"(!?)\[((?:[^][]|\[[^][]*\])*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
"""A link of Markdown to a file: `!` or nothing, its text, its path, its anchor."""


def brought(path: str) -> str:
    """Where a file of the project that is no page lies in the manual."""
    return f"project/{path}.txt" if path.endswith(".md") else f"project/{path}"


def turned(text: str, source: str, page: str, bring: Callable[[str], None]) -> str:
    """A page whose links lead to where things are in the manual.

    Args:
        text: Markdown.
        source: the page's path in the project.
        page: its path in the manual.
        bring: called with the path of each file in the project that is not part of the manual yet.
    """

    def turn(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[3]))
        if (ROOT / path).is_dir():
            return match[2]
        if path in PAGES:
            place = PAGES[path]
        elif path.startswith("docs/") or not (ROOT / path).is_file():  # what is not there is told by MkDocs
            place = path.removeprefix("docs/")
        else:
            place = brought(path)
            bring(path)
        return f"{match[1]}[{match[2]}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{match[4] or ''})"

    fenced = re.split(r"(^ *```.*?^ *```)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if i % 2 else LINK.sub(turn, part) for i, part in enumerate(fenced))


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages of other folders, and the files that any page links to."""
    wanted: dict[str, None] = {}
    texts = {f"docs/{file.src_uri}": (file.src_uri, file.content_string) for file in files.documentation_pages()}
    texts |= {source: (page, (ROOT / source).read_text()) for source, page in PAGES.items()}
    for source, (page, text) in texts.items():
        text = turned(text, source, page, lambda path: wanted.setdefault(path))
        if source in PAGES:
            files.append(File.generated(config, page, content=text))
    for path in wanted:
        files.append(File.generated(config, brought(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turn the links of a page in docs/; those of the others are turned already."""
    if page.file.src_uri in PAGES.values():
        return markdown
    return turned(markdown, f"docs/{page.file.src_uri}", page.file.src_uri, lambda path: None)
