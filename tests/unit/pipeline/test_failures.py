"""Failures that later attempts of a job obey."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ipdiff.errors import IntegrityError, Preempted, Unavailable, UserError
from ipdiff.pipeline import grid
from ipdiff.pipeline.engines import failures

ROOT = Path(__file__).parents[3]
BAD = [UserError("no such thing"), IntegrityError("x", "1", "2")]


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., failures.Failure | None]:
    """Attempt a cell of the mini study; returns the failure that is obeyed, or fails with `error`."""
    known = grid.load(ROOT)
    monkeypatch.chdir(tmp_path)

    def attempted(number: int | None, error: Exception | None = None, model: str = "adm") -> failures.Failure | None:
        if number is None:
            monkeypatch.delenv(failures.ATTEMPT, raising=False)
        else:
            monkeypatch.setenv(failures.ATTEMPT, str(number))
        cell = known.cell("train", dataset="digits_mini", model=model, seed="0", step="4")
        with failures.remembered(cell, known) as found:
            if found is None and error is not None:
                raise error
        return found

    return attempted


@pytest.mark.parametrize("error", BAD)
def test_a_failure_for_good_is_obeyed_until_a_first_attempt(attempt: Callable, error: Exception) -> None:
    with pytest.raises(type(error)):
        attempt(1, error)
    found = attempt(2)
    assert found.code == (2 if isinstance(error, UserError) else 3)
    assert str(found).startswith(str(error))
    assert "\n" not in str(found)
    assert attempt(3, error) == found
    assert attempt(2, model="adm-ip") is None
    assert attempt(1) is None
    assert attempt(2) is None


@pytest.mark.parametrize("error", [Preempted("later"), Unavailable("no network"), OSError(28, "full"), MemoryError()])
def test_what_a_retry_may_mend_is_tried_again(attempt: Callable, error: Exception) -> None:
    with pytest.raises(type(error)):
        attempt(1, error)
    assert attempt(2) is None


def test_other_parameters_are_tried(attempt: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError):
        attempt(1, BAD[0])
    monkeypatch.setattr(grid.Grid, "param_values", lambda self, cell: {"lr": 7})
    assert attempt(2) is None


def test_outside_of_snakemake_nothing_is_remembered_or_obeyed(attempt: Callable) -> None:
    with pytest.raises(UserError):
        attempt(None, BAD[0])
    assert not failures.FOLDER.exists()
    with pytest.raises(UserError):
        attempt(1, BAD[0])
    assert attempt(None) is None


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"code": 2, "said": "x", "key": "other"}'])
def test_a_torn_note_is_none(attempt: Callable, content: str) -> None:
    with pytest.raises(UserError):
        attempt(1, BAD[0])
    (note,) = failures.FOLDER.iterdir()
    note.write_text(content)
    assert attempt(2) is None


def test_processes_that_share_the_work_do_not_forget_for_each_other(
    attempt: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPDIFF_RENDEZVOUS", "somewhere")
    with pytest.raises(UserError):
        attempt(1, BAD[0])
    assert attempt(1) is None
    monkeypatch.delenv("IPDIFF_RENDEZVOUS")
    assert attempt(2) is not None
