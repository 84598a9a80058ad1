"""The answer that a report begins with. Every number here is SYNTHETIC."""

from __future__ import annotations

import dataclasses
from itertools import product as every
from pathlib import Path

import pytest
from unit.report_factory import record

from ipdiff.report.pages import answer
from ipdiff.report.pages import report as pages
from ipdiff.report.spec import Gamma, Point, Study, Table
from ipdiff.report.tables import entries, table

LIKE = {"weak": "adm", "strong": "adm", "ddim-ip": "ddim"}
GAMMAS: dict[str, Gamma] = {"adm": (0.0,), "weak": (0.05,), "strong": (0.1,), "ddim": (0.0,), "ddim-ip": (0.1,)}
NAMES = {"adm": "ADM", "ddim": "DDIM"}

Values = dict[str, dict[int, tuple[float, ...]]]
"""Model -> T' -> its metric for seed 0, 1, ..."""


def frame(values: Values, metric: str = "fid", **changes: object) -> table.Frame:
    """A synthetic table of models over T'."""
    steps = list(dict.fromkeys(T for of in values.values() for T in of))
    samplers = [f"ancestral-{T}" for T in steps]
    view = Table("t", [metric], ["model"], ["sampler"], ["digits"], list(values), samplers)
    view = dataclasses.replace(view, **changes)  # type: ignore[arg-type]
    found = [
        dataclasses.replace(
            record(model=model, sampler=f"ancestral-{T}", seed=seed, **{"fid": None, metric: value}),
            gamma=GAMMAS[model],
        )
        for model, of in values.items()
        for T, numbers in of.items()
        for seed, value in enumerate(numbers)
    ]
    return table.frame(view, table.build(view, found))


def said(*frames: table.Frame) -> str:
    (found,) = answer.answers(frames, LIKE, NAMES)
    assert found.about == ""
    return found.sentence


def test_yes_where_it_separates_and_with_which_gamma() -> None:
    values: Values = {
        "adm": {5: (9.0, 9.1), 10: (6.0, 6.1), 20: (4.0, 4.1)},
        "weak": {5: (8.0, 8.2), 10: (5.0, 5.2), 20: (3.0, 5.0)},
        "strong": {5: (7.0, 7.2), 10: (4.0, 4.2), 20: (4.5, 3.5)},
    }
    assert said(frame(values)) == (
        "At T' = 5 and 10 yes by FID (lower for gamma 0.05 and 0.1 in 2 of 2 seeds); at T' = 20 FID does not tell; "
        "best gamma 0.1, the largest tried."
    )


def test_the_best_gamma_may_lie_inside_and_not_stand_apart() -> None:
    values: Values = {"adm": {5: (9.0, 9.1)}, "weak": {5: (7.0, 7.3)}, "strong": {5: (7.4, 7.1)}}
    text = said(frame(values))
    assert text.endswith("best gamma 0.05, the smallest tried, by FID not apart from 0.1.")


def test_one_gamma_is_no_best_one() -> None:
    values: Values = {"adm": {5: (9.0, 9.1)}, "strong": {5: (7.0, 7.2)}}
    assert said(frame(values)).endswith("by FID (lower for gamma 0.1 in 2 of 2 seeds); no other gamma was tried.")
    fewer: Values = {**values, "weak": {5: (1.0,)}}
    assert said(frame(fewer)).endswith("; no other gamma has more than one seed (tried: 0.05).")


def test_no_and_mixed() -> None:
    worse = frame({"adm": {5: (7.0, 7.2)}, "strong": {5: (9.0, 9.1)}})
    assert said(worse) == "At T' = 5 no by FID (higher for gamma 0.1 in 2 of 2 seeds)."
    better = frame({"adm": {5: (9.0, 9.1)}, "strong": {5: (7.0, 7.2)}}, "sfid")
    assert said(worse, better).startswith(
        "At T' = 5 mixed (sFID lower for gamma 0.1 in 2 of 2 seeds; FID higher for gamma 0.1 in 2 of 2 seeds); "
    )


