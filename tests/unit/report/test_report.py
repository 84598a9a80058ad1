"""Tables: aggregation, comparison, the paper's values, layout and renderers. Every number here is SYNTHETIC."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.report_factory import MADE, cifar, record, records, write

from ipdiff.errors import UserError
from ipdiff.report import labels, paper, results
from ipdiff.report.spec import Point, Table
from ipdiff.report.tables import entries, layout, notes, render, table, verdicts
from ipdiff.sample_sets.spec import Sampler

PAPER = paper.values()


def product(**changes: object) -> Table:
    """A synthetic table of ADM and ADM-IP at T' = 100 on digits."""
    base = Table(
        "Synthetic",
        ["fid"],
        ["model"],
        ["sampler"],
        ["digits"],
        ["adm", "adm-ip"],
        ["ancestral-100"],
        compare={"adm-ip": "adm"},
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def build(view: Table, *groups: list[results.Result]) -> table.Frame:
    return table.frame(view, table.build(view, [item for group in groups for item in group]))


def only(frame: table.Frame, kind: str = "difference") -> entries.Entry:
    (found,) = [entry for entry in frame.entries if entry.kind == kind]
    return found


# Results ------------------------------------------------------------------------------------------------------


def test_aggregation_is_the_mean_and_the_sample_deviation() -> None:
    (cell,) = results.aggregate(records("digits", "adm", {2: 4.0, 0: 1.0, 1: 4.0}))
    assert cell.seeds == (0, 1, 2)
    assert cell.values("fid") == {0: 1.0, 1: 4.0, 2: 4.0}
    entry = entries.value(cell, "fid", None)
    assert (entry.values, entry.mean, entry.sd) == ((1.0, 4.0, 4.0), 3.0, math.sqrt(3.0))


def test_one_seed_has_no_deviation() -> None:
    (cell,) = results.aggregate(records("digits", "adm", {7: 2.5}))
    entry = entries.value(cell, "fid", None)
    assert (entry.mean, entry.sd) == (2.5, None)


def test_a_seed_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="one seed twice"):
        results.aggregate([record(), record()])


@pytest.mark.parametrize(
    "change",
    [
        {"n": 999},
        {"features": "inception"},
        {"features_digest": "md5:other"},
        {"reference_n": 5},
        {"reference_digest": "md5:other"},
    ],
)
def test_seeds_measured_in_different_ways_are_never_averaged(change: dict[str, object]) -> None:
    with pytest.raises(UserError, match="no common mean"):
        results.aggregate([record(seed=0), record(seed=1, **change)])


def test_load_reads_a_metrics_file(tmp_path: Path) -> None:
    (found,) = results.load([write(tmp_path / "m.json", fid=2, sfid=None)])
    assert (found.seeds, found.metrics) == ((0,), {"fid": (2.0,)})
    assert (found.dataset, found.model, found.step, found.sampler) == ("digits", "adm", 1000, "ancestral-100")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fid": "3"}, "fid is '3'; a table needs finite numbers"),
        ({"fid": True}, "fid is True"),
        ({"fid": 10**400}, "fid is 1000"),
        ({"nfe": None}, "key 'nfe' is missing"),
        ({"seed": True}, "'seed' is True, expected int"),
        ({"fid": None}, "none of fid, sfid, pixel_fd"),
        ({"sampler": "magic-3"}, "sampler 'magic-3' is unknown"),
        ({"fid": float("nan")}, "fid is nan"),
        ({"n": 10.5}, "'n' is 10.5, expected int"),
    ],
)
def test_a_malformed_file_is_named_in_one_line(tmp_path: Path, change: dict[str, object], said: str) -> None:
    path = write(tmp_path / "m.json", **change)
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        results.load([path])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"fid": 1}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(UserError, match=r"m\.json"):
        results.load([tmp_path / "m.json"])


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a metrics file"):
        results.load([tmp_path / "absent.json"])


def verdict(differences: list[float], metric: str = "fid") -> str:
    (cell,) = results.aggregate([record(**{metric: 1.0})])
    return dataclasses.replace(entries.value(cell, metric, None), baseline="adm", values=tuple(differences)).verdict


# Comparison ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ([-2.0, -4.0], "better"),  # mean -3, sd sqrt 2
        ([2.0, 4.0], "worse"),
        ([0.0, 2.0], "within spread"),  # mean 1 < sd sqrt 2
        ([-1.0, 0.0, 1.0], "within spread"),
        ([0.0, 0.0], "within spread"),  # no difference at all
        ([-1.0, -1.0], "better"),  # sd 0
        ([-5.0], "one seed"),
        ([1.0, 2.0, 0.0], "within spread"),  # |mean| = sd = 1 exactly: not larger
    ],
)
def test_verdict(differences: list[float], said: str) -> None:
    assert verdict(differences) == said


