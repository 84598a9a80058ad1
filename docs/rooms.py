"""The rooms of the package as their imports make them: docs/rooms.svg, and the lists in the pages that name them.

`python docs/rooms.py --write` writes them, `--check` exits with 2 where one is stale. ipdiff imports nothing from here.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import pairwise
from math import fsum
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ipdiff"
PICTURE = ROOT / "docs/rooms.svg"
PAGES = (ROOT / "docs/architecture.md", ROOT / "CONTRIBUTING.md")
COMMON = ("errors", "parameters")
"""Imported nearly everywhere: the picture names them and draws no arrow to them."""

Graph = dict[str, set[str]]


# What imports what --------------------------------------------------------------------------------------------


def modules() -> dict[str, Path]:
    """Every module of the package, dotted, and its file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: Iterable[str]) -> set[str]:
    """Modules of the package that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & set(known) or {node.module}
    return found & set(known)


@cache
def module_graph() -> Graph:
    """Module -> the modules that it imports."""
    files = modules()
    return {module: imports(path, files) - {module} for module, path in files.items()}


def room_of(module: str) -> str | None:
    """The room of a module: a folder or file of ipdiff/, or of its pipeline/; None for what only holds rooms."""
    parts = module.split(".")[1:]
    if parts in ([], ["__main__"], ["pipeline"]):
        return None
    return ".".join(parts[:2] if parts[0] == "pipeline" else parts[:1])


def room_graph() -> Graph:
    """Room -> the rooms that it imports from."""
    graph: Graph = {}
    for module, targets in module_graph().items():
        if room := room_of(module):
            graph.setdefault(room, set()).update(t for target in targets if (t := room_of(target)))
    return {room: targets - {room} for room, targets in sorted(graph.items())}


def reduced(graph: Mapping[str, set[str]]) -> Graph:
    """Without the arrows that follow from others."""
    below: Graph = {}

    def reach(room: str) -> set[str]:
        if room not in below:
            below[room] = set().union(*({target} | reach(target) for target in graph[room]))
        return below[room]

    return {room: {t for t in graph[room] if not any(t in reach(o) for o in graph[room] - {t})} for room in graph}


def contracts() -> list[dict[str, Any]]:
    """The import contracts of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def layers() -> list[list[list[str]]]:
    """Rooms in their layers, top first: of the package, and of its pipeline."""
    rows = [contract["layers"] for contract in contracts() if contract["type"] == "layers"]
    return [[[room.strip().removeprefix("ipdiff.") for room in row.split("|")] for row in part] for part in rows]


def path_of(room: str) -> Path:
    """A room's folder or file."""
    folder = PACKAGE.joinpath(*room.split("."))
    return folder if folder.is_dir() else folder.with_suffix(".py")


def title(room: str) -> str:
    """What a room says of itself: the first line of its docstring."""
    path = path_of(room)
    text = ast.get_docstring(ast.parse((path / "__init__.py" if path.is_dir() else path).read_bytes())) or ""
    return text.splitlines()[0]


# Where the boxes stand ----------------------------------------------------------------------------------------

WIDTH, BOX, HEIGHT, ROW = 980, 114, 40, 72
LEFT, RIGHT = 24, WIDTH - 24


def depth(graph: Graph) -> dict[str, int]:
    """Row of each room, counted from the bottom: one above the highest room that it imports."""
    rows: dict[str, int] = {}

    def of(room: str) -> int:
        if room not in rows:
            rows[room] = max((of(target) + 1 for target in graph[room]), default=0)
        return rows[room]

    for room in graph:
        of(room)
    return rows


Link = tuple[str, str]


