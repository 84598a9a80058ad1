"""What the two engines cost on a study where everything is made: `python benchmarks/grid.py [STUDY]`.

A copy of the project is filled with stand-ins: every cell of the study has its files (a few bytes each) and true
recipes. Then recording, `dvc status` and `snakemake -n` are timed. Nothing is computed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ipdiff.pipeline import grid
from ipdiff.pipeline.engines import dvc_files
from ipdiff.pipeline.store import artifact

ROOT = Path(__file__).parents[1]


def fill(study: str) -> int:
    """Stand-ins for every cell of a study, in the present directory; returns their number."""
    known = grid.load()
    cells = known.study(study)
    for cell in cells:
        recipe = {
            "cell": cell.directory,
            "stage": cell.stage.verb,
            "command": cell.command,
            "code": cell.code,
            "params": known.param_values(cell),
            "inputs": artifact.verify_inputs(cell.inputs),
        }
        with artifact.publishing(Path(cell.directory), cell.stage.files, recipe) as made:
            for name in cell.stage.files:
                (made.staging / name).write_text(f"{cell.directory}/{name}\n")
    return len(cells)


def seconds(*command: str) -> float:
    """Wall-clock time of a command that succeeds."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main(study: str) -> None:
    """Print a table."""
    with tempfile.TemporaryDirectory() as folder:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file() and not name.endswith("dvc.lock"):
                target = Path(folder, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target)
        os.chdir(folder)
        os.environ |= {"PYTHONPATH": folder, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        seconds("git", "init", "--quiet")
        seconds("git", "add", ".")
        seconds("git", "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "--quiet", "-m", "x")
        count = fill(study)
        print(f"{study}: {count} cells")
        recording = seconds("ipdiff", "sync")
        print(f"recording them all: {recording:.1f} s, {1000 * recording / count:.0f} ms a cell")
        for name, command in {
            "dvc status": ("dvc", "status", dvc_files.path_of(study).as_posix()),
            "snakemake -n": ("snakemake", "--cores", "2", "--dry-run", "--quiet", "all", "--", study),
            "ipdiff sync, nothing to do": ("ipdiff", "sync"),
        }.items():
            cold, warm = seconds(*command), seconds(*command)
            print(f"{name}: {cold:.1f} s, again {warm:.1f} s")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "paper")