def test_differences_are_paired_by_common_seeds() -> None:
    adm = records("digits", "adm", {0: 5.0, 1: 7.0, 2: 100.0})
    frame = build(product(), adm, records("digits", "adm-ip", {1: 6.0, 0: 4.5, 3: -100.0}))
    found = only(frame)
    assert (found.model, found.baseline) == ("adm-ip", "adm")
    assert found.seeds == (0, 1)
    assert found.values == (-0.5, -1.0)
    assert found.mean == -0.75
    assert found.sd == pytest.approx(math.sqrt(0.125))
    assert found.verdict == "better"


def test_pairing_uses_the_seed_and_not_the_order() -> None:
    """Unpaired, these two overlap widely; paired, every seed improves by exactly 1."""
    frame = build(
        product(),
        records("digits", "adm", {0: 10.0, 1: 20.0, 2: 30.0}),
        records("digits", "adm-ip", {2: 29.0, 1: 19.0, 0: 9.0}),
    )
    assert (only(frame).mean, only(frame).sd, only(frame).verdict) == (-1.0, 0.0, "better")


def test_one_common_seed_gives_no_verdict_and_none_an_error() -> None:
    adm = records("digits", "adm", {0: 5.0, 1: 7.0})
    assert only(build(product(), adm, records("digits", "adm-ip", {1: 6.0}))).verdict == "one seed"
    with pytest.raises(UserError, match="common seed"):
        build(product(), adm, records("digits", "adm-ip", {4: 6.0}))


def test_compare_refuses_other_protocols() -> None:
    adm, ours = records("digits", "adm", {0: 5.0}), records("digits", "adm-ip", {0: 4.0}, n=77)
    with pytest.raises(UserError, match="only figures of one kind"):
        build(product(), adm, ours)


# Cells --------------------------------------------------------------------------------------------------------


def test_a_requested_cell_without_record_is_named() -> None:
    with pytest.raises(UserError, match="no record of digits adm-ip ancestral-100"):
        build(product(), records("digits", "adm", {0: 5.0}))
    with pytest.raises(UserError, match="adm ancestral-100 step 2000"):
        build(product(steps=[2000]), records("digits", "adm", {0: 5.0}))
    with pytest.raises(UserError, match="no sfid was measured"):
        build(product(metrics=["sfid"], models=["adm"], compare={}), records("digits", "adm", {0: 5.0}))


def test_an_ambiguous_step_is_refused() -> None:
    two = [record(), record(step=2000)]
    with pytest.raises(UserError, match=r"steps \[1000, 2000\]"):
        build(product(models=["adm"], compare={}), two)


def test_axes_must_tell_cells_apart() -> None:
    with pytest.raises(ValueError, match="add model to one"):
        product(rows=["dataset"])
    with pytest.raises(ValueError, match="an axis stands twice"):
        product(columns=["model"])
    with pytest.raises(ValueError, match="no cell"):
        product(datasets=[])
    twice = Point("digits", "adm", "ancestral-100", 1000)
    with pytest.raises(UserError, match="two cells fall on row"):
        build(Table("Synthetic", ["fid"], [], [], points=[twice, twice]), records("digits", "adm", {0: 5.0}))


# Layout -------------------------------------------------------------------------------------------------------


def test_a_scaled_sampler_is_named_in_rows_and_calls_that_are_not_t_are_said() -> None:
    names = ["ancestral-5", "ancestral-5-es1.05", "ddim0-quad20"]
    view = product(models=["adm"], samplers=names, rows=["sampler"], columns=["metric"], compare={})
    frame = build(view, [record(sampler=name, nfe=18 if "quad" in name else 5) for name in names])
    (panel,) = frame.panels
    assert [row.labels for row in panel.rows] == [
        ("T' = 5",), ("T' = 5, eps / 1.05",), ("eta = 0, T' = 20 (quad)",)
    ]  # fmt: skip
    assert "Network calls an image (NFE): eta = 0, T' = 20 (quad): 18." in frame.notes


def test_a_method_and_its_steps_may_stand_on_two_axes() -> None:
    names = [
        f"{method}-{steps}{scale}" for method in ("ancestral", "unipc") for steps in (5, 10) for scale in ("", "-es1.1")
    ]
    view = product(models=["adm"], samplers=names, rows=["method"], columns=["sample_steps"], compare={})
    (panel,) = build(view, [record(sampler=name, nfe=5) for name in names]).panels
    assert panel.columns == (("T' = 5",), ("T' = 10",))
    assert [row.labels[0] for row in panel.rows] == [
        "ancestral",
        "ancestral, eps / 1.1",
        "UniPC-2",
        "UniPC-2, eps / 1.1",
    ]
    with pytest.raises(ValueError, match="method alone tells no samplers apart; add sample_steps"):
        product(models=["adm"], samplers=names, rows=["method"], columns=["metric"], compare={})


def test_columns_of_one_protocol_stay_in_one_panel() -> None:
    view = product(datasets=["digits", "fashion_mnist"], columns=["dataset", "metric"], compare={})
    frame = build(
        view,
        *(records(d, m, {0: 5.0}, n=n) for d, n in (("digits", 10), ("fashion_mnist", 20)) for m in ("adm", "adm-ip")),
    )
    (panel,) = frame.panels
    assert panel.columns == (("digits", "FID"), ("Fashion-MNIST", "FID"))