def test_each_metric_says_what_it_tells() -> None:
    fid = frame({"adm": {5: (9.0, 9.1), 10: (6.0, 6.1)}, "strong": {5: (7.0, 7.2), 10: (5.0, 5.2)}})
    sfid = frame({"adm": {5: (9.0, 7.0), 10: (6.0, 6.1)}, "strong": {5: (7.0, 8.0), 10: (5.0, 5.2)}}, "sfid")
    assert said(fid, sfid) == (
        "At T' = 5 yes by FID (lower for gamma 0.1 in 2 of 2 seeds), sFID does not tell; "
        "at T' = 10 yes by FID and sFID (lower for gamma 0.1 in 2 of 2 seeds); no other gamma was tried."
    )
    more = frame({"adm": {5: (9.0, 9.1)}, "weak": {5: (8.0, 8.2)}, "strong": {5: (9.0, 9.3)}}, "sfid")
    assert said(fid, more).startswith(
        "At T' = 5 yes by FID (lower for gamma 0.1 in 2 of 2 seeds) and sFID (lower for gamma 0.05 in 2 of 2 seeds); "
    )


def test_the_rule_says_what_two_seeds_are_worth_and_what_the_baseline_is() -> None:
    two, three = ((9.0, 9.1), (7.0, 7.2)), ((9.0, 9.1, 9.0), (7.0, 7.2, 7.0))
    for (without, with_it), few in ((two, True), (three, False)):
        found = answer.answers([frame({"adm": {5: without}, "strong": {5: with_it}})], LIKE, NAMES)
        assert (answer.CHANCE in answer.rule(found)) is few
        assert answer.rule(found).startswith("ADM is trained without input perturbation (gamma 0). ")


def singular(made: table.Frame, dimensions: int) -> table.Frame:
    """The frame as of 200 images."""
    few = [dataclasses.replace(entry, n=200, dimensions=dimensions) for entry in made.entries]
    return dataclasses.replace(made, entries=few)


def test_singular_metrics_do_not_decide() -> None:
    no: Values = {"adm": {5: (9.0, 9.1)}, "strong": {5: (9.1, 9.0)}}
    yes: Values = {"adm": {5: (9.0, 9.1)}, "strong": {5: (7.0, 7.2)}}
    fid, sfid = singular(frame(no), 200), singular(frame(yes, "sfid"), 1792)
    (found,) = answer.answers([fid, sfid], LIKE, NAMES)
    assert found.sentence == "Nothing separates at T' = 5 (FID, gamma 0.1, 2 seeds)."
    assert found.caution == (
        "Left out of the answer, for a covariance of fewer images than features is singular: "
        "sFID (1,792 features, 200 images)."
    )
    (found,) = answer.answers([sfid], LIKE, NAMES)
    assert found.sentence == "Not known, for no metric that answers has as many images as features."
    assert not found.two_seeds
    recall = frame({"adm": {5: (0.5, 0.51)}, "strong": {5: (0.6, 0.62)}}, "recall")
    assert "yes by recall" in said(singular(recall, 1792))


def test_the_notes_warn_of_singular_covariances() -> None:
    found = [record(sfid=1.0, n=200, dimensions={"fid": 64, "sfid": 1792})]
    view = Table("t", ["fid", "sfid"], ["model"], ["metric"], ["digits"], ["adm"], ["ancestral-100"])
    text = "Fewer images than features, so a covariance is singular and the distance biased: "
    assert f"{text}sFID (1,792 features, 200 images)." in table.frame(view, table.build(view, found)).notes
    found = [record(sfid=1.0, n=1792, dimensions={"fid": 64, "sfid": 1792})]
    assert text not in " ".join(table.frame(view, table.build(view, found)).notes)


def test_noise_separates_nothing() -> None:
    values: Values = {"adm": {10: (6.0, 6.0), 5: (9.0, 7.0)}, "strong": {10: (6.0, 6.0), 5: (7.0, 8.0)}}
    assert said(frame(values)) == "Nothing separates at T' = 5 and 10 (FID, gamma 0.1, 2 seeds)."


