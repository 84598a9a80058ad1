"""Receipts, and what two machines do not have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipdiff.pipeline.store import receipts

ONE = {
    "recipe": "a",
    "stage": "train",
    "seconds": 1.5,
    "cpu": "X",
    "instructions": ["avx2", "fma"],
    "versions": {"torch": "2.13"},
}


def test_a_receipt_says_what_made_the_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    receipts.write(Path("runs/x/8"), recipe="0" * 32, stage="train", seconds=1.23456)
    found = receipts.read("runs/x/8")
    assert found is not None
    assert (found["recipe"], found["stage"], found["seconds"]) == ("0" * 32, "train", 1.235)
    assert found["versions"]["torch"]
    assert receipts.differences([found], [found]) == []
    assert receipts.read("runs/x/9") is None
    receipts.path_of("runs/x/8").write_text("[")
    assert receipts.read("runs/x/8") is None


def test_a_receipt_names_the_settings_that_choose_other_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)  # a machine may have it
    before = receipts.machine()
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    after = receipts.machine()
    assert set(after["settings"]) - set(before["settings"]) == {"OPENBLAS_CORETYPE=Haswell"}
    settings = receipts.differences([{**ONE, **after}], [{**ONE, **after, "settings": []}])[0]
    assert "OPENBLAS_CORETYPE=Haswell" in settings
    assert settings.endswith("here, none there")


def test_time_is_no_difference_of_machines() -> None:
    assert receipts.differences([ONE], [{**ONE, "seconds": 9, "recipe": "b"}]) == []


def test_differences_name_both_sides() -> None:
    other = {**ONE, "cpu": "Y", "instructions": ["avx2"], "versions": {"torch": "2.11", "dvc": "3"}}
    assert receipts.differences([ONE], [other, ONE]) == [
        "cpu: X here, X and Y there",
        "dvc: unknown here, 3 there",
        "instructions: avx2 fma here, avx2 and avx2 fma there",
        "torch: 2.13 here, 2.11 and 2.13 there",
    ]