@pytest.mark.parametrize("change", [{"n": 20}, {"features": "inception"}, {"features_digest": "md5:else"}])
def test_a_column_never_mixes_protocols(change: dict[str, object]) -> None:
    view = product(
        datasets=["digits", "fashion_mnist"],
        rows=["dataset", "model"],
        columns=["metric"],
        compare={},
        metrics=["fid", "pixel_fd"],
    )
    frame = build(
        view,
        *(
            records(d, m, {0: 5.0}, pixel_fd=1.0, **(change if d == "fashion_mnist" else {}))
            for d in ("digits", "fashion_mnist")
            for m in ("adm", "adm-ip")
        ),
    )
    assert [[row.labels[0] for row in panel.rows] for panel in frame.panels] == [["digits"] * 2, ["Fashion-MNIST"] * 2]
    assert frame.panels[0].caption != frame.panels[1].caption
    assert "raw pixels" in frame.panels[0].caption


def test_pixel_distance_names_no_network() -> None:
    frame = build(product(metrics=["pixel_fd"], models=["adm"], compare={}), [record(pixel_fd=0.5)])
    assert (frame.entries[0].features, frame.entries[0].features_digest) == ("pixels", "")


def test_points_are_one_row_each_with_differences_after() -> None:
    view = Table(
        "Synthetic",
        ["fid"],
        [],
        [],
        compare={"adm-ip": "adm"},
        points=[Point("digits", "adm", "ancestral-1000", 1000), Point("digits", "adm-ip", "ancestral-100", 800)],
    )
    frame = build(
        view,
        records("digits", "adm", {0: 5.0, 1: 6.0}, sampler="ancestral-1000"),
        records("digits", "adm-ip", {0: 4.0, 1: 5.0}, step=800),
    )
    (panel,) = frame.panels
    assert panel.stubs == ("data set", "model", "training steps", "T'")
    assert [row.labels for row in panel.rows] == [
        ("digits", "ADM", "1,000", "1000"),
        ("digits", "ADM-IP", "800", "100"),
        ("digits", "ADM-IP \u2212 ADM", "800 vs 1,000", "100 vs 1000"),
    ]
    assert not only(frame).same_sampler


def test_a_header_has_a_line_for_each_axis_of_the_columns() -> None:
    view = product(metrics=["fid", "sfid"], rows=["sampler"], columns=["dataset", "model", "metric"])
    found = [record(model=model, fid=3.0, sfid=2.0) for model in ("adm", "adm-ip")]
    (panel,) = build(dataclasses.replace(view, compare={}), found).panels
    assert panel.header() == [
        [("digits", 4)],
        [("ADM", 2), ("ADM-IP", 2)],
        [("FID", 1), ("sFID", 1), ("FID", 1), ("sFID", 1)],
    ]


def test_a_table_may_have_rows_alone() -> None:
    view = product(rows=["model", "metric"], columns=[], compare={})
    frame = build(view, [record(model=model) for model in ("adm", "adm-ip")])
    (panel,) = frame.panels
    assert panel.header() == [[("", 1)]]
    assert [shared for _, shared in panel.shared()] == [0, 0]
    text = render.tex("t", "t", frame.panels, [])
    assert r"model & metric &  \\" in text
    assert r"ADM & FID & 3.00 \\" in text


def test_where_higher_is_better_the_verdict_the_best_and_the_words_turn() -> None:
    differences = [0.1, 0.12, 0.11]
    assert verdict(differences, "recall") == "better" != verdict(differences)
    assert verdict([-0.1, -0.12], "recall") == "worse"
    assert verdict([0.1, -0.1], "recall") == "within spread"
    view = product(metrics=["fid", "recall"], columns=["metric"])
    found = [
        record(model=model, seed=seed, fid=fid, recall=recall + seed / 1000)
        for model, fid, recall in (("adm", 5.0, 0.601), ("adm-ip", 6.0, 0.612))
        for seed in (0, 1)
    ]
    frame = build(view, found)
    (panel,) = layout.panels(view, frame.entries)
    best = {row.labels: [cell.best for cell in row.cells if cell] for row in panel.rows if not row.difference}
    assert best == {("ADM",): [True, False], ("ADM-IP",): [False, True]}
    said = {entry.metric: entry.verdict for entry in frame.entries if entry.kind == "difference"}
    assert said == {"fid": "worse", "recall": "better"}
    assert "Lower is better, but for recall. Bold: the best mean" in " ".join(frame.notes)
    only_recall = [entry for entry in frame.entries if entry.metric == "recall"]
    assert "Higher is better. Bold: the highest mean" in " ".join(notes.write(view, only_recall, None))


def test_precision_stands_beside_the_papers_three_decimals() -> None:
    view = product(datasets=["cifar10"], metrics=["precision"], columns=["metric"], models=["adm"], compare={})
    theirs = paper.Entry("cifar10", "adm", Sampler("ancestral", 100), None, {"precision": 0.69}, MADE)
    known = dataclasses.replace(PAPER["table8"], entries=(theirs,))
    (panel,) = layout.panels(view, [entries.value(cifar("adm", 1000, precision=0.6912), "precision", known)])
    cell = panel.rows[0].cells[0]
    assert cell is not None
    assert (cell.main, cell.paper) == ("0.691", "0.690")


