"""`ipdiff report --against`: where the numbers of a git revision are found. The numbers are SYNTHETIC; git is real."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from unit import params_factory

from ipdiff import cli
from ipdiff.pipeline import grid
from ipdiff.pipeline.store import artifact, dvc_cache

PUBLISHED = Path("published/small/metrics.json")
LOCK = Path("studies/small/dvc.lock")


def git(*arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A project in a folder of a git repository, whose evaluations are here; their directories."""
    project = tmp_path / "repository" / "project"
    project.mkdir(parents=True)
    monkeypatch.chdir(project)
    params_factory.write(project, params_factory.small())
    Path(".gitignore").write_text("metrics\nreport\n.dvc\n")
    found = [cell.directory for cell in grid.load().study("small") if cell.stage.verb == "evaluate"]
    for place, directory in enumerate(found):
        put(directory, float(place))
    subprocess.run(["git", "init", "--quiet", ".."], check=True)
    return found


def put(directory: str, fid: float) -> None:
    """Make an evaluation's metrics file."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    Path(directory, "metrics.json").write_text(json.dumps({"fid": fid}))


def commit() -> None:
    git("add", "--all")
    git("commit", "--quiet", "--allow-empty", "-m", "x")


def publish(numbers: dict[str, float]) -> None:
    PUBLISHED.parent.mkdir(parents=True, exist_ok=True)
    PUBLISHED.write_text(json.dumps({directory: {"fid": fid} for directory, fid in numbers.items()}))


def lock(cells: list[str]) -> None:
    """Record what is here in dvc.lock."""
    paths = [f"{directory}/metrics.json" for directory in cells]
    outs = [{"path": path, "md5": artifact.file_digest(Path(path))} for path in paths]
    LOCK.write_text(yaml.safe_dump({"stages": {"evaluate": {"outs": outs}}}))


def keep(cells: list[str]) -> None:
    """Copy what is here into DVC's cache."""
    for directory in cells:
        file = Path(directory, "metrics.json")
        kept = dvc_cache.path_in(dvc_cache.root(), artifact.file_digest(file))
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(file.read_bytes())


def said(capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    """What `ipdiff report --against HEAD` prints, on the stream that goes with its exit code."""
    capsys.readouterr()
    assert cli.main(["report", "--study", "small", "--against", "HEAD"]) == code
    told = capsys.readouterr()
    assert (told.err if code else told.out).count("\n") >= 1
    return told.err if code else told.out


def test_published_numbers_of_a_revision_are_held_against_those_here(
    cells: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    publish({cells[0]: 0.0, cells[1]: 3.0, "metrics/tiny/gone/s0/8/ancestral-5": 1.0})
    commit()
    publish({cells[0]: 99.0})  # what is published now counts only where no artifact is here
    text = said(capsys)
    assert text.startswith("report/small/against.html\n1 of 2 numbers differ from HEAD (")
    assert f"{len(cells) - 2} only now, 1 only there" in text
    assert f"FID: 1 differ, 1 of them lower; most: 3 to 1 ({cells[1]})" in text
    assert "2.9" not in Path("report/small/against.html").read_text()


def test_a_clone_without_artifacts_compares_what_is_published(
    cells: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    publish({cells[0]: 0.0})
    commit()
    for directory in cells:
        Path(directory, "metrics.json").unlink()
    publish({cells[0]: 0.5})
    assert "1 of 1 numbers differ" in said(capsys)


def test_what_dvc_lock_records_is_found_in_the_cache_before_it_is_believed_of_published(
    cells: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lock(cells)
    keep(cells)
    publish(dict.fromkeys(cells, 77.0))
    commit()
    put(cells[2], 2.5)
    assert f"1 of {len(cells)} numbers differ" in (text := said(capsys))
    assert f"most: 2 to 2.5 ({cells[2]})" in text


def test_without_a_cache_equal_digests_are_equal_numbers_and_others_are_counted(
    cells: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lock(cells)
    commit()
    put(cells[2], 2.5)
    text = said(capsys)
    assert f"0 of {len(cells) - 1} numbers differ" in text
    assert "of 1 evaluations HEAD (" in text


def test_a_damaged_object_of_the_cache_is_named(cells: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    lock(cells)
    keep(cells)
    commit()
    kept = dvc_cache.path_in(dvc_cache.root(), artifact.file_digest(Path(cells[0], "metrics.json")))
    kept.write_text('{"fid": 0.1}')
    assert str(kept) in said(capsys, 3)
    assert not Path("report/small/against.html").exists()


@pytest.mark.parametrize("harm", ["no commit", "no numbers", "damaged", "nothing now"])
def test_what_cannot_be_compared_is_said_in_a_line(
    cells: list[str], capsys: pytest.CaptureFixture[str], harm: str
) -> None:
    if harm == "damaged":
        PUBLISHED.parent.mkdir(parents=True)
        PUBLISHED.write_text("[1")
    if harm == "nothing now":
        publish({cells[0]: 1.0})
    if harm != "no commit":
        commit()
    if harm in ("damaged", "nothing now"):
        PUBLISHED.unlink()
    if harm == "nothing now":
        for directory in cells:
            Path(directory, "metrics.json").unlink()
    expected = {
        "no commit": "git knows no revision 'HEAD' here",
        "no numbers": "has no metrics in studies/small/dvc.lock and no published/small/metrics.json",
        "damaged": "is no JSON object",
        "nothing now": "has no metrics here and no published/small/metrics.json",
    }
    text = said(capsys, 2)
    assert expected[harm] in text
    assert text.count("\n") == 1
    assert not Path("report").exists()
