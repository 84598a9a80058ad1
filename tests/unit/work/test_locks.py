"""Locks are given back by whoever ends, and shards finish a set whoever works at it."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from unit.tiny import flip_bit
from unit.told import heard

from ipdiff.errors import UserError
from ipdiff.pipeline.stages import STAGES
from ipdiff.work import launch, progress
from ipdiff.work.files import write_whole
from ipdiff.work.locks import locked, locked_if_free
from ipdiff.work.shards import Shards

HOLD = """
import sys
from pathlib import Path
from ipdiff.work.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds tmp_path/lock until its stdin is closed."""
    line = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("end", ["kill", "close"])
def test_a_lock_is_free_when_its_holder_ends(tmp_path: Path, holder, end: str) -> None:
    told: list[str] = []

    def waiting(who: str) -> None:
        told.append(who)
        holder.kill() if end == "kill" else holder.stdin.close()

    with locked_if_free(tmp_path / "lock") as free:
        assert not free
    with locked(tmp_path / "lock", waiting) as lock:
        assert lock.waited
    assert told == [f"process {holder.pid} on {os.uname().nodename}"]
    with locked_if_free(tmp_path / "lock") as free:
        assert free


def test_a_shared_lock_keeps_others_out_but_not_those_who_share(tmp_path: Path) -> None:
    with locked(tmp_path / "x", shared=True) as one, locked(tmp_path / "x", shared=True) as other:
        assert not one.waited
        assert not other.waited
        with locked_if_free(tmp_path / "x") as free:
            assert not free


def test_a_file_system_without_locks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match="this file system has no file locks"), locked(tmp_path / "x"):
        pass


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_whole(path, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


# Shards

UNITS = [range(3), range(3, 6), range(6, 8)]


def squares(unit: range) -> dict[str, np.ndarray]:
    return {"square": np.arange(unit.start, unit.stop) ** 2}


def test_parts_come_in_order(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "s")
    with heard() as told:
        shards.complete(UNITS, squares)
    assert (told.begun, told.done) == ([("images", 8, 0)], [3, 6, 8])
    assert np.concatenate([part["square"] for part in shards.parts(UNITS)]).tolist() == [n * n for n in range(8)]
    shards.drop()
    assert not (tmp_path / "s").exists()


def test_what_others_have_finished_counts_from_the_beginning(tmp_path: Path) -> None:
    Shards(tmp_path)._put(UNITS[1], squares(UNITS[1]))

    def beside(unit: range) -> dict[str, np.ndarray]:
        if unit == UNITS[0]:  # another process finishes the last one meanwhile
            Shards(tmp_path, 1, 2)._put(UNITS[2], squares(UNITS[2]))
        progress.more(1)
        return squares(unit)

    with heard() as told:
        Shards(tmp_path, 0, 2).complete(UNITS, beside)
    assert (told.begun, told.done[:2], told.done[-1]) == ([("images", 8, 3)], [4, 8], 8)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_process_begins_with_its_own_units_and_helps_with_the_others(tmp_path: Path, rank: int) -> None:
    done: list[range] = []
    Shards(tmp_path, rank, 3).complete(UNITS, lambda unit: done.append(unit) or squares(unit))
    assert done[0] == UNITS[rank]
    assert sorted(done, key=lambda unit: unit.start) == UNITS


def test_what_is_there_is_not_computed_again_unless_it_is_damaged(tmp_path: Path) -> None:
    shards, done = Shards(tmp_path), list[range]()
    shards.complete(UNITS, squares)
    flip_bit(next(tmp_path.glob("000000003-*.safetensors")))
    with pytest.raises(KeyError, match=r"items 3\.\.5 are missing"):
        list(shards.parts(UNITS))
    shards.complete(UNITS, lambda unit: done.append(unit) or squares(unit))
    assert done == [UNITS[1]]


def test_only_other_versions_of_a_set_are_dropped(tmp_path: Path) -> None:
    for name in ("old", "new"):
        Shards(tmp_path / name).complete(UNITS, squares)
    Shards(tmp_path / "new").drop_others()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


# Which process am I


def test_a_process_alone_is_the_first_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert launch.place() == (0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert launch.place() == (1, 4)


@pytest.mark.parametrize(("rank", "count"), [("4", "4"), ("-1", "2"), ("x", "2"), ("0", "")])
def test_places_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch, rank: str, count: str) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", count)
    with pytest.raises(UserError, match="as torchrun sets them"):
        launch.place()


def test_only_stages_that_can_share_their_work_are_started_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("IPDIFF_PROCESSES", "4")
    verbs = ("train", "sample", "reference", "neighbours", "halves", "evaluate", "resume", "prepare")
    assert [launch.wanted(shared=STAGES[verb].shared) for verb in verbs] == [4, 4, 4, 4, 4, 4, 1, 1]
    monkeypatch.setenv("RANK", "0")  # torchrun has started them already
    assert launch.wanted(shared=True) == 1


JOIN = """
import sys
from pathlib import Path
from ipdiff.work.locks import join
join(Path(sys.argv[1]), lambda: print("alone", flush=True))
print("joined", flush=True)
sys.stdin.read()
"""


def test_only_who_joins_a_lock_that_nobody_holds_is_alone_whatever_became_of_the_others(tmp_path: Path) -> None:
    def joining() -> subprocess.Popen[str]:
        line = [sys.executable, "-c", JOIN, str(tmp_path / "lock")]
        return subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with joining() as one:
        assert [one.stdout.readline(), one.stdout.readline()] == ["alone\n", "joined\n"]
        with joining() as two:
            assert two.stdout.readline() == "joined\n"
            one.kill()
            one.wait()
            with joining() as three:  # the second is still there
                assert three.stdout.readline() == "joined\n"
                three.kill()
            two.kill()
    with joining() as four:
        assert four.stdout.readline() == "alone\n"
        four.kill()
