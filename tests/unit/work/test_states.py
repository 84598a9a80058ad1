"""Train states on disk: found by digest, damaged ones passed over, the newest few kept."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import numpy as safe
from unit.tiny import flip_bit

from ipdiff.pipeline import grid, job
from ipdiff.work.train_states import KINDS, States, Tensors, chunks, opened, state_digest, tensors_of

ROOT = Path(__file__).parents[3]


def tensors(value):
    return {
        "loss": np.full(3, value, np.float32),
        "step": np.array(value, dtype=np.int64),
        "timesteps.history": np.full((2, 2), value / 3),
    }


def names(states):
    return sorted(path.name for path in states.directory.iterdir() if not path.name.startswith("."))


def test_a_state_comes_back_as_it_was(tmp_path):
    states = States(tmp_path / "new" / "run")
    digest = states.save(7, tensors(7))
    step, path = states.newest(7)
    assert step == 7
    found = tensors_of(opened(path))
    assert found.keys() == tensors(7).keys()
    for name, value in tensors(7).items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert np.array_equal(found[name], value)
    assert state_digest(found) == digest
    assert state_digest(tensors(8)) != digest


def test_files_are_named_by_their_digest(tmp_path):
    states = States(tmp_path)
    digest = states.save(12, tensors(1))
    (path,) = tmp_path.glob("0*")
    assert path == states.find(12, digest)
    assert path.name == f"000000012-{hashlib.md5(path.read_bytes()).hexdigest()}.safetensors"
    assert states.find(12, "0" * 32) is None
    assert states.find(11, digest) is None


@pytest.mark.parametrize("damage", ["torn", "empty", "flipped"])
def test_a_damaged_newest_state_is_passed_over(tmp_path, damage):
    states = States(tmp_path)
    older, newer = states.save(1, tensors(1)), states.save(2, tensors(2))
    path = states.find(2, newer)
    if damage == "flipped":
        flip_bit(path)
    else:
        path.write_bytes(path.read_bytes()[: 100 if damage == "torn" else 0])
    assert states.newest(9)[0] == 1
    assert states.find(2, newer) is None
    assert states.find(1, older)
    assert states.save(2, tensors(2)) == newer  # heals the file of that name
    assert states.newest(9)[0] == 2
    assert states.find(2, newer)


def test_all_damaged_is_none_and_so_is_no_directory(tmp_path):
    states = States(tmp_path / "run")
    assert states.newest(9) is None
    assert states.find(1, "0" * 32) is None
    flip_bit(states.find(1, states.save(1, tensors(1))))
    assert states.newest(9) is None


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_few_are_kept(tmp_path, keep):
    states = States(tmp_path, keep)
    for step in (5, 10, 100, 1000):
        states.save(step, tensors(step))
    assert [int(name.split("-")[0]) for name in names(states)] == [5, 10, 100, 1000][-keep:]


@pytest.mark.parametrize("keep", [1, 2])
def test_what_was_just_saved_is_kept_even_among_newer_ones(tmp_path, keep):
    states = States(tmp_path, keep)
    for step in (7, 8):
        states.save(step, tensors(step))
    digest = states.save(3, tensors(3))
    assert states.find(3, digest)
    assert states.newest(5)[0] == 3
    assert len(names(states)) == keep


def test_the_newest_state_that_is_not_too_new(tmp_path):
    states = States(tmp_path, keep=3)
    for step in (2, 9, 10):
        states.save(step, tensors(step))
    assert [states.newest(last)[0] for last in (2, 8, 9, 10, 99)] == [2, 2, 9, 10, 10]
    assert states.newest(1) is None


def test_a_write_that_was_cut_off_is_not_taken_for_a_state(tmp_path):
    states = States(tmp_path, keep=1)
    (tmp_path / ".123.part").write_bytes(b"half a state")
    assert states.newest(9) is None
    states.save(1, tensors(1))
    assert states.newest(9)[0] == 1


def test_runs_do_not_share_states(monkeypatch):
    cells = grid.load(ROOT)
    params = cells.studies.load("mini")

    def directory(images="a" * 32, **names):
        cell = cells.cell("train", **{"dataset": "digits_mini", "model": "adm", "seed": "0", "step": "4", **names})
        one = job.Job(params, cell, {"data/digits_mini/images.npy": images})
        return one.states(one.run_spec()).directory

    base = directory()
    assert directory(step="8") == base  # segments of one run go on from each other
    others = [directory(model="adm-ip"), directory(seed="1"), directory(images="b" * 32)]
    monkeypatch.setattr(job, "code_digest", lambda *what: "c" * 32)
    assert len({base, *others, directory()}) == 5


def test_a_run_keeps_as_many_states_as_params_yaml_says():
    known = grid.load(ROOT)
    params = known.studies.load("mini")
    params = dataclasses.replace(params, work=dataclasses.replace(params.work, states_kept=5))
    cell = known.cell("train", dataset="digits_mini", model="adm", seed="0", step="4")
    one = job.Job(params, cell, {"data/digits_mini/images.npy": "a" * 32})
    assert one.states(one.run_spec()).keep == 5


def test_a_published_state_is_taken_over_only_if_it_is_the_one_asked_for(tmp_path: Path) -> None:
    digest = States(tmp_path / "theirs").save(4, {"x": np.arange(3.0)})
    published = tmp_path / "state.safetensors"
    published.write_bytes(next((tmp_path / "theirs").glob("*.safetensors")).read_bytes())
    mine = States(tmp_path / "mine")
    mine.take(published, 4, "0" * 32)
    assert mine.newest(4) is None
    mine.take(published, 4, digest)
    step, path = mine.newest(4) or pytest.fail("the state was not taken over")
    assert step == 4
    assert np.array_equal(tensors_of(opened(path))["x"], np.arange(3.0))


# Its size


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1), hnp.arrays(st.sampled_from(sorted(KINDS)), hnp.array_shapes(min_dims=0, min_side=0))
    )
)
def test_a_state_has_the_bytes_of_the_safetensors_library(arrays):
    data = b"".join(chunks(arrays))
    assert data == safe.save(arrays)
    found = tensors_of(np.frombuffer(data, np.uint8))
    assert {name: (a.dtype, a.shape, a.tobytes()) for name, a in found.items()} == {
        name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()
    }


def test_a_state_of_torch_tensors_is_that_of_their_arrays():
    parts = {"a": torch.arange(24.0).reshape(2, 3, 4).transpose(0, 2), "n": np.array(3), "h": torch.ones(3).half()}
    whole = {name: np.array(part.tolist(), str(part.dtype).removeprefix("torch.")) for name, part in parts.items()}
    assert b"".join(chunks(Tensors(parts))) == safe.save(whole)
    assert {name: part.tolist() for name, part in Tensors(parts).items()} == {n: w.tolist() for n, w in whole.items()}


PEAK = r"""
import re, sys
from pathlib import Path
import torch
from ipdiff.work.train_states import States, Tensors

