"""A watch on training: whether the FID of a run's checkpoints rises.

Runs of this recipe that went from an FID of 3.66 to 17.17 are reported (DDPM-IP issues 21 and 25).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ipdiff.report import labels
from ipdiff.report.results import grouped
from ipdiff.report.tables.entries import Entry

RISES = 3
"""As many in a row are said."""


def rises(fids: Mapping[int, float]) -> list[list[int]]:
    """Stretches of a run's checkpoints over which the FID rises `RISES` times in a row or more.

    Args:
        fids: training step -> FID, in any order.

    Returns:
        The training steps of each stretch, ascending; the first of a stretch is the one before the first rise.
    """
    found: list[list[int]] = []
    stretch: list[int] = []
    for step in sorted(fids):
        if stretch and not fids[step] > fids[stretch[-1]]:
            found.append(stretch)
            stretch = []
        stretch.append(step)
    return [one for one in (*found, stretch) if len(one) > RISES]


def line(run: str, fids: Mapping[int, float], stretch: list[int]) -> str:
    """A sentence about a stretch of `rises`, of a run that is called so."""
    values = ", ".join(f"{fids[step]:.2f}" for step in stretch)
    return (
        f"{run}: FID rises over {len(stretch) - 1} checkpoints in a row, from step {stretch[0]:,} to {stretch[-1]:,} "
        f"({values}); more training may make it worse"
    )


def lines(entries: Iterable[Entry]) -> list[str]:
    """A sentence about each stretch in a figure of kind monitor, seed by seed."""
    found: list[str] = []
    for (dataset, model, _), points in grouped(entries, lambda one: (one.dataset, one.model, one.sampler)).items():
        for seed in sorted({seed for one in points for seed in one.seeds}):
            fids = {one.step: dict(zip(one.seeds, one.values, strict=True)).get(seed) for one in points}
            known = {step: fid for step, fid in fids.items() if fid is not None}
            run = f"{labels.dataset(dataset)}, {labels.model(model)}, seed {seed}"
            found += [line(run, known, stretch) for stretch in rises(known)]
    return found
