"""Numbers of a revision and of now. Every number here is SYNTHETIC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ipdiff.report.pages import against

WORDS = {
    "features": "classifier",
    "features_digest": "a" * 32,
    "n": 100,
    "reference_n": 50,
    "reference_digest": "b" * 32,
}


def at(model: str) -> str:
    return f"metrics/digits/{model}/s0/8/ancestral-5"


def cell(fid: float, **changes: Any) -> dict[str, Any]:
    return {**WORDS, "fid": fid, **changes}


def test_each_number_is_of_one_kind_and_has_its_difference() -> None:
    then = {at("adm"): cell(3.0), at("adm-ip"): cell(2.0, sfid=1.0), at("gone"): cell(1.0)}
    now = {at("adm-ip"): cell(1.5), at("adm"): cell(3.0, pixel_fd=0.5), at("new"): cell(9.0)}
    found = [(one.place.model, one.metric, one.kind, one.difference) for one in against.changes(then, now)]
    assert found == [
        ("adm-ip", "fid", "changed", -0.5),
        ("adm-ip", "sfid", "only then", None),
        ("adm", "fid", "unchanged", 0.0),
        ("adm", "pixel_fd", "only now", None),
        ("new", "fid", "only now", None),
        ("gone", "fid", "only then", None),
    ]


@pytest.mark.parametrize("key", WORDS)
def test_numbers_that_were_measured_in_different_ways_have_no_difference(key: str) -> None:
    other = 7 if isinstance(WORDS[key], int) else "c" * 32
    fid, pixels = against.changes(
        {at("adm"): cell(3.0, pixel_fd=1.0)}, {at("adm"): cell(2.0, pixel_fd=2.0, **{key: other})}
    )
    assert (fid.kind, fid.difference) == ("measured in another way", None)
    assert key.replace("_", " ") in fid.measured
    assert pixels.difference == (1.0 if key.startswith("features") else None)  # no network has a part in it


def test_what_a_side_does_not_say_hinders_no_difference() -> None:
    (one,) = against.changes({at("adm"): {"fid": 3.0}}, {at("adm"): cell(2.0)})
    assert one.difference == -1.0


def test_the_page_and_its_lines_say_what_changed(tmp_path: Path) -> None:
    then = {at("adm"): cell(3.0), at("adm-ip"): cell(2.0), at("same"): cell(1.0)}
    now = {at("adm"): cell(2.0), at("adm-ip"): cell(4.5), at("same"): cell(1.0)}
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        lines = against.run("T <i>", "v1 <b>", then, now, 2, tmp_path / folder)
    assert lines[0] == "2 of 3 numbers differ from v1 <b>; 0 only now, 0 only there, 0 measured in another way"
    assert lines[1] == f"FID: 2 differ, 1 of them lower; most: 2 to 4.5 ({at('adm-ip')})"
    assert "2 evaluations" in lines[2]
    text = (tmp_path / "a/against.html").read_text()
    assert text == (tmp_path / "b/against.html").read_text()
    assert "<b>:" not in text.replace("</b>:", "")
    for part in ("T &lt;i&gt;", "v1 &lt;b&gt;", "+2.5", "\N{MINUS SIGN}1", "<b>changed</b>: 2", "<b>unchanged</b>: 1"):
        assert part in text