def memory(kind):
    return int(re.search(kind + r":\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1)) * 1024

States(Path(sys.argv[1])).save(0, Tensors({"warm": torch.ones(1024, 1024).t()}))
parts = {f"w{i}": torch.full((1024, 1024), float(i)).t() for i in range(128)}  # 512 MiB, each to be copied for the disk
size, before = sum(part.nbytes for part in parts.values()), memory("VmRSS")
assert before >= size
States(Path(sys.argv[1])).save(1, Tensors(parts))
print((memory("VmHWM") - before) / size)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc tells how much memory was used")
def test_a_save_needs_no_memory_for_a_second_copy(tmp_path):
    done = subprocess.run([sys.executable, "-c", PEAK, tmp_path], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 0.2  # on top of the state itself; 25 to 50 MiB of it whatever the size


# Versions of a run


def versions(root: Path, names: str) -> dict[str, str]:
    """A directory of states for each letter, oldest first; letter -> digest of its state."""
    digests = {}
    for age, name in enumerate(names):
        digests[name] = States(root / name).save(3, tensors(age))
        os.utime(root / name, (age, age))
    return digests


def test_versions_of_a_run_that_nobody_goes_on_from_are_dropped(tmp_path):
    digests = versions(tmp_path, "abcde")
    States(tmp_path / "a", keep=2).prune_others({digests["b"]})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "e"]  # here, named by a checkpoint, newest


def test_a_version_in_use_is_not_dropped(tmp_path):
    versions(tmp_path, "abc")
    with States(tmp_path / "a").in_use():
        States(tmp_path / "c", keep=1).prune_others(set())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]


def test_a_state_that_vanishes_while_the_store_is_read_is_passed_over(tmp_path, monkeypatch):
    states = States(tmp_path)
    states.save(1, tensors(1))
    digest = states.save(2, tensors(2))
    listed = States._files(states)
    states.find(2, digest).unlink()
    monkeypatch.setattr(States, "_files", lambda self: listed)
    assert states.newest(9)[0] == 1
    assert not states.copy(2, digest, tmp_path / "copy")