def ranked(rows: list[list[str]]) -> dict[str, int]:
    """Where each node stands in its row, in thousandths of the row."""
    return {name: (2 * i + 1) * 500 // len(row) for row in rows for i, name in enumerate(row)}


def tangle(rows: list[list[str]], links: list[list[Link]]) -> tuple[int, int]:
    """How many links cross, and how far they lead sideways. `links[n]` lead from row n to the next."""
    at = ranked(rows)
    crossing = sum(
        (at[a] - at[c]) * (at[b] - at[d]) < 0 for part in links for i, (a, b) in enumerate(part) for c, d in part[:i]
    )
    return crossing, sum(abs(at[a] - at[b]) for part in links for a, b in part)


def untangled(rows: list[list[str]], links: list[list[Link]]) -> list[list[str]]:
    """The rows, top first, with their nodes moved as long as that helps; the first row stays as it is."""
    best = tangle(rows, links)
    better = True
    while better:
        better = False
        for n in range(1, len(rows)):
            for name in sorted(rows[n]):
                others = [other for other in rows[n] if other != name]
                tried = [[*rows[:n], [*others[:i], name, *others[i:]], *rows[n + 1 :]] for i in range(len(rows[n]))]
                near = links[max(n - 1, 0) : n + 1]
                found = min(tried, key=lambda some: (tangle(some, near), some))
                if (cost := tangle(found, links)) < best:
                    rows, best, better = found, cost, True
    return rows


def spread(order: list[str], wanted: Mapping[str, float], widths: Mapping[str, float]) -> dict[str, float]:
    """Places as near to those wanted as the widths allow, in this order, between LEFT and RIGHT."""
    x = [wanted[name] for name in order]
    gaps = [(widths[a] + widths[b]) / 2 for a, b in pairwise(order)]
    for _ in range(60):
        for i, gap in enumerate(gaps):
            if (short := gap - (x[i + 1] - x[i])) > 0:
                x[i], x[i + 1] = x[i] - short / 2, x[i + 1] + short / 2
        x = [min(max(at, LEFT + widths[name] / 2), RIGHT - widths[name] / 2) for name, at in zip(order, x, strict=True)]
    return dict(zip(order, x, strict=True))


Placed = tuple[dict[str, float], dict[Link, list[str]]]


def place(edges: Iterable[Link], rows: Mapping[str, int], fixed: Mapping[str, float]) -> Placed:
    """Horizontal places of rooms, and the points that an arrow over several rows passes.

    Args:
        edges: from a room to one in a lower row.
        rows: of every room; the highest row is that of `fixed`.
        fixed: places of rooms that stay where they are.
    """
    top = max(rows.values())
    nodes = [[room for room in rows if rows[room] == top - n] for n in range(top + 1)]
    links: list[list[Link]] = [[] for _ in range(top)]
    paths = {}
    for a, b in sorted(edges):
        paths[a, b] = steps = [a, *(f"{a}>{b}@{row}" for row in range(rows[a] - 1, rows[b], -1)), b]
        for n, link in enumerate(pairwise(steps), start=top - rows[a]):
            links[n].append(link)
        for n, step in enumerate(steps[1:-1], start=top - rows[a] + 1):
            nodes[n].append(step)
    nodes = untangled(nodes, links)
    widths = {name: 60.0 if "@" in name else BOX + 22.0 for row in nodes for name in row}
    x = {name: LEFT + at * (RIGHT - LEFT) / 1000 for name, at in ranked(nodes).items()} | dict(fixed)
    for sweep in range(60):
        for row in nodes[1:] if sweep % 2 == 0 else reversed(nodes[1:]):
            near = {
                name: [x[b] if a == name else x[a] for part in links for a, b in part if name in (a, b)] for name in row
            }
            x |= spread(row, {name: fsum(at) / len(at) if at else x[name] for name, at in near.items()}, widths)
    return x, paths


# The picture --------------------------------------------------------------------------------------------------

STYLE = """
  text { font-family: "DejaVu Sans", Verdana, Helvetica, Arial, sans-serif; fill: #1f2328; text-anchor: middle }
  .name { font-size: 14px; font-weight: bold }
  .file { font-size: 12px }
  .size { font-size: 11px; fill: #57606a }
  .note { font-size: 12px; fill: #57606a; text-anchor: start }
  .wing { fill: #f6f8fa; stroke: #d0d7de }
  .science { fill: #ddf4ff; stroke: #0969da }
  .pipeline { fill: #fff1e5; stroke: #bc4c00 }
  .door { fill: #dafbe1; stroke: #1a7f37 }
  .arrow { fill: none; stroke: #57606a; stroke-width: 1.4; marker-end: url(#head) }
"""


HEAD = (
    '<defs><marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M 0 0 L 8 4 L 0 8 z" fill="#57606a"/></marker></defs>'
)
"""The head of an arrow."""


def box(room: str, x: float, y: float, kind: str) -> str:
    """A room: its name, and how many files it has."""
    path = path_of(room)
    name = path.name + "/" * path.is_dir()
    frame = f'<rect class="{kind}" x="{x - BOX / 2:.0f}" y="{y:.0f}" width="{BOX}" height="{HEIGHT}" rx="6"/>'
    if not path.is_dir():
        return f'{frame}<text class="name file" x="{x:.0f}" y="{y + 25:.0f}">{name}</text>'
    files = [p for p in path.rglob("[!.]*") if p.is_file() and "__pycache__" not in p.parts]
    size = f'<text class="size" x="{x:.0f}" y="{y + 33:.0f}">{len(files)} file{"s" * (len(files) != 1)}</text>'
    return f'{frame}<text class="name" x="{x:.0f}" y="{y + 18:.0f}">{name}</text>{size}'


def note(x: float, y: float, text: str) -> str:
    """A line of explanation."""
    return f'<text class="note" x="{x:.0f}" y="{y:.0f}">{text}</text>'


def wing(y: float, height: float) -> str:
    """The ground on which the rooms of a wing stand."""
    return f'<rect class="wing" x="10" y="{y:.0f}" width="{WIDTH - 20}" height="{height:.0f}" rx="8"/>'


def arrow(points: list[tuple[float, float]]) -> str:
    """A line that goes down and bends at the points between its ends."""
    (x, y), *inner, (to_x, to_y) = points
    path = f"M {x:.0f} {y:.0f}"
    for (at_x, at_y), (next_x, next_y) in pairwise([*inner, (to_x, to_y - 14)]):
        path += f" Q {at_x:.0f} {at_y:.0f}, {(at_x + next_x) / 2:.0f} {(at_y + next_y) / 2:.0f}"
        x, y = (at_x + next_x) / 2, (at_y + next_y) / 2
    middle = (y + to_y) / 2
    first = f"{x:.0f} {middle:.0f}" if not inner else f"{to_x:.0f} {to_y - 16:.0f}"
    return f'<path class="arrow" d="{path} C {first}, {to_x:.0f} {middle:.0f}, {to_x:.0f} {to_y:.0f}"/>'


def picture() -> str:
    """The rooms and the arrows between them, as SVG."""
    graph = reduced({room: targets - set(COMMON) for room, targets in room_graph().items() if room not in COMMON})
    inside = [[f"pipeline.{room}" for room in row] for row in layers()[1]]
    line = [room for row in inside for room in row]
    science = {room: graph[room] for room in graph if room not in line and room != "cli"}
    rows = depth(science)
    top = max(rows.values()) + 1
    step = (RIGHT - LEFT) / len(line)
    fixed = {room: LEFT + (i + 0.5) * step for i, room in enumerate(line)}
    fixed["cli"] = fixed[line[0]]
    down = [(a, b) for a in graph if a != "cli" for b in graph[a] if b in science]
    x, paths = place(down, rows | dict.fromkeys(line, top), fixed)

    door_y, line_y, science_y = 20, 122, 268
    bottom = science_y + top * ROW
    y = {room: science_y + (top - 1 - row) * ROW for room, row in rows.items()}
    y |= {room: line_y + 36 * inside[-1][::-1].index(room) if room in inside[-1] else line_y for room in line}
    arrows = [arrow([(x["cli"], door_y + HEIGHT), (x[room], y[room] - 3)]) for room in sorted(graph["cli"])]
    for (a, b), steps in paths.items():
        middle = [(x[name], science_y + (top - 1 - int(name.split("@")[1])) * ROW + HEIGHT / 2) for name in steps[1:-1]]
        arrows.append(arrow([(x[a], y[a] + HEIGHT), *middle, (x[b], y[b] - 3)]))
    for a in line:
        for b in sorted(graph[a] & set(line)):
            (x1, y1), (x2, y2) = (x[a] + BOX / 2, y[a] + HEIGHT / 2), (x[b] - BOX / 2 - 3, y[b] + HEIGHT / 2)
            arrows.append(f'<path class="arrow" d="M {x1:.0f} {y1:.0f} L {x2:.0f} {y2:.0f}"/>')
    boxes = [box("cli", x["cli"], door_y, "door"), *(box(room, x[room], y[room], "pipeline") for room in line)]
    boxes += [box(room, x[room], y[room], "science") for room in science]
    notes = [
        note(x["cli"] + BOX / 2 + 14, door_y + 25, "the door: ipdiff VERB ..."),
        note(x[line[1]] - BOX / 2, line_y + 68, "pipeline/ names, runs, records and checks"),
        note(LEFT + 4, bottom - 4, "the science decides the bytes, and knows no engine"),
        note(LEFT + 4, bottom + 34, "An arrow means: imports from. Those that follow from others are left out,"),
        note(
            LEFT + 4,
            bottom + 51,
            f"and those to {' and '.join(f'{room}.py' for room in COMMON)}, which nearly all have.",
        ),
    ]
    size = f'width="{WIDTH}" height="{bottom + 64}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 64}" {size}>',
            f"<style>{STYLE}</style>",
            HEAD,
            f'<rect {size} fill="#ffffff"/>',
            wing(line_y - 18, 112),
            wing(science_y - 22, bottom - science_y + 28),
            *arrows,
            *boxes,
            *notes,
            "</svg>\n",
        ]
    )


