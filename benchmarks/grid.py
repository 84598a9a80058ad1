"""What the two engines cost on a large study: `python benchmarks/grid.py [STUDY]` or `--growth`.

A copy of the project is filled with stand-ins: every cell of the study has its files (a few bytes each) and true
recipes. Then recording, `dvc status` and `snakemake -n` are timed. Nothing is computed. With `--growth` nothing is
filled: the paper's study is given 1, 4, 10 and 20 seeds, and CPU time and memory of what reads the grid are printed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from ipdiff.pipeline import config, grid
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


SEEDS = (1, 4, 10, 20)
"""Of every model, in a study that grows."""
READERS = {
    "ipdiff grid": ("ipdiff", "grid", "--study", "paper"),
    "ipdiff plan": ("ipdiff", "plan", "paper", "--device", "h100"),
    "snakemake -n": ("snakemake", "--cores", "2", "--dry-run", "--quiet", "all", "--", "paper"),
}
"""What reads every cell of a study of which nothing is made."""


def used(*command: str) -> tuple[float, float, str]:
    """CPU seconds and peak GiB of a command that succeeds, and what it prints."""
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
        out.seek(0)
        return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20, out.read()


def growth() -> None:
    """Print how CPU time and memory grow with the cells of a study."""
    path = config.path_of("paper")
    with project():
        text = path.read_text()
        for seeds in SEEDS:
            data = yaml.safe_load(text)
            data["seeds"] = {"default": list(range(seeds))}
            path.write_text(yaml.safe_dump(data, sort_keys=False))
            count = len(used(*READERS["ipdiff grid"])[2].splitlines())
            for name, command in READERS.items():
                cpu, memory, _ = used(*command)
                each = f"{1000 * cpu / count:5.2f} ms a cell"
                print(f"{count:6} cells: {name:13} {cpu:6.2f} s of CPU, {each}, {memory:.2f} GiB")


@contextmanager
def project() -> Iterator[None]:
    """A copy of the project as the present directory, committed, with the copy's own package."""
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
        yield


def main(study: str) -> None:
    """Print a table."""
    with project():
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
    growth() if sys.argv[1:] == ["--growth"] else main(sys.argv[1] if len(sys.argv) > 1 else "paper")