def test_every_seed_has_to_agree_and_by_more_than_the_spread() -> None:
    """The mean is lower by more than the spread; one seed's difference is not."""
    values: Values = {"adm": {5: (9.0, 9.0)}, "strong": {5: (8.0, 6.0)}}
    assert said(frame(values)).startswith("Nothing separates")
    made = frame(values, compare={"strong": "adm"}).entries[-1]
    assert (made.kind, made.verdict) == ("difference", "better")


def test_one_seed_gives_no_spread_to_judge_by() -> None:
    values: Values = {"adm": {5: (9.0,), 10: (6.0,)}, "strong": {5: (7.0,), 10: (6.5,)}}
    assert said(frame(values)) == (
        "Not known, for one training seed gives no spread to judge by. FID of gamma 0.1 is lower at T' = 5, higher at "
        "T' = 10."
    )
    assert said(frame(values), frame(values, "sfid")).endswith(
        " FID and sFID of gamma 0.1 are lower at T' = 5, higher at T' = 10."
    )


def test_solvers_are_named_and_put_together() -> None:
    made = frame({"adm": {5: (9.0, 9.1), 10: (6.0, 6.1)}, "strong": {5: (7.0, 7.2), 10: (5.0, 5.2)}})
    more = [
        dataclasses.replace(entry, sampler=entry.sampler.replace("ancestral", kind))
        for kind in ("ancestral", "unipc", "dpmpp2m")
        for entry in made.entries
    ]
    assert said(dataclasses.replace(made, entries=more)).startswith(
        "At T' = 5 and 10 with ancestral or UniPC-2 or DPM-Solver++(2M) yes by FID (lower"
    )


def test_seeds_are_paired_and_others_left_out() -> None:
    """ADM has a third seed, far off, which the other has not."""
    values: Values = {"adm": {5: (9.0, 9.1, 1.0)}, "strong": {5: (7.0, 7.2)}}
    assert "in 2 of 2 seeds" in said(frame(values))


def test_where_higher_is_better_the_words_turn() -> None:
    values: Values = {"adm": {5: (0.5, 0.51)}, "strong": {5: (0.6, 0.62)}}
    assert said(frame(values, "recall")).startswith("At T' = 5 yes by recall (higher for gamma 0.1 in 2 of 2 seeds)")


def test_the_papers_metrics_answer_where_there_are_some() -> None:
    yes: Values = {"adm": {5: (9.0, 9.1)}, "strong": {5: (7.0, 7.2)}}
    no: Values = {"adm": {5: (9.0, 9.1)}, "strong": {5: (9.1, 9.0)}}
    assert said(frame(yes, "pixel_fd")).startswith("At T' = 5 yes by pixel FD (lower")
    assert said(frame(yes, "pixel_fd"), frame(no, "sfid")).startswith("Nothing separates at T' = 5 (sFID,")


def test_a_comparison_counts_once_with_the_most_seeds_and_at_the_last_step() -> None:
    one: Values = {"adm": {5: (9.0,)}, "strong": {5: (7.0,)}}
    two: Values = {"adm": {5: (9.0, 9.1)}, "strong": {5: (7.0, 7.2)}}
    for frames in every((frame(one), frame(two)), repeat=2):
        found = answer.comparisons(frames, LIKE)
        assert len(found) == 1
        assert len(found[0].differences) == max(len(f.entries[0].seeds) for f in frames)


