"""A study in few numbers. Every number here is SYNTHETIC."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from unit.report_factory import records

from ipdiff.errors import UserError
from ipdiff.report.results import aggregate
from ipdiff.report.tables import entries, summary
from ipdiff.report.tables.entries import Entry

SAMPLERS = ("ancestral-5", "ancestral-10", "ddim0-20")


def values(model: str, sampler: str, *fids: float, step: int = 1000, dataset: str = "digits") -> list[Entry]:
    """FID and sFID of a model, a seed for each number given."""
    (found,) = aggregate(
        one
        for seed, fid in enumerate(fids)
        for one in records(dataset, model, {seed: fid}, sampler=sampler, step=step, sfid=2 * fid, pixel_fd=fid)
    )
    return [entries.value(found, metric, None) for metric in ("pixel_fd", "sfid", "fid")]


def written(folder: Path, *tables: list[Entry]) -> dict[str, dict[str, float]]:
    """The summary of these tables."""
    paths = [folder / f"{number}.csv" for number, _ in enumerate(tables)]
    for path, table in zip(paths, tables, strict=True):
        entries.write_csv(table, path)
    summary.run(paths, folder)
    return json.loads((folder / "summary.json").read_text())


def test_means_by_metric_model_and_sampler_of_the_last_checkpoint(tmp_path: Path) -> None:
    early = values("adm", "ancestral-5", 9.0, step=500)
    found = written(tmp_path, early + values("adm", "ancestral-5", 1.0, 2.0), values("adm-ip", "ancestral-5", 3.0))
    assert found == {
        "fid": {"adm/ancestral-5": 1.5, "adm-ip/ancestral-5": 3.0},
        "sfid": {"adm/ancestral-5": 3.0, "adm-ip/ancestral-5": 6.0},
    }


@pytest.mark.parametrize("turned", [False, True])
def test_of_two_tables_with_a_point_the_one_with_more_seeds_counts(tmp_path: Path, turned: bool) -> None:
    tables = [values("adm", "ancestral-5", 1.0, 2.0), values("adm", "ancestral-5", 1.0)]
    assert written(tmp_path, *(reversed(tables) if turned else tables))["fid"] == {"adm/ancestral-5": 1.5}


def test_data_sets_are_named_where_there_are_several(tmp_path: Path) -> None:
    found = written(tmp_path, values("adm", "ancestral-5", 1.0), values("adm", "ancestral-5", 2.0, dataset="photos"))
    assert found["fid"] == {"digits/adm/ancestral-5": 1.0, "photos/adm/ancestral-5": 2.0}


def test_what_most_models_have_comes_first_and_never_too_much(tmp_path: Path) -> None:
    many = [one for model in range(14) for one in values(f"adm-{model}", "ancestral-10", 1.0)]
    few = [one for sampler in SAMPLERS for one in values("adm-0", sampler, 2.0)]
    found = written(tmp_path, few, many)
    assert sum(map(len, found.values())) == summary.MOST
    assert {name for name in found["fid"] if name.endswith("ancestral-10")} == {
        f"adm-{model}/ancestral-10" for model in range(14)
    }


def test_models_that_have_no_room_together_are_cut_off(tmp_path: Path) -> None:
    found = written(tmp_path, [one for model in range(40) for one in values(f"adm-{model}", "ancestral-10", 1.0)])
    assert sum(map(len, found.values())) == summary.MOST


def test_differences_are_left_out_and_no_table_is_no_error(tmp_path: Path) -> None:
    base, other = (aggregate(records("digits", model, {0: 1.0}))[0] for model in ("adm", "adm-ip"))
    assert written(tmp_path, [entries.difference(other, base, "fid", None)]) == {}
    (tmp_path / "0.csv").write_text("no,table\n1,2\n")
    with pytest.raises(UserError, match="expected a table's csv"):
        summary.run([tmp_path / "0.csv"], tmp_path)
