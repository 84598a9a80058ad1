"""Every process collects the same tests in the same order: pytest's workers, who share them by number, compare."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

COLLECT = """
import os, sys
import pytest

backwards, listdir, scandir = sys.argv[1] == "backwards", os.listdir, os.scandir

class Scan:
    def __init__(self, *path):
        with scandir(*path) as entries:
            self.entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=backwards))

    def __iter__(self):
        return self.entries

    def __next__(self):
        return next(self.entries)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def close(self):
        pass

os.listdir = lambda *path: sorted(listdir(*path), reverse=backwards)
os.scandir = Scan
raise SystemExit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "tests"]))
"""
"""Directories are listed in an order of our own: a file system may have any."""


def collected(order: str, hash_seed: str) -> list[str]:
    """Node ids of the whole suite, as a process of its own collects them."""
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", COLLECT, order]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_two_collections_are_equal_whatever_the_clock_the_hash_seed_and_the_order_of_files() -> None:
    first = collected("forwards", "1")
    time.sleep(1.1)  # time stamps count in seconds
    second = collected("backwards", "2")
    assert len(first) > 1000
    assert [(one, two) for one, two in zip(first, second, strict=True) if one != two] == []


def test_past_the_hour_the_longest_tests_are_left_out_by_name() -> None:
    path = "tests/workflow/test_paper.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", path, "-m", "slow"]
    environment = {**os.environ, "IPDIFF_TESTS_UNTIL": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"{path}::test_the_miniature_runs_from_archives_to_tables: left out" in done.stdout
