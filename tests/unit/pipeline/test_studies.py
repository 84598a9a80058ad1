"""A study is a folder: its data sets find it, and what is wrong with one stops no other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from unit.params_factory import put, small, write

from ipdiff import cli
from ipdiff.errors import ConfigError
from ipdiff.pipeline import config, grid
from ipdiff.pipeline.commands.store.in_git import STORE
from ipdiff.pipeline.config import schema
from ipdiff.pipeline.config.naming import RESERVED
from ipdiff.pipeline.stages import STAGES

ROOT = Path(__file__).parents[3]
STUDIES = config.Studies(ROOT)


def other(**datasets: str) -> dict[str, Any]:
    """The small study with other names for its data sets."""
    text = json.dumps(small())
    for old, new in {"tiny": "tiny2", "photos": "photos2", **datasets}.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    return json.loads(text)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the studies digits, small and other."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, other(tiny="digits", photos="scans"), config.DEFAULT)
    write(tmp_path, small())
    write(tmp_path, other(), "other")
    return tmp_path


def refusal(call: Any, *args: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_data_sets_name_finds_its_study(project: Path) -> None:
    studies = config.Studies()
    assert studies.names == ["digits", "other", "small"]
    assert [studies.owner(name).study for name in ("digits", "tiny", "tiny2", "photos2")] == [
        "digits", "small", "other", "other",
    ]  # fmt: skip
    assert studies.of({"dataset": "tiny", "model": "adm"}).path == Path("studies/small/params.yaml")
    assert studies.of({"study": "digits"}).path == Path("params.yaml")
    assert refusal(studies.owner, "tinny").startswith("dataset 'tinny' is in no study's params.yaml; did you mean 'ti")
    assert refusal(studies.load, "smol") == (
        "study 'smol' is not here, there is no studies/smol/params.yaml; did you mean 'small'? "
        "known: digits, other, small"
    )


def test_two_owners_of_a_data_set_are_both_named_and_the_others_are_left_alone(project: Path) -> None:
    write(project, other(tiny="tiny"), "other")
    studies = config.Studies()
    said = (
        "studies/other/params.yaml and studies/small/params.yaml both have datasets.tiny; a data set belongs to one "
        "study: rename one"
    )
    for call, name in ((studies.owner, "tiny"), (studies.load, "small"), (studies.load, "other")):
        assert refusal(call, name) == said
    assert studies.owner("digits").study == "digits"
    assert refusal(studies.owner, "photos") == said  # its study is not what it seems


BROKEN = {
    "a typing error": "typo: 1\n" + yaml.safe_dump(other()),
    "no YAML": "datasets: {\n",
    "no mapping": "- 1\n",
    "other values": yaml.safe_dump(put(other(), "datasets.tiny2.compute.threads", 0)),
    "no text": b"title: \xe9\n",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=list(BROKEN))
def test_a_broken_folder_is_named_and_stops_nothing_else(
    project: Path, capsys: pytest.CaptureFixture[str], text: str | bytes
) -> None:
    path = Path("studies/other/params.yaml")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    studies = config.Studies()
    assert (list(studies.broken()), studies.readable()) == (["other"], ["digits", "small"])
    assert studies.owner("tiny").study == "small"
    cell = grid.load().cell("train", dataset="digits", model="adm", seed="0", step="4")
    assert cell.params
    capsys.readouterr()
    for argv, code in (
        (["settings", "--study", "small"], 0),
        (["grid"], 0),
        (["plan", "small"], 0),
        (["plan"], 0),
        (["grid", "--write"], 2),
        (["grid", "--check"], 2),
        (["grid", "--study", "other"], 2),
        (["settings", "--study", "other"], 2),
    ):
        assert cli.main(argv) == code, argv
        said = capsys.readouterr().err
        assert all(
            line.startswith(("ipdiff: studies/other", "ipdiff: left out:", "ipdiff: note:"))
            for line in said.splitlines()
        )
        if code:
            assert "studies/other/params.yaml" in said
    assert Path("studies/small/dvc.yaml").exists()
    assert not Path("studies/other/dvc.yaml").exists()


def test_no_study_has_the_name_of_a_rule_or_a_stage() -> None:
    files = [ROOT / "workflow/Snakefile", *(ROOT / "workflow/rules").glob("*.smk")]
    rules = [name for file in files for name in re.findall(r"^rule (\w+):", file.read_text(), flags=re.MULTILINE)]
    assert len(rules) > 10
    assert {*rules, *STAGES, STORE.name} <= RESERVED


def test_folders_that_cannot_be_studies_are_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a b", "digits", "store", "train", ".hidden", "empty"):
        (project / "studies" / name).mkdir()
    for name in ("a b", "digits", "store", "train", ".hidden"):
        (project / "studies" / name / "params.yaml").write_text("title: no study\n")
    studies = config.Studies()
    assert studies.names == ["digits", "other", "small"]
    assert studies.readable() == studies.names
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "ipdiff: left out: studies/a b: a study's name cannot be part of a path; use letters, digits, '_' and '-'",
        "ipdiff: left out: studies/store: a study's name is a name that the workflow needs itself; choose another one",
        "ipdiff: left out: studies/train: a study's name is a name that the workflow needs itself; choose another one",
        "ipdiff: left out: studies/digits: the study digits is the root's params.yaml; rename the folder",
    ]
    assert config.Studies().readable() == studies.names
    assert capsys.readouterr().err == ""  # said once


def test_the_key_of_before_says_where_studies_lie_now(project: Path) -> None:
    write(project, {**other(tiny="digits"), "studies": {"digits": {}}}, config.DEFAULT)
    said = "params.yaml studies: a study is a folder now; move each to studies/NAME/params.yaml, with its own datasets"
    assert refusal(config.Studies().load, "digits").startswith(said)
    assert refusal(config.Studies().owner, "digits").startswith(said)
    assert config.Studies().owner("tiny").study == "small"


def test_a_new_folder_is_a_new_study(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["grid", "--write"]) == 0
    text = json.dumps(small()).replace('"tiny"', '"mine"').replace('"photos"', '"scans2"')
    write(project, json.loads(text), "new")
    capsys.readouterr()
    assert cli.main(["grid", "--study", "new", "--write"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "wrote studies/new/dvc.yaml"
    assert "train@mine-adm-s0-4\truns/mine/adm/s0/4" in said
    assert len(said) == 1 + len(grid.load().study("new"))
    assert cli.main(["grid", "--check"]) == 0


def test_models_are_those_of_the_data_sets_own_study(project: Path) -> None:
    raw = put(other(), "models.adm", {"family": "adm", "imported": True})
    write(project, raw, "other")
    known = grid.load()
    assert known.studies.imported() == [("tiny2", "adm"), ("photos2", "adm")]
    for dataset, verb in (("tiny", "train"), ("tiny2", "import")):
        maker = known.maker(f"runs/{dataset}/adm/s0/4/ema.safetensors")
        assert maker is not None
        assert maker.stage.verb == verb
    with pytest.raises(ConfigError, match="model adm is imported, not trained"):
        known.cell("train", dataset="tiny2", model="adm", seed="0", step="4")


# the project's own files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("study", STUDIES.names)
def test_dvc_writes_a_file_back_as_it_is(tmp_path: Path, study: str) -> None:
    """`dvc exp run -S` rewrites a params.yaml, every list of it anew: layout and comments stay."""
    from dvc.utils.hydra import apply_overrides
    from dvc.utils.serialize import modify_yaml, parse_yaml

    path = ROOT / config.path_of(study)
    text = path.read_text()
    copy = tmp_path / "params.yaml"
    copy.write_text(text)
    with modify_yaml(str(copy)):
        pass
    assert copy.read_text() == text
    name = next(iter(STUDIES.load(study).datasets))
    for number in (7, STUDIES.load(study).datasets[name].sampling.num_samples):
        apply_overrides(str(copy), [f"datasets.{name}.sampling.num_samples={number}"])
        found = copy.read_text().splitlines()
        assert [line for line, was in zip(found, text.splitlines(), strict=True) if line != was] == (
            [f"      num_samples: {number}"] if number == 7 else []
        )
    assert parse_yaml(text, path) == STUDIES.load(study).raw
    assert max(map(len, text.splitlines())) <= 80
    assert "#" in text


@pytest.mark.parametrize("study", STUDIES.names)
def test_an_editor_finds_the_schema_and_accepts_the_file(study: str) -> None:
    path = ROOT / config.path_of(study)
    first = path.read_text().splitlines()[0]
    where = first.removeprefix("# yaml-language-server: $schema=")
    assert where != first
    assert (path.parent / where).resolve() == ROOT / schema.PATH
    jsonschema.Draft202012Validator(json.loads(schema.render())).validate(STUDIES.load(study).raw)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("titles", "x"),
        ("datasets.tiny.compute.threads", 0),
        ("datasets.tiny.families.adm.training.lr", "fast"),
        ("datasets.tiny.families.adm.network.dropout", 1.5),
        ("datasets.tiny.source.channels", 2),
        ("seeds.default", [-1]),
        ("tables.table3.metrics", ["fidd"]),
        ("models.adm.gamma", "datasets"),
    ],
)
def test_the_schema_refuses_what_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(schema.render()))
    validator.validate(small())
    raw = put(small(), key, value)
    assert refusal(config.load, write(tmp_path, raw))
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(raw)


def test_every_key_has_a_meaning_in_the_schema() -> None:
    found = json.loads(schema.render())
    kinds = [found, *found["$defs"].values()]
    assert len(kinds) > 20
    lacking = [
        key
        for kind in kinds
        for key, value in kind["properties"].items()
        if "description" not in value and "$ref" not in json.dumps(value)
    ]
    assert lacking == ["dataset", "model", "sampler"]  # of a point: what they say
