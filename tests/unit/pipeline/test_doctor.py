"""`ipdiff doctor`: each finding when it is there, and when it is not."""

import hashlib
import json
import subprocess
from dataclasses import replace

import pytest
from inception import write_inception
from unit import params_factory
from unit.params_factory import drop, put, small

from ipdiff import cli
from ipdiff.metrics.spec import INCEPTION_SHA256
from ipdiff.pipeline import config, grid
from ipdiff.pipeline.commands.planning import memory
from ipdiff.pipeline.commands.study import doctor
from ipdiff.pipeline.commands.study.doctor import FINE, NOTE, WRONG, Finding
from ipdiff.pipeline.engines import dvc_files


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project that has everything, and whose default study is `small`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "DEFAULT", "small")
    for name in ("IPDIFF_INCEPTION", "IPDIFF_RAW"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".dvc").mkdir()
    raw = small()
    write(tmp_path, raw)
    return raw


def write(directory, raw, own=("tiny",)):
    """The study small with its own data sets, and the other ones as a study of their own."""
    datasets = raw["datasets"]
    params_factory.write(directory, {**raw, "datasets": {name: datasets[name] for name in own}})
    others = {name: dataset for name, dataset in datasets.items() if name not in own}
    if others:
        params_factory.write(directory, {**raw, "datasets": others, "tables": {}, "figures": {}}, "other")
    else:
        (directory / config.path_of("other")).unlink(missing_ok=True)


def about(name: str, study: str | None = None) -> list[Finding]:
    return [finding for finding in doctor.examine(study) if finding.about == name]


def test_a_whole_project_lacks_nothing(project, capsys):
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = {line.split()[1] for line in lines}
    assert len({line.index(line.split(maxsplit=2)[2]) for line in lines}) == 1
    assert {"python", "torch", "CUDA", "CPU", "snakemake", "dvc", "git", "disk"} <= names
    assert {"studies", "store", "tiny"} <= names
    assert not [line for line in lines if line.startswith(WRONG)]


def test_json_says_the_same(project, capsys):
    assert cli.main(["doctor", "--json"]) == 0
    findings = [Finding(**found) for found in json.loads(capsys.readouterr().out)]
    steady = [replace(finding, subject="") for finding in doctor.examine() if finding.about != "disk"]
    assert [finding for finding in findings if finding.about != "disk"] == steady
    assert {"ipdiff", "system", "python"} <= {finding.about for finding in findings}
    assert cli.main(["doctor", "--json", "--study", "smalls"]) == 2
    assert capsys.readouterr().out == ""


def test_json_and_something_that_is_lacking(project, tmp_path, capsys):
    (tmp_path / ".dvc").rmdir()
    assert cli.main(["doctor", "--json"]) == 2
    marks = {found["about"]: found["mark"] for found in json.loads(capsys.readouterr().out)}
    assert marks["store"] == WRONG
    assert marks["python"] == FINE


def test_another_studys_missing_archive_is_worth_a_note_and_its_own_is_lacking(project, tmp_path):
    (photos,) = about("photos")
    assert (photos.mark, photos.text.partition(":")[0]) == (NOTE, "raw/photos.zip is not here")
    write(tmp_path, project, ["tiny", "photos"])
    assert about("photos")[0].mark == WRONG
    assert cli.main(["doctor"]) == 2
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/photos.zip").touch()
    assert about("photos")[0].mark == FINE
    (tmp_path / "data/photos").mkdir(parents=True)
    (tmp_path / "data/photos/recipe.json").touch()
    assert about("photos")[0].text == "images are prepared"


def test_gpu_memory_is_said_of_what_trains_there_and_held_against_the_card(project, tmp_path):
    assert about("GPU memory") == []  # its runs train on the CPU
    put(project, "datasets.tiny.compute", {"device": "cuda", "threads": 1, "precision": "bfloat16"})
    for reduction, mark, cut in (("fast", NOTE, True), ("exact", WRONG, False)):
        put(project, "datasets.tiny.families.adm.training.reduction", reduction)
        write(tmp_path, project)
        known = grid.load()
        (one,) = memory.of_runs({"tiny adm": known.studies.load("small").run_spec("tiny", "adm", 0)})
        for card, found_mark, said in (
            (None, FINE, f"for {one.images} at a time"),
            (one.total, FINE, ", of "),
            (one.total - 1, mark, f"which hold {one.images - 1} at a time"),
            (one.fixed, WRONG, "which hold 0 at a time"),
        ):
            found = next(iter(doctor._memory(known, "small", card)))
            assert (found.mark, found.about, found.text.partition(":")[0]) == (
                found_mark,
                "GPU memory",
                "training tiny adm",
            )
            assert said in found.text
            assert found.text.endswith(", and it is cut so") == (cut and card is not None and card < one.total)
    assert {finding.mark for finding in about("GPU memory")} <= {FINE, NOTE}


