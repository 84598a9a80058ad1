"""The watch on training: when an FID rises, the figure and the report's line. Every number here is SYNTHETIC."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.report_factory import recipes, write

from ipdiff.report.figures import figure, monitor
from ipdiff.report.pages import report
from ipdiff.report.spec import Figure, Study
from ipdiff.report.tables import entries

WATCH = Figure("monitor", "A watch", ["digits"], ["adm"], ["ancestral-20-n5000"])
FIDS = st.dictionaries(st.integers(1, 10**6), st.integers(0, 9).map(float), max_size=12)


@pytest.mark.parametrize(
    ("fids", "found"),
    [
        ([], []),
        ([3, 4, 5], []),
        ([3, 4, 5, 6], [[1, 2, 3, 4]]),
        ([9, 3.66, 10.61, 12, 17.17], [[2, 3, 4, 5]]),
        ([3, 4, 5, 5, 6], []),
        ([1, 2, 3, 4, 5, 0, 1, 2, 3], [[1, 2, 3, 4, 5], [6, 7, 8, 9]]),
    ],
)
def test_three_rises_in_a_row_are_seen(fids: list[float], found: list[list[int]]) -> None:
    assert monitor.rises(dict(enumerate(fids, 1))) == found


@given(FIDS)
def test_a_stretch_rises_throughout_and_no_further(fids: dict[int, float]) -> None:
    steps, found = sorted(fids), monitor.rises(fids)
    inside = {pair for stretch in found for pair in pairwise(stretch)}
    for stretch in found:
        assert len(stretch) > monitor.RISES
        assert all(fids[a] < fids[b] for a, b in pairwise(stretch))
    for run in zip(*(steps[n:] for n in range(monitor.RISES + 1)), strict=False):
        if all(fids[a] < fids[b] for a, b in pairwise(run)):
            assert set(pairwise(run)) <= inside


def measured(folder: Path, fids: dict[int, dict[int, float]]) -> list[Path]:
    """Metrics of every seed and step."""
    return [
        write(folder / f"{seed}-{step}.json", step=step, seed=seed, fid=fid, sampler="ancestral-20-n5000", n=5000)
        for seed, steps in fids.items()
        for step, fid in steps.items()
    ]


def made(steps: Iterable[int]) -> list[dict[str, Any]]:
    """Recipes of those and of all they were made from."""
    texts = [json.dumps(recipes("adm", "ancestral-20-n5000", seed)) for seed in (0, 1)]
    return [recipe for text in texts for step in steps for recipe in json.loads(text.replace("/1000", f"/{step}"))]


def test_the_figure_shows_every_checkpoint_and_the_report_says_what_rises(tmp_path: Path) -> None:
    falls = {1000: 9.0, 2000: 7.0, 3000: 5.0, 4000: 4.0}
    rises = {1000: 3.66, 2000: 4.0, 3000: 10.61, 4000: 17.17}
    figure.run("watch", WATCH, measured(tmp_path / "m", {0: falls, 1: rises}), tmp_path / "watch")
    found = entries.read_csv(tmp_path / "watch/figure.csv")
    assert [one.step for one in found] == [1000, 2000, 3000, 4000]
    assert monitor.lines(found) == [
        "digits, ADM, seed 1: FID rises over 3 checkpoints in a row, from step 1,000 to 4,000 "
        "(3.66, 4.00, 10.61, 17.17); more training may make it worse"
    ]
    study = Study("A study", {"digits": None}, {"default": [0, 1]}, {}, {"watch": WATCH})
    report.run("s", study, {}, {"watch": tmp_path / "watch"}, made(falls), tmp_path / "page")
    page = (tmp_path / "page/index.html").read_text()
    assert page.count("FID rises over 3 checkpoints in a row") == 1
    assert "seed 1: FID rises" in page


def test_what_does_not_rise_is_not_spoken_of(tmp_path: Path) -> None:
    steps = {1000: 9.0, 2000: 7.0, 3000: 7.5, 4000: 8.0}
    figure.run("watch", WATCH, measured(tmp_path / "m", {0: steps}), tmp_path / "watch")
    assert monitor.lines(entries.read_csv(tmp_path / "watch/figure.csv")) == []
