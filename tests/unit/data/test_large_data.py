"""A data set larger than the memory that preparing it may take."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "prepare_memory.py"


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["imagenet32", "lsun"])
def test_memory_does_not_grow_with_the_data(tmp_path, reader):
    command = [sys.executable, str(SCRIPT), reader, "--gib", "1.1", "--directory", str(tmp_path)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found["archive_gib"] >= 1.1
    assert found["peak_resident_mib"] < 400
    assert list(tmp_path.iterdir()) == []