def test_cells_show_spread_sign_and_best() -> None:
    frame = build(product(), records("digits", "adm", {0: 5.0, 1: 7.0}), records("digits", "adm-ip", {0: 4.0, 1: 5.0}))
    adm, ours, difference = (row.cells[0] for row in frame.panels[0].rows)
    assert adm == layout.Text("6.00 \u00b1 1.41", card="digits/adm/1000/ancestral-100")
    assert ours == layout.Text("4.50 \u00b1 0.71", best=True, card="digits/adm-ip/1000/ancestral-100")
    assert difference == layout.Text("\u22121.50 \u00b1 0.71", "better", card="digits/adm-ip/1000/ancestral-100")


def bold(frame: table.Frame) -> list[tuple[str, ...]]:
    return [row.labels for panel in frame.panels for row in panel.rows if any(cell and cell.best for cell in row.cells)]


@pytest.mark.parametrize(
    ("values", "best", "said"),
    [
        ({"adm": {0: 3.0, 1: 3.1}, "adm-ip": {0: 4.0, 1: 4.2}}, ["ADM"], "only where it separates from each other one"),
        ({"adm": {0: 3.0, 1: 5.0}, "adm-ip": {0: 4.0, 1: 4.2}}, [], "no model separates from each other one"),
        ({"adm": {0: 3.0, 1: 4.0}, "adm-ip": {0: 4.0, 1: 8.0}}, [], "no model separates from each other one"),
        ({"adm": {0: 4.0, 1: 4.0}, "adm-ip": {0: 4.0, 1: 4.0}}, [], "no model separates from each other one"),
        ({"adm": {0: 3.0}, "adm-ip": {0: 9.0}}, [], "without two training seeds in common"),
        ({"adm": {0: 3.0, 1: 3.0}, "adm-ip": {2: 9.0, 3: 9.0}}, [], "without two training seeds in common"),
    ],
)
def test_bold_is_what_separates_from_all_others(
    values: dict[str, dict[int, float]], best: list[str], said: str
) -> None:
    frame = build(product(compare={}), *(records("digits", model, fids) for model, fids in values.items()))
    assert bold(frame) == [(model,) for model in best]
    assert said in " ".join(frame.notes)
    for text in (render.markdown("t", frame.panels, []), render.tex("n", "t", frame.panels, [])):
        assert ("**3.05" in text or r"\textbf{3.05" in text) is bool(best)


@pytest.mark.parametrize("metric", ["fid", "recall"])
def test_a_model_of_fewer_seeds_keeps_the_others_from_being_bold(metric: str) -> None:
    """ADM is ahead of ADM-IP in both seeds; of DDPM-y there is one, so nobody knows whether it is ahead of that."""
    sign = -1 if metric == "recall" else 1
    found = [
        record(model=model, seed=seed, **{metric: 10 + sign * value})
        for model, values in {"adm": (2, 2.1), "adm-ip": (3, 3.2), "ddpm-y": (4,)}.items()
        for seed, value in enumerate(values)
    ]
    view = product(models=["adm", "adm-ip", "ddpm-y"], metrics=[metric], compare={})
    assert bold(build(view, found)) == []
    assert bold(build(dataclasses.replace(view, models=["adm", "adm-ip"]), found)) == [("ADM",)]


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ([-1.0], "one seed"),
        ([-1.0, -2.0], "better"),  # spread 0.71
        ([-1.0, -3.0], "within spread"),  # spread 1.41: the mean is larger, one seed's difference is not
        ([2.0, 2.0], "worse"),
        ([0.0, 0.0], "within spread"),
        ([-9.0, -9.0, -9.0, 0.1], "within spread"),
    ],
)
def test_the_stricter_rule_asks_every_seed(differences: list[float], said: str) -> None:
    assert verdicts.separate(differences, False) == said
    turned = {"better": "worse", "worse": "better"}
    assert verdicts.separate(differences, True) == turned.get(said, said)
    assert verdicts.separate([-one for one in differences], False) == turned.get(said, said)
    assert verdicts.separate(differences, None) == ""
    assert said not in turned or verdicts.verdict(differences, False) == said  # never more than the tables' own mark


GAMMAS = {("digits", "adm"): (0.0,), ("digits", "adm-ip"): (0.2,), ("digits", "adm-ip-g01"): (0.1,)}


def strong(gammas: dict[tuple[str, str], tuple[float, ...]], **fids: float) -> list[results.Result]:
    """Synthetic results of one seed of models named with underscores, of these gammas."""
    named = {name.replace("_", "-"): fid for name, fid in fids.items()}
    return [
        dataclasses.replace(one, gamma=gammas[one.dataset, one.model])
        for model, fid in named.items()
        for one in records("digits", model, {0: fid})
    ]


