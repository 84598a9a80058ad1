"""What holds for every test."""

from __future__ import annotations

import os
import time

import hypothesis
import pytest

# an example may take long on a busy machine
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.register_profile("searching", deadline=None)
hypothesis.settings.load_profile("same")
"""The same examples each time: no test fails by chance. `pytest --hypothesis-profile searching` looks for new ones."""

os.environ["IPDIFF_CACHE"] = ""  # no test reads or fills the user's own
os.environ["IPDIFF_QUIET"] = "1"  # what a stage says when it takes long is not said by chance, where a machine is busy


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Bytes have their parameter's name: a gzip file's would differ from one collection to the next."""
    return argname if isinstance(val, bytes | bytearray) else None


LONGEST = (
    "tests/workflow/test_raw_folder.py",
    "tests/workflow/test_repair.py",
    "tests/workflow/test_dvc_views.py",
    "tests/workflow/test_documented_commands.py",
    "tests/workflow/test_paper.py",
    "tests/workflow/test_slurm.py",
)
"""Where slow tests take minutes each, the longest last. They come after all others; past `$IPDIFF_TESTS_UNTIL` (seconds
since 1970; `.ci/run` sets it) those that are left are left out, each by its name."""


def _turn(item: pytest.Item) -> int:
    """When a test's turn comes; 0 if it is not one of the longest."""
    if item.get_closest_marker("slow") is None:
        return 0
    return next((turn for turn, start in enumerate(LONGEST, 1) if item.nodeid.startswith(start)), 0)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests come last."""
    items.sort(key=_turn)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Where the time is up, the longest tests are left out."""
    until = os.environ.get("IPDIFF_TESTS_UNTIL")
    if until and _turn(item) and time.time() > float(until):
        pytest.skip(f"{item.nodeid}: left out, the time for slow tests is up")
