"""Publishing leaves a whole artifact or none; reading notices what is not what was published."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipdiff.errors import IntegrityError, UserError
from ipdiff.pipeline.store.artifact import (
    STAGING,
    file_digest,
    lock_of,
    publishing,
    verify_inputs,
)
from ipdiff.pipeline.store.receipts import RECEIPTS
from ipdiff.work import recipes
from ipdiff.work.locks import locked
from ipdiff.work.recipes import RECIPE

FILES = {"a.npy": b"first file", "b.csv": b"second file"}
HEAD = {"stage": "train", "params": {"lr": 0.1}, "inputs": {}}
HERE = Path("runs/x/8")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def publish(directory: Path = HERE, files: dict[str, bytes] | None = None, **extra: object) -> None:
    files = FILES if files is None else files
    with publishing(directory, tuple(FILES), HEAD) as made:
        made.extra = dict(extra)
        for name, content in files.items():
            (made.staging / name).write_bytes(content)


def paths() -> tuple[str, ...]:
    return tuple(str(HERE / name) for name in (*FILES, RECIPE))


def test_a_published_artifact_is_whole_and_verifies() -> None:
    publish(state="abc")
    assert {path.name for path in HERE.iterdir()} == {*FILES, RECIPE}
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in FILES.items()}
    assert recipes.read(HERE / RECIPE) == recipes.sealed({**HEAD, "state": "abc", "outputs": md5})
    found = verify_inputs(paths())
    assert list(found) == list(paths())
    assert found == {
        **{str(HERE / name): digest for name, digest in md5.items()},
        paths()[2]: file_digest(HERE / RECIPE),
    }
    assert list(STAGING.iterdir()) == []


def test_a_recipe_guards_its_own_fields() -> None:
    publish(state="abc")
    path = HERE / RECIPE
    path.write_text(path.read_text().replace('"abc"', '"xyz"'))
    with pytest.raises(IntegrityError, match=str(path)):
        recipes.read(path)


def test_two_publications_of_the_same_have_the_same_bytes() -> None:
    publish()
    first = {path.name: path.read_bytes() for path in HERE.iterdir()}
    publish()
    publish(Path("runs/y/8"))
    assert {path.name: path.read_bytes() for path in HERE.iterdir()} == first
    assert (Path("runs/y/8") / RECIPE).read_bytes() == first[RECIPE]


def test_a_receipt_says_when_and_where_but_the_recipe_does_not() -> None:
    publish()
    receipt = json.loads((RECEIPTS / f"{HERE}.json").read_text())
    assert receipt["recipe"] == file_digest(HERE / RECIPE)
    assert receipt["stage"] == "train"
    assert receipt["seconds"] >= 0
    assert "numpy" in receipt["versions"]
    assert [path.name for path in (RECEIPTS / HERE.parent).iterdir()] == ["8.json"]
    assert not {"seconds", "versions", "machine"} & recipes.read(HERE / RECIPE).keys()


def test_receipts_of_names_with_a_dot_do_not_collide() -> None:
    publish(Path("metrics/ddim0.5-quad20"))
    publish(Path("metrics/ddim0.5-quad10"))
    assert {path.name for path in (RECEIPTS / "metrics").iterdir()} == {"ddim0.5-quad20.json", "ddim0.5-quad10.json"}


def fail_inside() -> None:
    with publishing(HERE, tuple(FILES), HEAD) as made:
        (made.staging / "a.npy").write_bytes(b"half")
        raise KeyboardInterrupt


def test_nothing_appears_when_the_stage_fails() -> None:
    with pytest.raises(KeyboardInterrupt):
        fail_inside()
    assert not HERE.exists()
    assert not RECEIPTS.exists()
    assert list(STAGING.iterdir()) == []


def test_what_was_there_stays_when_the_stage_fails() -> None:
    publish()
    with pytest.raises(KeyboardInterrupt):
        fail_inside()
    assert (HERE / "a.npy").read_bytes() == FILES["a.npy"]
    verify_inputs(paths())


@pytest.mark.parametrize("written", [{}, {"a.npy": b"first file"}, {"b.csv": b"", "other": b""}])
def test_a_file_that_the_stage_forgot_is_named_and_nothing_published(written: dict[str, bytes]) -> None:
    forgotten = ", ".join(name for name in FILES if name not in written)
    with pytest.raises(RuntimeError, match=rf"^{HERE}: the stage did not write {forgotten}; nothing was published$"):
        publish(files=written)
    assert not HERE.exists()
    assert list(STAGING.iterdir()) == []


def test_files_that_are_not_declared_are_not_published() -> None:
    publish(files={**FILES, "debug.log": b"..."})
    assert {path.name for path in HERE.iterdir()} == {*FILES, RECIPE}


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("failing", ["a.npy", "b.csv", RECIPE])
def test_the_recipe_is_written_last(monkeypatch: pytest.MonkeyPatch, failing: str, older: bool) -> None:
    if older:
        publish(files={"a.npy": b"old", "b.csv": b"old"})
    replace = Path.replace

    def full_disk(self: Path, target: Path) -> Path:
        if self.name == failing:
            raise OSError("no space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        publish()
    assert not (HERE / RECIPE).exists()
    assert list(STAGING.iterdir()) == []
    monkeypatch.undo()
    publish()
    verify_inputs(tuple(f"{HERE}/{name}" for name in FILES))


def test_files_reach_the_disk_before_they_get_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    replace, unlink, fsync = Path.replace, Path.unlink, os.fsync

    def note_fsync(handle: int) -> None:
        events.append(f"flush {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        fsync(handle)

    publish()
    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", lambda self, to: events.append(f"move {self.name}") or replace(self, to))
    monkeypatch.setattr(
        Path, "unlink", lambda self, **options: events.append(f"remove {self.name}") or unlink(self, **options)
    )
    publish()
    here = "flush 8"
    assert events[:3] == ["flush a.npy", "flush b.csv", f"flush {RECIPE}"]
    assert events[3:9] == [f"remove {RECIPE}", here, "move a.npy", "move b.csv", here, f"move {RECIPE}"]
    assert events[9:] == [here, "flush x", "flush runs", f"flush {Path.cwd().name}", "move 8.part"]


@pytest.fixture
def other_disk() -> Iterator[Path]:
    """A directory on another file system than the project's."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK) or shared.stat().st_dev == Path().stat().st_dev:
        pytest.skip("needs a second file system: /dev/shm cannot be written, or is the one of the temporary directory")
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


