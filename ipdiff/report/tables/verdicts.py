"""What the differences between two models, paired by training seed, say: plain marks, no significance test."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

Verdict = Literal["", "better", "worse", "within spread", "one seed"]


def verdict(differences: Sequence[float], higher: bool | None) -> Verdict:
    """The mean difference held against the spread: the standard deviation (N - 1) of the differences across seeds.

    Args:
        differences: a model minus its baseline, one for each seed; one or more.
        higher: whether more of the metric is better; None where neither is.

    Returns:
        `better` or `worse`: the mean difference is larger than the spread, and on the better side (above 0 where higher
        is better, else below) or on the other. `within spread`: it is not larger. `one seed`: fewer than two seeds, so
        the spread is unknown. Nothing where neither side of the metric is better.
    """
    if higher is None:
        return ""
    if len(differences) < 2:
        return "one seed"
    mean = statistics.fmean(differences)
    if abs(mean) <= statistics.stdev(differences):
        return "within spread"
    return "better" if (mean > 0) is higher else "worse"


def separate(differences: Sequence[float], higher: bool | None) -> Verdict:
    """The stricter rule: every single difference held against the spread. Arguments and words are those of `verdict`.

    `better` or `worse`: in each seed the difference lies on that side, and is larger than the spread. So a model is
    called better only where no seed says otherwise, and where none decides alone.
    """
    found = verdict(differences, higher)
    if found not in ("better", "worse"):
        return found
    spread = statistics.stdev(differences)
    apart = min(differences) > spread or max(differences) < -spread
    return found if apart else "within spread"


SEPARATES = (
    "in each training seed that both have, the difference lies on the same side and is larger than the spread (the "
    "standard deviation of the differences across seeds)"
)
"""The rule of `separate`, in words."""