def test_models_are_named_and_ordered_by_gamma() -> None:
    view = product(models=["adm-ip", "adm", "adm-ip-g01"], compare={"adm-ip-g01": "adm"})
    frame = build(view, strong(GAMMAS, adm=3.0, adm_ip=2.0, adm_ip_g01=1.0))
    assert [row.labels for panel in frame.panels for row in panel.rows] == [
        ("ADM",),
        ("ADM-IP, gamma 0.1",),
        ("ADM-IP, gamma 0.1 \N{MINUS SIGN} ADM",),
        ("ADM-IP, gamma 0.2",),
    ]


def test_two_models_of_one_gamma_keep_names_of_their_own() -> None:
    alike = {**GAMMAS, ("digits", "adm-ip"): (0.1,)}
    frame = build(product(models=["adm-ip", "adm-ip-g01"], compare={}), strong(alike, adm_ip=2.0, adm_ip_g01=1.0))
    labelled = [row.labels[0] for panel in frame.panels for row in panel.rows]
    assert labelled == ["ADM-IP, gamma 0.1", "ADM-IP (g01), gamma 0.1"]


def test_a_model_of_several_gammas_is_named_without_and_a_note_says_them() -> None:
    found = [
        dataclasses.replace(one, gamma=(gamma,))
        for dataset, gamma in (("digits", 0.1), ("cifar10", 0.15))
        for one in records(dataset, "adm-ip", {0: 2.0})
    ]
    view = product(datasets=["digits", "cifar10"], models=["adm-ip"], columns=["dataset"], compare={})
    frame = build(view, found)
    assert [row.labels for row in frame.panels[0].rows] == [("ADM-IP",)]
    assert "Gamma: ADM-IP digits 0.1, CIFAR-10 0.15." in frame.notes


@pytest.mark.parametrize(
    ("name", "gamma", "shown"),
    [
        ("adm", (0.0,), "ADM"),
        ("adm-ip", (), "ADM-IP"),
        ("adm-ip-g005", (0.05,), "ADM-IP, gamma 0.05"),
        ("adm-ip-g005", (0.5,), "ADM-IP (g005), gamma 0.5"),
        ("adm-ip-g1", (1.0,), "ADM-IP, gamma 1"),
        ("adm-ip-x", (0.1,), "ADM-IP (x), gamma 0.1"),
        ("mine-g01", (0.1,), "mine-g01, gamma 0.1"),
        ("adm-ip", (0.0, 0.1), "ADM-IP, gamma 0 to 0.1"),
        ("adm-ip", (0.2, 0.1, 0.3), "ADM-IP, gamma 0.1 to 0.3"),
    ],
)
def test_a_label_says_the_gamma(name: str, gamma: tuple[float, ...], shown: str) -> None:
    assert labels.models([(name, gamma)]) == {name: shown}


# Halves -------------------------------------------------------------------------------------------------------


def half(**changes: object) -> dict[str, object]:
    return {"half_n": 500, "half_fid_real": 1.0, **changes}


def test_a_line_says_how_far_from_converged_the_models_are(tmp_path: Path) -> None:
    found = [
        *records("digits", "adm", {0: 9.0, 1: 9.0}, **half(half_fid=6.0)),
        *records("digits", "adm-ip", {0: 2.0, 1: 2.0}, **half(half_fid=2.5)),
    ]
    frame = build(product(metrics=["fid"]), found)
    assert (
        "FID between two disjoint halves of the real images, 500 in each: 1.00; of as many samples against the same "
        "half: 2.50 to 6.00; far from converged (above 5 times the first): 1 of 2: ADM at T' = 100."
    ) in frame.notes
    entries.write_csv(frame.entries, tmp_path / "table.csv")
    assert entries.read_csv(tmp_path / "table.csv") == frame.entries
    assert [entry.far for entry in frame.entries] == [True, False, False]  # a difference says nothing of it


@pytest.mark.parametrize(("fid", "said"), [(5.0, "none is far from converged"), (5.001, "far from converged (above 5")])
def test_far_from_converged_begins_above_five_times(fid: float, said: str) -> None:
    (note,) = [
        note
        for note in build(product(models=["adm"], compare={}), [record(**half(half_fid=fid))]).notes
        if "halves" in note
    ]
    assert f"; {said}" in note


def test_without_halves_there_is_no_line_and_pixels_have_none() -> None:
    assert "halves" not in " ".join(build(product(models=["adm"], compare={}), [record()]).notes)
    view = product(models=["adm"], metrics=["pixel_fd"], compare={})
    assert "halves" not in " ".join(build(view, [record(pixel_fd=1.0, **half(half_fid=5.0))]).notes)


@pytest.mark.parametrize("change", [{"half_fid": None}, {"half_fid": -1.0}, {"half_n": 2.5}, {"half_fid_real": "1"}])
def test_halves_that_are_not_whole_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = write(tmp_path / "m.json", **half(half_fid=2.0), **{})
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=rf"m\.json: '{next(iter(change))}' is .*, expected a number of 0 or more"):
        results.load([path])