def test_published_files(project, tmp_path):
    put(project, "downloads", {"a.zip": {"size": 3, "url": "https://a/a.zip"}, "b.zip": {"how": "Ask for it."}})
    put(drop(project, "datasets.photos.source.raw"), "datasets.photos.source.archives", {"a.zip": None})
    write(tmp_path, project)
    assert about("photos")[0].text == "raw/a.zip is not here: `ipdiff prepare` downloads it from https://a/a.zip"
    (tmp_path / "raw").mkdir()
    for content, mark, text in [(b"123", FINE, "raw/a.zip is here"), (b"12", WRONG, "raw/a.zip has 2 bytes of 3")]:
        (tmp_path / "raw/a.zip").write_bytes(content)
        assert about("photos")[0].mark == mark
        assert text in about("photos")[0].text
    put(project, "datasets.photos.source.archives", {"b.zip": None})
    write(tmp_path, project)
    assert about("photos")[0].text == "raw/b.zip is not here: Ask for it."


def test_a_file_with_mirrors_names_them_all(project, tmp_path):
    places = {"url": "https://a/a.zip", "mirrors": ["https://b/a.zip", "https://c/a.zip"]}
    put(project, "downloads", {"a.zip": places})
    put(drop(project, "datasets.photos.source.raw"), "datasets.photos.source.archives", {"a.zip": None})
    write(tmp_path, project)
    assert about("photos")[0].text.endswith("downloads it from https://a/a.zip, or https://b/a.zip, or https://c/a.zip")


def test_published_strengths_stand_beside_the_study_s_own():
    said = {line.text.split()[2]: line.text for line in doctor._gamma(config.load(config.path_of("paper")))}
    assert len(said) == 5
    assert "cifar10 is 0.1; published: 0.1 in the paper's tables, 0.15 in the official README" in said["cifar10"]
    assert said["ffhq128"].endswith("is 0.1; published: 0.1")


def test_ffhq_s_list_is_looked_for(project, tmp_path):
    put(project, "downloads", {"a.zip": {"how": "Ask."}})
    source = {"reader": "ffhq", "image_size": 128, "channels": 3, "archives": {"a.zip": None}}
    write(tmp_path, put(project, "datasets.photos.source", source))
    assert [(one.mark, one.text.partition(" is not")[0]) for one in about("photos")] == [
        (NOTE, "raw/a.zip"),
        (NOTE, "raw/ffhq-dataset-v2.json"),
    ]
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/ffhq-dataset-v2.json").touch()
    assert about("photos")[1].mark == FINE


def test_the_inception_file(project, tmp_path, monkeypatch):
    put(project, "datasets.tiny.features", "inception")
    put(project, "datasets.tiny.inception", {"sha256": INCEPTION_SHA256})
    write(tmp_path, project)
    missing = about("tiny")[1]
    assert missing.mark == WRONG
    assert "get it from https://" in missing.text
    assert "IPDIFF_INCEPTION" in missing.text
    monkeypatch.setenv("IPDIFF_INCEPTION", str(write_inception(tmp_path / "net.pt")))
    other = about("tiny")[1]
    assert other.mark == WRONG
    assert f"expected {INCEPTION_SHA256}; get it again" in other.text
    found = other.text.partition("sha256 ")[2][:64]
    put(project, "datasets.tiny.inception", {"sha256": found})
    write(tmp_path, project)
    assert about("tiny")[1].mark == FINE
    assert about("tiny")[1].text.endswith("net.pt, verified")
    put(project, "datasets.tiny.inception", {"raw": "raw/net.pt"})
    write(tmp_path, project)
    assert about("tiny")[1].mark == WRONG