@pytest.mark.parametrize("elsewhere", ["work", "runs"])
def test_work_and_artifacts_may_be_on_different_file_systems(other_disk: Path, elsewhere: str) -> None:
    Path(elsewhere).symlink_to(other_disk)
    publish(state="old")
    publish(state="new")
    assert Path("work").stat().st_dev != Path("runs").stat().st_dev
    assert {path.name: oct(path.stat().st_mode)[-3:] for path in HERE.iterdir()} == dict.fromkeys(
        (*FILES, RECIPE), "644"
    )
    assert recipes.read(HERE / RECIPE)["state"] == "new"
    verify_inputs(paths())
    assert list(STAGING.iterdir()) == []


def test_a_full_disk_on_the_other_file_system_leaves_no_half_file(
    other_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("work").symlink_to(other_disk)
    publish()
    copy = shutil.copy

    def full_disk(source: Path, target: Path) -> None:
        copy(source, target)
        if source.name == "b.csv":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copy", full_disk)
    with pytest.raises(OSError, match="No space"):
        publish(files={"a.npy": b"new", "b.csv": b"new"})
    assert {path.name for path in HERE.iterdir()} == {*FILES}
    with pytest.raises(UserError, match="is missing"):
        verify_inputs(paths())


@pytest.mark.parametrize("position", [0, 5, 9])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_is_found_and_the_file_named(position: int, bit: int) -> None:
    publish()
    expected = file_digest(HERE / "a.npy")
    content = bytearray(FILES["a.npy"])
    content[position] ^= 1 << bit
    (HERE / "a.npy").write_bytes(content)
    with pytest.raises(IntegrityError) as caught:
        verify_inputs(paths())
    assert caught.value.path == HERE / "a.npy"
    assert (caught.value.expected, caught.value.got) == (expected, hashlib.md5(content).hexdigest())
    assert str(caught.value).startswith(f"{HERE}/a.npy: expected {expected}, found ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"first fil", b"first file\n"])
def test_a_truncated_or_longer_file_is_found(content: bytes) -> None:
    publish()
    (HERE / "a.npy").write_bytes(content)
    with pytest.raises(IntegrityError):
        verify_inputs(paths())


def test_swapped_files_are_found() -> None:
    publish()
    (HERE / "a.npy").rename(HERE / "c")
    (HERE / "b.csv").rename(HERE / "a.npy")
    (HERE / "c").rename(HERE / "b.csv")
    with pytest.raises(IntegrityError):
        verify_inputs((f"{HERE}/b.csv",))


def test_a_file_of_another_run_is_found() -> None:
    publish()
    publish(Path("runs/y/8"), {"a.npy": b"another", "b.csv": b"another"})
    (Path("runs/y/8") / "a.npy").replace(HERE / "a.npy")
    with pytest.raises(IntegrityError):
        verify_inputs(paths())


@pytest.mark.parametrize("name", [*FILES, RECIPE])
def test_a_missing_file_is_named_with_what_to_do(name: str) -> None:
    publish()
    (HERE / name).unlink()
    with pytest.raises(
        UserError, match=rf"^{HERE}/{name} is missing: make it \(snakemake {HERE}/{name}, or dvc repro\)"
    ):
        verify_inputs((f"{HERE}/{name}",))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"outputs": 3}', "\x80"])
def test_a_damaged_recipe_is_an_integrity_error(text: str) -> None:
    publish()
    (HERE / RECIPE).write_bytes(text.encode("latin-1"))
    with pytest.raises(IntegrityError, match=rf"^{HERE}/{RECIPE}: expected a (JSON )?recipe"):
        verify_inputs((f"{HERE}/a.npy",))


def test_a_missing_recipe_is_said_in_words() -> None:
    with pytest.raises(UserError, match="runs/x/8/recipe.json is missing: that artifact has not been made"):
        recipes.read(HERE / RECIPE)


def test_raw_data_has_no_recipe_and_is_digested_all_the_same(tmp_path: Path) -> None:
    Path("raw").mkdir()
    Path("raw/data.zip").write_bytes(b"zip")
    found = verify_inputs(("raw/data.zip",), raw="raw/data.zip")
    assert found == {"raw/data.zip": hashlib.md5(b"zip").hexdigest()}


def test_a_file_without_its_commit_marker_is_refused(tmp_path: Path) -> None:
    Path("data").mkdir()
    Path("data/images.npy").write_bytes(b"half published")
    with pytest.raises(UserError, match="data/recipe.json is missing"):
        verify_inputs(("data/images.npy",))


def test_the_digest_of_a_directory_is_of_names_and_bytes() -> None:
    def tree(root: str, files: dict[str, bytes]) -> str:
        for name, content in files.items():
            path = Path(root) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return file_digest(Path(root))

    base = tree("one", {"a.png": b"1", "sub/b.png": b"2"})
    assert tree("same", {"sub/b.png": b"2", "a.png": b"1"}) == base
    assert tree("bytes", {"a.png": b"1", "sub/b.png": b"3"}) != base
    assert tree("name", {"a.png": b"1", "sub/c.png": b"2"}) != base
    assert tree("place", {"a.png": b"1", "b.png": b"2"}) != base
    assert tree("swap", {"a.png": b"2", "sub/b.png": b"1"}) != base
    listing = [{"md5": hashlib.md5(c).hexdigest(), "relpath": n} for n, c in (("a.png", b"1"), ("sub/b.png", b"2"))]
    assert base == hashlib.md5(json.dumps(listing).encode()).hexdigest() + ".dir"  # as DVC has it
    assert tree("one", {".git/config": b"of a cloned data set"}) == base


def test_a_large_file_is_read_in_blocks() -> None:
    content = os.urandom(3 * 2**20 + 17)
    Path("large").write_bytes(content)
    assert file_digest(Path("large")) == hashlib.md5(content).hexdigest()


def test_what_killed_stages_left_is_swept_and_what_others_are_making_is_not() -> None:
    mine, dead, living = (STAGING / f"runs@{name}@@abc" for name in ("x@8", "y@8", "z@8"))
    for path in (mine, dead, living):
        path.mkdir(parents=True)
        (path / "half.npy").write_bytes(b"half")
    HERE.mkdir(parents=True)
    (HERE / ".a.npy.part").write_bytes(b"half")
    with locked(lock_of(HERE)), locked(lock_of(Path("runs/z/8"))):
        publish()
    assert list(STAGING.iterdir()) == [living]
    assert {path.name for path in HERE.iterdir()} == {*FILES, RECIPE}
