"""What is wrong with a study as a whole: said by every verb before anything runs, all at once; and filled in."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from unit.params_factory import drop, put, small, write

from ipdiff import cli
from ipdiff.errors import UserError
from ipdiff.pipeline import config, grid
from ipdiff.pipeline.grid import checks

PATH = Path("studies/small/params.yaml")
UNWRITTEN = ("datasets.tiny.compute", "datasets.tiny.classifier")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the study `good`, which stays as it is, beside `small`, which each test writes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    raw = small()
    raw["datasets"] = {"well": raw["datasets"]["tiny"]}
    for view in (*raw["tables"].values(), *raw["figures"].values()):
        view["datasets"] = ["well"]
    write(tmp_path, raw, "good")
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    """The lines of a verb that ends with 2."""
    assert cli.main(list(argv)) == 2, argv
    return [line for line in capsys.readouterr().err.splitlines() if "note:" not in line]


def without(*keys: str) -> dict:
    raw = small()
    for key in keys:
        drop(raw, key)
    return raw


LABELS = ("ipdiff: studies/small/params.yaml datasets.{}.features: classifier needs labels, and {}; use inception, or "
          "torchscript for a network of your own (docs/metrics.md)")  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (
            without("title", "datasets.tiny.families.adm.quantise", "datasets.photos.checkpoints"),
            "ipdiff: studies/small/params.yaml title, datasets.tiny.families.adm.quantise, "
            "datasets.photos.checkpoints: missing keys",
        ),
        (
            without(*UNWRITTEN),
            "ipdiff: studies/small/params.yaml datasets.tiny.compute, datasets.tiny.classifier: "
            "write these keys out, even where the default is wanted; both engines compare them (`ipdiff grid --fill "
            "--study small` writes the defaults)",
        ),
        (
            put(put(small(), "tables.table3.datasets", ["photos"]), "datasets.photos.source.labels", "none"),
            LABELS.format("photos", "source.labels is none"),
        ),
        (
            put(put(small(), "tables.table3.datasets", ["photos"]), "datasets.photos.source.raw", "raw/flat"),
            LABELS.format("photos", "raw/flat has no folders that could be labels"),
        ),
        (
            put(put(small(), "tables.table3.datasets", ["photos"]), "datasets.photos.source.reader", "ffhq"),
            LABELS.format("photos", "images of the reader ffhq have none"),
        ),
    ],
    ids=["keys that have no default", "keys that both engines compare", "labels none", "one folder", "no labels ever"],
)
def test_every_verb_refuses_the_same_in_one_line(
    project: Path, capsys: pytest.CaptureFixture[str], raw: dict, said: str
) -> None:
    (project / "raw/flat").mkdir(parents=True)
    write(project, raw)
    assert refused(capsys, "grid", "--write") == [said]
    assert refused(capsys, "grid", "--check") == [said]
    assert not Path("studies/small/dvc.yaml").exists()
    assert Path("studies/good/dvc.yaml").exists()
    assert refused(capsys, "plan", "small") == [said]
    assert cli.main(["plan", "good"]) == 0
    assert cli.main(["doctor", "--study", "small"]) == 2
    about = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert ["lacks", "studies", said.removeprefix("ipdiff: ")] in about
    assert cli.main(["doctor", "--study", "good"]) == 0
    assert "small" not in capsys.readouterr().out


def test_one_cell_names_every_key_that_its_study_lacks(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(project, without(*UNWRITTEN))
    known = grid.load()
    with pytest.raises(UserError, match=", ".join(UNWRITTEN)):
        known.param_values(known.cell("train", dataset="tiny", model="adm", seed="0", step="8"))


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"tables": {}, "figures": {}}, ": no tables and no figures, so nothing is trained, drawn or measured"),
        ({}, " datasets.photos: no table and no figure shows it, so the study makes nothing of it"),
    ],
)
def test_what_is_no_fault_is_a_note(project: Path, capsys: pytest.CaptureFixture[str], change: dict, note: str) -> None:
    write(project, small() | change)
    assert cli.main(["grid", "--write"]) == 0
    assert capsys.readouterr().err.splitlines() == [f"ipdiff: note: {PATH}{note}"]
    assert checks.notes(grid.load(), "good") == []
    assert cli.main(["doctor", "--study", "small"]) in (0, 2)
    assert note in capsys.readouterr().out


WRITTEN = """\
# What is at the top stays.
title: A study
seeds: {default: [0]}
datasets:
    tiny:   # four columns deep
        source: {reader: digits, image_size: 8, channels: 1}
        families:
            adm:
                network: {model_channels: 8, channel_mult: [1, 2], num_res_blocks: 1, attention_resolutions: [],
                          norm_groups: 4}
                diffusion: {schedule: cosine, T: 20}
                training: {batch_size: 16, micro_batch: 8, lr: 0.002}
                clip_denoised: true
                quantise: truncate
        metrics: [kid]
        reference: {neighbours: true}
        sampling: {num_samples: 8, batch_size: 4}
        checkpoints:
        - 4
        final_step: {default: 4}  # the last line of it

    # What stands between stays.
    other: {source: {reader: digits, image_size: 8, channels: 1}, families: {adm: {
                network: {model_channels: 8, channel_mult: [1, 2], num_res_blocks: 1, attention_resolutions: [],
                          norm_groups: 4},
                diffusion: {schedule: cosine, T: 20}, training: {batch_size: 16, lr: 0.002}, clip_denoised: true,
                quantise: truncate}}, sampling: {num_samples: 8, batch_size: 4}, checkpoints: [4],
            final_step: {default: 4}}
models: {adm: {family: adm}}
tables:
    t: {title: T, datasets: [tiny, other], models: [adm], samplers: [ancestral-5], metrics: [fid], rows: [dataset],
        columns: [metric]}"""


@pytest.mark.parametrize("end", ["", "\n", "\nnote: |\n  Some words\n  at the end.\n"])
def test_defaults_are_filled_in_and_nothing_else_changes(
    project: Path, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    PATH.parent.mkdir(parents=True)
    PATH.write_text(WRITTEN + end)
    before = config.load(PATH)
    assert cli.main(["grid", "--fill", "--study", "small"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{PATH}: wrote datasets.")
    for key in ("classifier", "compute"):
        assert f"datasets.tiny.{key}" in said
        assert f"datasets.other.{key}" in said
    text = PATH.read_text()
    left = text.splitlines()
    for line in WRITTEN.splitlines():
        if "other: {" not in line:
            assert line in left
    assert text.index("the last line of it") < text.index("classifier:") < text.index("# What stands between")
    after = config.load(PATH)
    assert (after.datasets, after.models, after.tables) == (before.datasets, before.models, before.tables)
    assert yaml.safe_load(text)["datasets"]["tiny"]["kid"] == {"subset_size": 1000, "subsets": 100, "seed": 0}
    assert checks.broken(grid.load()) == {}
    assert cli.main(["grid", "--fill", "--study", "small"]) == 0
    assert capsys.readouterr().out == f"{PATH}: nothing is missing\n"
    assert PATH.read_text() == text


def test_what_has_no_default_is_not_filled_in(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(project, without("title", *UNWRITTEN))
    text = PATH.read_text()
    assert refused(capsys, "grid", "--fill", "--study", "small") == [f"ipdiff: {PATH} title: missing key"]
    assert PATH.read_text() == text