def test_a_network_that_a_data_set_names(project, tmp_path):
    (tmp_path / "net.pt").write_bytes(b"a program")
    settings = {"path": "net.pt", "image_size": 8, "resize": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3, "width": 5}
    put(project, "datasets.tiny.features", "torchscript")
    put(project, "tables.table3.metrics", ["fid"])
    for sha256, path, mark, said in (
        (hashlib.sha256(b"a program").hexdigest(), "net.pt", FINE, "the network is net.pt, verified"),
        ("0" * 64, "net.pt", WRONG, f"expected {'0' * 64}"),
        ("0" * 64, "absent.pt", WRONG, "the network absent.pt cannot be read: No such file"),
    ):
        put(project, "datasets.tiny.torchscript", {**settings, "path": path, "sha256": sha256})
        write(tmp_path, project)
        found = about("tiny")[1]
        assert found.mark == mark
        assert said in found.text


def test_a_broken_params_file_is_a_finding_not_an_end(project, tmp_path):
    (tmp_path / config.path_of("other")).write_text("datasets: {\n")
    assert [finding.mark for finding in about("studies")] == [FINE, NOTE]
    assert [finding.mark for finding in about("studies", "other")] == [WRONG]
    assert cli.main(["doctor"]) == 0
    (tmp_path / config.path_of("small")).write_text("datasets: {\n")
    assert [finding.mark for finding in about("studies")] == [WRONG, NOTE, WRONG][1:]
    assert about("python")[0].mark == FINE
    assert cli.main(["doctor"]) == 2


def test_a_damaged_lock_and_no_store(project, tmp_path):
    assert about("store")[0] == Finding(NOTE, "store", "nothing is recorded yet in a dvc.lock")
    lock = dvc_files.lock_of("small")
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text("stages: 3\n")
    assert about("store")[0].mark == WRONG
    lock.unlink()
    (tmp_path / ".dvc").rmdir()
    assert about("store")[0].mark == WRONG


def test_git_is_asked(project, tmp_path):
    assert about("git")[0].mark == NOTE
    me = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], [*me, "commit", "-qm", "x", "--allow-empty"]):
        subprocess.run(["git", *command], check=True)
    assert about("git")[0].text.startswith("at ")


def test_a_study_that_is_not_there(project, capsys):
    assert cli.main(["doctor", "--study", "smalls"]) == 2
    assert "did you mean 'small'?" in capsys.readouterr().err


def test_the_columns_are_as_wide_as_the_longest_name(project, tmp_path, capsys):
    raw = put(project, "datasets.a_name_of_more_than_thirty_letters", small()["datasets"]["photos"])
    put(raw, "datasets.photos.source.raw", "raw/x.zip")
    write(tmp_path, raw)
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    starts = {line.index(text) for line in lines for text in ("raw/photos.zip is not here", "3.1") if text in line}
    assert starts == {lines[0].index(lines[0].split(maxsplit=2)[2])}
    assert doctor.lines([]) == []


def test_what_several_data_sets_lack_is_said_once(project, tmp_path):
    for name in ("more", "tiny_too"):
        put(project, f"datasets.{name}", small()["datasets"]["photos"])
    put(project, "datasets.tiny_too.source.raw", "raw/other.zip")
    for name in ("photos", "more"):
        put(project, f"datasets.{name}.features", "inception")
    write(tmp_path, project)
    found = [finding for finding in doctor.examine() if finding.about.endswith(" data sets")]
    files, network = found
    assert (files.mark, files.about, network.mark, network.about) == (NOTE, "3 data sets", NOTE, "2 data sets")
    assert files.text.startswith("each of raw/photos.zip (photos, more), raw/other.zip (tiny_too) is not here: put it")
    assert network.text.startswith("the Inception network inception-2015-12-05.pt is missing: get it from https://")
    assert network.text.endswith(" (photos, more)")
    write(tmp_path, project, ["tiny", "more"])
    assert [finding.mark for finding in doctor.examine() if finding.about.endswith(" data sets")] == [WRONG, WRONG]


def test_a_network_of_several_data_sets_is_read_once(project, tmp_path, monkeypatch):
    monkeypatch.setenv("IPDIFF_INCEPTION", str(write_inception(tmp_path / "net.pt")))
    for name in ("tiny", "photos"):
        put(project, f"datasets.{name}.features", "inception")
        put(project, f"datasets.{name}.inception", {"sha256": INCEPTION_SHA256})
    write(tmp_path, project)
    (wrong,) = [finding for finding in doctor.examine() if "sha256" in finding.text]
    assert (wrong.mark, wrong.about) == (WRONG, "2 data sets")
    assert wrong.text.endswith("get it again (photos, tiny)")