def test_notes_say_the_number_of_seeds() -> None:
    frame = build(product(), records("digits", "adm", {0: 5.0, 1: 7.0}), records("digits", "adm-ip", {0: 4.0}))
    text = " ".join(frame.notes)
    assert "over 2 training seeds (0, 1)" in text
    assert "ADM-IP: one training seed (0)" in text
    assert "1 seed in common" in text
    assert "Training steps: 1,000." in text


# The paper ----------------------------------------------------------------------------------------------------


def test_the_papers_values_are_read() -> None:
    assert {key: len(found.entries) for key, found in PAPER.items()} == {
        "table1": 10,
        "table2": 4,
        "table3": 40,
        "table4": 10,
        "table5": 20,
        "table7": 12,
        "table8": 8,
        "ablation": 41,
        "figure3": 62,
        "es": 21,
        "released": 1,
    }
    assert all(found.source and found.features == "inception" and found.n == 50000 for found in PAPER.values())


def test_the_papers_tables_agree_with_each_other() -> None:
    """Table 2 and Table 7 repeat cells of Table 3, and the ablation ends in its T' = 100 values."""

    def values(key: str) -> dict[tuple[object, ...], dict[str, float]]:
        return {(e.dataset, e.model, e.sampler, e.step): e.metrics for e in PAPER[key].entries}

    third = values("table3")
    for key, shared in (("table2", 2), ("table7", 8), ("ablation", 2)):
        both = values(key).keys() & third.keys()
        assert len(both) == shared
        assert all(third[cell]["fid"] == values(key)[cell]["fid"] for cell in both)


def test_a_comparable_cell_shows_the_papers_value() -> None:
    view = product(datasets=["cifar10"], paper="table3")
    frame = build(view, [cifar("adm", 500_000, fid=3.5)], [cifar("adm-ip", 460_000, fid=2.5)])
    adm, ours, difference = frame.entries
    assert (adm.paper, adm.comparable, adm.minus_paper) == (3.37, True, pytest.approx(0.13))
    assert (ours.paper, difference.paper) == (2.70, pytest.approx(-0.67))
    assert frame.panels[0].rows[0].cells[0] == layout.Text("3.50", "", "3.37", card="cifar10/adm/500000/ancestral-100")
    assert "In brackets: the paper's value" in " ".join(frame.notes)
    assert "LSUN" not in " ".join(frame.notes)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"features": "classifier"}, "features differ: classifier here, inception in the paper"),
        ({"n": 10_000}, "N differs: 10,000 samples here, 50,000 in the paper"),
        ({"step": 400_000}, "training steps differ: 400,000 here, 500,000 in the paper"),
        ({"sampler": "ancestral-10"}, "no figure for this sampler"),
        ({"sampler": "ddim0-100"}, "no figure for this sampler"),
        ({"model": "ddim"}, "no figure for DDIM on this data set"),
        ({"dataset": "digits"}, "no figure for the data set digits"),
        ({"paper": "table8"}, "the paper does not say with which T' it was drawn"),
    ],
)
def test_any_other_cell_gives_the_reason(change: dict[str, object], reason: str) -> None:
    found = dataclasses.replace(
        cifar("adm", 500_000), **{k: v for k, v in change.items() if k in ("step", "sampler", "model", "dataset")}
    )  # type: ignore[arg-type]
    protocol = {k: v for k, v in change.items() if k in ("features", "n")}
    found = dataclasses.replace(found, protocol=dataclasses.replace(found.protocol, **protocol))  # type: ignore[arg-type]
    view = product(
        datasets=[found.dataset],
        models=[found.model],
        samplers=[found.sampler],
        compare={},
        paper=str(change.get("paper", "table3")),
    )
    frame = build(view, [found])
    assert not frame.entries[0].comparable
    assert reason in frame.entries[0].reason
    assert any(reason in note for note in frame.notes)
    cell = frame.panels[0].rows[0].cells[0]
    assert cell is not None
    assert cell.paper == ""


def cell(*args: Any, **changes: Any) -> results.Result:
    return results.aggregate([cifar(*args, **changes)])[0]


def test_ddim_joins_on_eta_and_steps_whatever_the_grid() -> None:
    for sampler, value in (("ddim0-quad10", 14.21), ("ddim0-uniform10", 14.21), ("ddim0.5-100", 4.88)):
        found = paper.match(PAPER["table5"], cell("ddim", 123, sampler=sampler), "fid")
        assert (found.value, found.comparable) == (value, True)
        assert found.unknown == ("size of the reference set", "reference set", "training steps", "grid of timesteps")