def test_chains_from_real_images_and_unequal_points_are_no_comparisons() -> None:
    points = [Point("digits", "adm", "ancestral-10"), Point("digits", "strong", "ancestral-5")]
    values: Values = {"adm": {10: (9.0, 9.1)}, "strong": {5: (7.0, 7.2)}}
    unequal = frame(values, points=points, rows=[], columns=[])
    assert answer.answers([unequal], LIKE, NAMES) == []
    fair = [dataclasses.replace(points[0], sampler="ancestral-5"), points[1]]
    found = frame({"adm": {5: (9.0, 9.1)}, "strong": {5: (7.0, 7.2)}}, points=fair, rows=[], columns=[])
    assert "yes" in said(found)
    exposed = dataclasses.replace(
        found,
        entries=[dataclasses.replace(entry, sampler="exposure-5") for entry in found.entries],
    )
    assert answer.answers([exposed], LIKE, NAMES) == []


def test_each_baseline_has_an_answer_of_its_own() -> None:
    first = frame({"adm": {5: (9.0, 9.1)}, "strong": {5: (7.0, 7.2)}})
    second = frame({"ddim": {5: (9.0,)}, "ddim-ip": {5: (7.0,)}})
    one, two = answer.answers([first, second], LIKE, NAMES)
    assert (one.about, two.about) == ("digits, against ADM", "digits, against DDIM")
    assert one.sentence.startswith("At T' = 5 yes")
    assert two.sentence.startswith("Not known")


def test_the_answer_of_the_most_seeds_leads_whatever_table_comes_first() -> None:
    few = frame({"ddim": {5: (9.0,)}, "ddim-ip": {5: (7.0,)}})
    many = frame({"adm": {5: (9.0, 9.1)}, "strong": {5: (7.0, 7.2)}})
    assert [one.base for one in answer.answers([few, many], LIKE, NAMES)] == ["ADM", "DDIM"]


def test_a_caution_where_models_are_far_from_converged() -> None:
    made = frame({"adm": {5: (9.0, 9.1)}, "strong": {5: (7.0, 7.2)}})
    far = [dataclasses.replace(made.entries[0], half_n=9, half_real=1.0, half_samples=(5.0, 6.0)), *made.entries[1:]]
    far[1:] = [dataclasses.replace(entry, half_n=9, half_real=1.0, half_samples=(2.0, 3.0)) for entry in far[1:]]
    (found,) = answer.answers([dataclasses.replace(made, entries=far)], LIKE, NAMES)
    assert found.caution.startswith("In 1 of the 2 cases that are compared the model is far from converged")
    (found,) = answer.answers([made], LIKE, NAMES)
    assert found.caution == ""


@pytest.mark.parametrize("asked", [True, False])
def test_the_page_begins_with_the_answer(tmp_path: Path, asked: bool) -> None:
    made = frame({"adm": {5: (9.0, 9.1)}, "strong": {5: (7.0, 7.2)}})
    entries.write_csv(made.entries, tmp_path / "table.csv")
    study = Study("S", ["digits"], {"default": [0, 1]}, {"t": made.table}, note="Opening")
    behind = [{"cell": "data/digits", "code": "7", "params": {}, "inputs": {}, "outputs": {}}]
    for one in made.entries:
        for seed in one.seeds:
            run = f"runs/digits/{one.model}/s{seed}/{one.step}"
            at = f"digits/{one.model}/s{seed}/{one.step}/{one.sampler}"
            inputs = {
                run: {"data/digits/images.npy": "d"},
                f"samples/{at}": {f"{run}/ema.safetensors": "c"},
                f"metrics/{at}": {f"samples/{at}/samples.npz": "5", "reference/digits/stats.npz": "e"},
            }
            outputs = {"metrics.json": "m"}
            behind += [{**behind[0], "cell": cell, "inputs": of, "outputs": outputs} for cell, of in inputs.items()]
    pages.run("s", study, {"t": tmp_path}, {}, behind, tmp_path / "out", LIKE if asked else {})
    text = (tmp_path / "out/index.html").read_text()
    _, question, rest = text.partition("Does input perturbation help here?")
    assert question
    assert "Opening" in rest
    expected = "At T\u2032 = 5 yes by FID (lower for gamma 0.1 in 2 of 2 seeds)" if asked else "It was not asked."
    assert expected in rest.partition("Opening")[0]
    assert (answer.NOT_ASKED in rest) is not asked