# The lists in the pages ---------------------------------------------------------------------------------------


def rooms_list() -> str:
    """One line a room, bottom to top."""
    outer, inner = layers()
    rows = [room for row in reversed(outer) for room in row if room not in ("cli", "pipeline")]
    rows += [f"pipeline.{room}" for row in reversed(inner) for room in row]
    lines = ["| room | what it holds |", "|---|---|"]
    for room in [*rows, "cli"]:
        path = path_of(room)
        name = f"{path.relative_to(PACKAGE).as_posix()}{'/' * path.is_dir()}"
        lines.append(f"| `{name}` | {title(room)} |")
    return "\n".join(lines)


def contracts_list() -> str:
    """What pyproject.toml forbids, a line for each contract; layers bottom to top."""
    lines, drawn = [], iter(layers())
    for contract in contracts():
        if contract["type"] == "layers":
            text = f"`{' < '.join(', '.join(row) for row in reversed(next(drawn)))}`"
        else:
            names = ", ".join(f"`{module}`" for module in contract["forbidden_modules"])
            text = f"Outside `pipeline` and `cli` nothing imports {names}."
        lines.append(f"- **{contract['name']}.** {text}")
    return "\n".join(lines)


LISTS = {"rooms": rooms_list, "contracts": contracts_list}
"""Name of a marked part of a page -> what stands there."""


def filled(page: str) -> str:
    """A page whose marked parts, `<!-- NAME -->` to `<!-- end -->`, are as they should be."""

    def fill(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{LISTS[match[1]]()}\n<!-- end -->"

    return re.sub(rf"<!-- ({'|'.join(LISTS)}) -->\n.*?<!-- end -->", fill, page, flags=re.DOTALL)


def expected() -> dict[Path, str]:
    """Every file that is written here, and its text."""
    return {PICTURE: picture(), **{page: filled(page.read_text()) for page in PAGES}}


def main() -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--write", action="store_true")
    way.add_argument("--check", action="store_true")
    args = parser.parse_args()
    texts = expected()
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
    if args.write:
        for path in stale:
            path.write_text(texts[path])
        print(f"wrote {names}" if stale else "nothing to write")
        return 0
    if stale:
        print(f"{names}: not what the imports say; run `python docs/rooms.py --write`", file=sys.stderr)
    return 2 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