def test_curves_join_on_the_training_step() -> None:
    assert paper.match(PAPER["ablation"], cell("adm-ip-g02", 460_000), "fid").value == 2.82
    assert paper.match(PAPER["ablation"], cell("adm", 1), "fid").value is None


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"gamma": 0.3}, "gamma differs: 0.3 here, 0.1 in the paper"),
        ({"gamma": [0.1, 0.2]}, "gamma differs: [0.1, 0.2] here, 0.1 in the paper"),
        ({"gp_weight": 0.003}, "gradient penalty differs: 0.003 here, 0 in the paper"),
        ({"weight_decay": 0.01}, "weight decay differs: 0.01 here, 0 in the paper"),
        ({"batch_size": 64}, "batch size differs: 64 here, 128 in the paper"),
        ({"T": 4000}, "T differs: 4,000 here, 1,000 in the paper"),
        ({"dropout": 0.1}, "dropout differs: 0.1 here, 0.3 in the paper"),
        ({"schedule": "linear"}, "noise schedule differs: linear here, cosine in the paper"),
        ({"sampling_precision": "bfloat16"}, "sampling precision differs: bfloat16 here, float32 in the paper"),
        ({"reference_n": 10_000}, "size of the reference set differs: 10,000 here, 50,000 in the paper"),
        ({"reference": "random images"}, "reference set differs: random images here, all images in the paper"),
        ({"preprocessing": "resize"}, "preprocessing differs: resize here, none in the paper"),
        (
            {"gamma": 0.3, "T": 100},
            "gamma differs: 0.3 here, 0.1 in the paper; T differs: 100 here, 1,000 in the paper",
        ),
    ],
)
def test_a_run_made_otherwise_is_not_comparable(made: dict[str, Any], reason: str) -> None:
    view = product(datasets=["cifar10"], models=["adm-ip"], compare={}, paper="table3")
    frame = build(view, [cifar("adm-ip", 460_000, made)])
    assert (frame.entries[0].reason, frame.entries[0].comparable) == (reason, False)
    assert f"No value of the paper stands beside any cell: {reason}." in frame.notes
    assert "[" not in "".join(str(row) for row in render.markdown("t", frame.panels, []).split("|")[9:])


def test_one_seed_made_otherwise_is_enough() -> None:
    view = product(datasets=["cifar10"], models=["adm"], compare={}, paper="table3")
    frame = build(view, [cifar("adm", 500_000, seed=0), cifar("adm", 500_000, {"batch_size": 64}, seed=1)])
    assert frame.entries[0].reason == "batch size differs: 64 here, 128 in the paper"


def test_without_recipes_nothing_is_comparable() -> None:
    view = product(datasets=["cifar10"], models=["adm"], compare={}, paper="table3")
    frame = build(view, [dataclasses.replace(cifar("adm", 500_000), made_with=())])
    assert frame.entries[0].reason == "no recipe says what ours was made with"


def test_what_the_paper_does_not_say_is_said_and_not_compared() -> None:
    view = product(datasets=["cifar10"], models=["ddpm-y", "adm"], compare={"ddpm-y": "adm"}, paper="table7")
    frame = build(view, [cifar("ddpm-y", 7, {"gamma": 0.7})], [cifar("adm", 500_000)])
    assert [entry.comparable for entry in frame.entries] == [True, True, True]
    note = "Not known of the paper's figures, and not compared: gamma, training steps of DDPM-y."
    assert any(text.endswith(note) for text in frame.notes)
    assert only(frame).unknown == "gamma, training steps"


def test_the_papers_figures_say_what_each_was_made_with() -> None:
    for found in PAPER.values():
        for entry in found.entries:
            assert entry.made_with.keys() == paper.CONDITIONS.keys()
    third = {(entry.dataset, entry.made_with["reference_n"]) for entry in PAPER["table3"].entries}
    assert ("celeba64", 202_599) in third
    assert "202,599" in PAPER["table3"].caveats["celeba64"]
    assert PAPER["table3"].caveats == PAPER["table4"].caveats == PAPER["figure3"].caveats


def test_an_unknown_paper_key_is_refused() -> None:
    with pytest.raises(UserError, match="use one of table1"):
        build(product(paper="table99"), records("digits", "adm", {0: 5.0}), records("digits", "adm-ip", {0: 5.0}))


# Files --------------------------------------------------------------------------------------------------------


def run(out: Path, source: Path, **changes: object) -> Path:
    files = [
        write(source / f"{model}{seed}.json", model=model, seed=seed, fid=value + seed / 3)
        for model, value in (("adm", 5.0), ("adm-ip", 4.1))
        for seed in (0, 1, 2)
    ]
    table.run("synthetic_table", product(**changes), files, out)
    return out


