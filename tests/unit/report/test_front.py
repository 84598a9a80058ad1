"""The first screen of a report. Every number and image here is SYNTHETIC."""

from __future__ import annotations

import dataclasses
import io
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from unit.report_factory import records

from ipdiff.report.figures import figure
from ipdiff.report.pages import answer, front
from ipdiff.report.spec import Figure, Study, Table
from ipdiff.report.tables import table

BASES = {"adm-ip": "adm"}
OVER_STEPS = Figure("lines", "FID", ["digits"], ["adm", "adm-ip"], ["ancestral-5", "ancestral-50"])
GRID = Figure("samples", "Images", ["digits"], ["adm-ip", "adm"], ["ancestral-5"], images=3)


def study(**figures: Figure) -> Study:
    return Study("S", ["digits"], {"default": [0]}, {}, figures)


@pytest.mark.parametrize(
    ("changes", "leads"),
    [
        ({}, True),
        ({"models": ["adm"]}, False),
        ({"models": ["adm-ip", "ddim"]}, False),
        ({"x": "step"}, False),
        ({"samplers": ["ancestral-5"]}, False),
        ({"metric": "pixel_fd"}, False),
        ({"metric": "sfid"}, True),
    ],
)
def test_a_figure_leads_that_shows_with_and_without_over_steps(changes: dict[str, object], leads: bool) -> None:
    shown = dataclasses.replace(OVER_STEPS, **changes)  # pyright: ignore[reportArgumentType]
    assert front.leading(study(one=shown), BASES) == ["one"] * leads


def test_fid_over_sampling_steps_leads_before_others_and_images_follow() -> None:
    sfid, calls = (dataclasses.replace(OVER_STEPS, **one) for one in ({"metric": "sfid"}, {"x": "nfe"}))
    asked = study(images=GRID, sfid=sfid, calls=calls, fid=OVER_STEPS, again=OVER_STEPS)
    assert front.leading(asked, BASES) == ["fid", "images"]
    assert front.leading(asked, {}) == ["images"]


def drawn(folder: Path, points: list[tuple[str, int, str]]) -> Path:
    """A figure of images, of (model, seed, sampler); the first pixel of each set says which it is."""
    files: list[Path] = []
    for place, (model, seed, sampler) in enumerate(points):
        files.append(folder / f"samples/digits/{model}/s{seed}/8/{sampler}/samples.npz")
        files[-1].parent.mkdir(parents=True)
        np.savez(files[-1], arr_0=np.full((3, 8, 8, 1), place, np.uint8))
    figure.run("f", GRID, files, folder / "f")
    return folder / "f"


def shade(block: front.Block) -> int:
    """The first pixel of a block's PNG."""
    with Image.open(io.BytesIO(b64decode(block.base64))) as image:
        assert image.size == block.pixels == (17, 17)  # 2 x 2 places for 3 images
        pixels = np.asarray(image)
    assert pixels[8, 8].tolist() == pixels[9, 9].tolist() == [0, 0, 0, 0]  # between them, and where there is none
    return int(pixels[0, 0, 0])


def test_images_without_stand_left_of_those_with_at_each_choice(tmp_path: Path) -> None:
    points = [
        (model, seed, s) for model in ("adm-ip", "adm") for s in ("ancestral-5", "ancestral-20") for seed in (0, 1)
    ]
    points.remove(("adm", 1, "ancestral-20"))
    found = front.strips(drawn(tmp_path, points), {"adm-ip": "ours"}, BASES)
    assert found.options == {"sampler": ["T' = 5", "T' = 20"], "training seed": ["training seed 0", "training seed 1"]}
    shown = {panel.choice: [(b.model, b.perturbed, points[shade(b)]) for b in panel.blocks] for panel in found.panels}
    for at, (sampler, seed) in {
        "0 0": ("ancestral-5", 0),
        "0 1": ("ancestral-5", 1),
        "1 0": ("ancestral-20", 0),
    }.items():
        assert shown[at] == [("ADM", False, ("adm", seed, sampler)), ("ours", True, ("adm-ip", seed, sampler))]
    assert [model for model, _, _ in shown["1 1"]] == ["ours"]
    assert found.panels[0].text == "T' = 5, training seed 0"


def test_what_does_not_differ_is_not_chosen(tmp_path: Path) -> None:
    found = front.strips(drawn(tmp_path, [("adm", 0, "ancestral-5"), ("ddim", 0, "ancestral-5")]), {}, BASES)
    assert found.options == {}
    assert [(panel.choice, panel.text) for panel in found.panels] == [("", "T' = 5")]
    assert [block.perturbed for block in found.panels[0].blocks] == [False, None]


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        (1, "5.00 and 6.00 at T' = 5; 2.00 and 1.00 at T' = 50 (one training seed; lower is better)."),
        (2, "5.50 ± 0.71 and 6.50 ± 0.71 at T' = 5; 2.50 ± 0.71 and 1.50 ± 0.71 at T' = 50 "
            "(mean ± standard deviation over 2 training seeds; lower is better)."),
    ],
)  # fmt: skip
def test_the_result_in_numbers_is_of_both_ends_whichever_side_wins(seeds: int, said: str) -> None:
    """FID, though sFID is said first; the ends of T', though the middle is best for input perturbation."""
    fids = {"adm": (6.0, 9.0, 1.0), "adm-ip": (5.0, 0.5, 2.0)}
    samplers = ["ancestral-50", "ancestral-5", "ancestral-10"]
    found = [
        dataclasses.replace(one, gamma=(0.1,) if model == "adm-ip" else (0.0,))
        for model, values in fids.items()
        for sampler, fid in zip(("ancestral-5", "ancestral-10", "ancestral-50"), values, strict=True)
        for one in records("digits", model, {seed: fid + seed for seed in range(seeds)}, sampler=sampler, sfid=1.0)
    ]
    asked = Table("t", ["sfid", "fid"], ["sampler"], ["model"], ["digits"], list(fids), samplers)
    (told,) = answer.answers([table.frame(asked, table.build(asked, found))], BASES, {"adm": "ADM"})
    assert " ".join(told.numbers.split()) == (f"FID with input perturbation (gamma 0.1) and without: {said}")
