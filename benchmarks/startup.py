"""How long a command takes before it works: the command line's help, and whole stages of the study `mini`.

Those stages compute for some hundredths of a second (training twice four updates of a tiny network), so that the time
of the whole command, from the start of its process to its end, is an upper bound of its start.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import ROOT, Row, seconds
from ipdiff.pipeline import grid
from ipdiff.pipeline.config import FOLDER
from ipdiff.pipeline.engines import fork_server
from ipdiff.pipeline.grid import Cell

HELP_S = 0.3
STAGE_S = 2.5
WARM_S = 0.5
LIBRARY_S = 0.5
"""Goals: `ipdiff --help`, a stage by itself, a stage beside a server that has imported everything, `from ipdiff import
GaussianDiffusion, sample` beyond torch's own import."""

REPEATS = 3


def table(quick: bool) -> Iterator[Row]:
    """Rows of everything here; `quick`: one stage, once, without a server."""
    repeats = 1 if quick else REPEATS
    yield Row("import ipdiff", _command("-c", "import ipdiff", repeats=repeats), HELP_S, "s", "goal")
    yield Row("ipdiff --help", _command("-m", "ipdiff", "--help", repeats=repeats), HELP_S, "s", "goal")
    torch = _command("-c", "import torch", repeats=repeats)
    library = _command("-c", "from ipdiff import GaussianDiffusion, sample", repeats=repeats)
    beyond = max(library - torch, 0.001)  # the two are measured one after the other, and both vary
    yield Row("the mathematics, beyond import torch", beyond, LIBRARY_S, "s", f"goal (import torch: {torch:.2f} s)")
    cells = _cells("prepare" if quick else "table")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / FOLDER, Path(folder) / FOLDER)
        for cell, took in _stages(cells, Path(folder), repeats):
            yield Row(f"ipdiff {cell.stage.verb}, whole", took, STAGE_S, "s", f"goal (import torch: {torch:.2f} s)")
        if quick:
            return
        with fork_server.server():
            _stage(cells[0], Path(folder))  # waits for the server
            for cell, took in _stages(cells, Path(folder), repeats):
                yield Row(f"ipdiff {cell.stage.verb}, whole, beside a server", took, WARM_S, "s", "goal")


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _command(*arguments: str, repeats: int) -> float:
    """Seconds of a Python process, the quickest of so many."""

    def call() -> None:
        subprocess.run([sys.executable, *arguments], env=_environment(), check=True, stdout=subprocess.DEVNULL)

    return min(seconds(call) for _ in range(repeats))


def _cells(verb: str) -> list[Cell]:
    """What the study `mini` needs for its first cell of a verb, in order, that cell last."""
    cells = grid.load(ROOT).study("mini")
    last = next(cell for cell in cells if cell.stage.verb == verb)
    wanted, found = {*last.inputs}, [last]
    for cell in reversed(cells):
        if wanted & {*cell.outputs}:
            wanted |= {*cell.inputs}
            found.append(cell)
    return found[::-1]


def _stages(cells: list[Cell], project: Path, repeats: int) -> Iterator[tuple[Cell, float]]:
    """Every verb's last cell with the quickest of its times; all cells are made, so often."""
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        for cell in cells:
            shutil.rmtree(project / cell.directory, ignore_errors=True)
        shutil.rmtree(project / "work", ignore_errors=True)
        for cell in cells:
            times.setdefault(cell.stage.verb, []).append(seconds(lambda cell=cell: _stage(cell, project)))
    last = {cell.stage.verb: cell for cell in cells}
    yield from ((last[verb], min(found)) for verb, found in times.items())


def _stage(cell: Cell, project: Path) -> None:
    command = [sys.executable, "-m", "ipdiff", *cell.command.split()[1:]]
    subprocess.run(command, cwd=project, env=_environment(), check=True, stdout=subprocess.DEVNULL)