def test_the_csv_round_trips_at_full_precision(tmp_path: Path) -> None:
    out = run(tmp_path / "out", tmp_path)
    found = entries.read_csv(out / "table.csv")
    again = tmp_path / "again.csv"
    entries.write_csv(found, again)
    assert again.read_bytes() == (out / "table.csv").read_bytes()
    assert found[0].values == (5.0, 5.0 + 1 / 3, 5.0 + 2 / 3)
    with (out / "table.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3


@pytest.mark.parametrize("change", [lambda line: line + ",x", lambda line: line.rpartition(",")[0]])
def test_a_csv_with_more_or_fewer_fields_is_refused(tmp_path: Path, change: Callable[[str], str]) -> None:
    path = run(tmp_path / "out", tmp_path) / "table.csv"
    head, *rest = path.read_text().splitlines()
    for lines in ([change(head), *rest], [head, change(rest[0])], [change(line) for line in (head, *rest)]):
        path.write_text("\n".join(lines) + "\n")
        with pytest.raises(UserError, match="make the table again"):
            entries.read_csv(path)


@pytest.mark.parametrize(
    ("column", "value"), [("mean", "1.0"), ("sd", ""), ("verdict", "worse"), ("kind", "value"), ("values", "")]
)
def test_a_csv_whose_fields_disagree_is_refused(tmp_path: Path, column: str, value: str) -> None:
    path = run(tmp_path / "out", tmp_path) / "table.csv"
    *_, difference = list(csv.DictReader(path.read_text().splitlines()))
    assert (difference["kind"], difference["verdict"]) == ("difference", "better")
    entries.write_rows(path, entries.COLUMNS, [difference.values()])
    assert entries.read_csv(path)
    entries.write_rows(path, entries.COLUMNS, [{**difference, column: value}.values()])
    with pytest.raises(UserError, match="make the table again"):
        entries.read_csv(path)


def test_csv_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="make the table again"):
        entries.read_csv(tmp_path / "x.csv")


def test_files_are_the_same_bytes_for_any_order_of_inputs(tmp_path: Path) -> None:
    first, names = run(tmp_path / "a", tmp_path), ("table.csv", "table.md", "table.tex")
    table.run("synthetic_table", product(), sorted(tmp_path.glob("*.json"), reverse=True), tmp_path / "b")
    assert all((first / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_markdown_is_a_pipe_table(tmp_path: Path) -> None:
    lines = [line for line in (run(tmp_path / "a", tmp_path, title="a|b") / "table.md").read_text().splitlines()]
    assert lines[0] == r"### a\|b"
    rows = [line for line in lines if line.startswith("|")]
    assert {row.count("|") for row in rows} == {3}
    assert len(rows) == 5


def test_tex_is_balanced_and_escaped(tmp_path: Path) -> None:
    title = "100% of $x_1 & {y} # ~^\\ <z> at T' = 5"
    view = product(title=title, columns=["sampler", "metric"], metrics=["fid", "sfid"])
    found = [record(model=m, seed=s, fid=f, sfid=2.0) for m, f in (("adm", 5.0), ("adm-ip", 4.0)) for s in (0, 1)]
    frame = build(view, found)
    text = render.tex("a_b", title, frame.panels, frame.notes)
    assert r"100\% of \$x\_1 \& \{y\} \# \textasciitilde{}\textasciicircum{}\textbackslash{}" in text
    assert "$T'$ = 5" in text
    assert r"\label{tab:a-b}" in text
    assert re.findall(r"\\begin\{(\w+)\}", text) == re.findall(r"\\end\{(\w+)\}", text)[::-1]
    plain = text.replace(r"\{", "").replace(r"\}", "")
    assert plain.count("{") == plain.count("}")
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    assert {line.count(" & ") for line in body.splitlines() if line.endswith(r"\\")} == {2}
    assert text.isascii()


def test_code_in_a_note_is_code() -> None:
    note = r"Not `a_b: *T' = {5}*`, but a_b; a lone ` is a character."
    frame = build(product(note=note, compare={}, models=["adm"]), records("digits", "adm", {0: 5.0}))
    text = render.markdown("t", frame.panels, frame.notes)
    assert r"Not `a_b: *T' = {5}*`, but a\_b; a lone \` is a character." in text
    text = render.tex("t", "t", frame.panels, frame.notes)
    assert r"Not \texttt{a\_b: *T' = \{5\}*}, but a\_b; a lone ` is a character." in text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("adm", "ADM"),
        ("adm-ip", "ADM-IP"),
        ("adm-ip-g01", "ADM-IP (g01)"),
        ("ddpm-y", "DDPM-y"),
        ("ddim-ip-x", "DDIM-IP (x)"),
        ("mine", "mine"),
    ],
)
def test_model_labels(name: str, shown: str) -> None:
    assert labels.model(name) == shown


@pytest.mark.parametrize(
    ("value", "places", "signed", "shown"),
    [(-0.004, 2, True, "0.00"), (1234.5, 1, False, "1,234.5"), (0.5, 2, True, "+0.50"), (-0.5, 2, False, "\u22120.50")],
)
def test_numbers(value: float, places: int, signed: bool, shown: str) -> None:
    assert labels.number(value, places, signed=signed) == shown


def test_decimals_keep_three_digits_of_the_smallest() -> None:
    assert [labels.decimals([x]) for x in (25.0, 2.5, 0.25, 0.025, 0.0025, 1e-9)] == [2, 2, 3, 4, 5, 5]
    assert labels.decimals([]) == 2


def test_metrics_of_the_stage_evaluate_are_read(tmp_path: Path) -> None:
    """Keys that the report does not know are let through."""
    path = tmp_path / "m.json"
    path.write_text(json.dumps({**json.loads(write(path).read_text()), "device": "cpu"}))
    assert results.load([path])
