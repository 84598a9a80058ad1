"""Passes of a batch: how it is cut, what happens where memory runs out, and how much memory there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ipdiff.device import memory
from ipdiff.device.memory import Passes, even, host_free, spread
from ipdiff.errors import UserError

CPU = torch.device("cpu")
MIB = 2**20
WORDS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.20 GiB is "
    "free. Including non-PyTorch memory, this process has 77.90 GiB memory in use. Of the allocated memory 70 GiB is "
    "allocated by PyTorch. If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF"
)


def together(parts: list[range]) -> list[int]:
    return [place for part in parts for place in part]


@given(st.integers(0, 40), st.integers(1, 300), st.integers(1, 12))
def test_a_spread_is_fair_and_loses_nothing(start: int, size: int, count: int) -> None:
    images = range(start, start + size)
    parts = spread(images, count)
    assert together(parts) == list(images)
    assert len(parts) == count
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(0, 40), st.integers(1, 300), st.integers(1, 320))
def test_an_even_cut_keeps_its_limit_with_few_passes(start: int, size: int, most: int) -> None:
    images = range(start, start + size)
    parts = even(images, most)
    assert together(parts) == list(images)
    assert max(map(len, parts)) <= most
    assert min(map(len, parts)) >= 1
    least = -(-size // most)
    assert least <= len(parts) <= 1.5 * least
    equal = [n for n in range(least, int(1.5 * least) + 1) if size % n == 0]
    assert len(parts) == (equal[0] if equal else least)


def passes(
    images: range = range(8),
    most: int = 8,
    *,
    fixed: bool = False,
    rehearse: Callable[[int], object] = lambda count: None,
    later: int = 0,
) -> Passes:
    return Passes(images, most, fixed=fixed, device=CPU, rehearse=rehearse, later=later)


def works_up_to(most: int, met: list[list[int]]) -> Callable[[list[range]], str]:
    """Work that runs out of memory where a pass has more than `most` images."""

    def work(cut: list[range]) -> str:
        met.append([len(part) for part in cut])
        for part in cut:
            if len(part) > most:
                raise torch.OutOfMemoryError(WORDS)
        return "done"

    return work


def test_what_does_not_fit_is_tried_again_with_the_next_smaller_passes() -> None:
    met: list[list[int]] = []
    eight = passes()
    assert eight.fitting(works_up_to(3, met)) == "done"
    assert met == [[8], [4, 4], [2, 2, 2, 2]]
    assert eight.fitting(works_up_to(3, met)) == "done"
    assert met[3:] == [[2, 2, 2, 2]]  # it is remembered
    met.clear()
    assert passes(range(3, 10), 7).fitting(works_up_to(2, met)) == "done"
    assert met == [[7], [3, 4], [2, 2, 3], [1, 2, 2, 2]]


def test_a_rehearsal_that_does_not_fit_leaves_it_to_the_passes() -> None:
    eight = passes(rehearse=lambda count: works_up_to(3, [])([range(count)]))
    eight.foresee()
    assert eight.fitting(works_up_to(3, [])) == "done"
    assert eight.largest == 2


def test_other_errors_are_not_tried_again() -> None:
    def work(cut: list[range]) -> None:
        raise RuntimeError("another")

    with pytest.raises(RuntimeError, match="another"):
        passes().fitting(work)


def test_where_not_one_image_fits_one_line_says_so() -> None:
    met: list[list[int]] = []
    with pytest.raises(UserError) as caught:
        passes(range(2), 2).fitting(works_up_to(0, met))
    assert met == [[2], [1, 1]]
    assert str(caught.value) == (
        "the memory of this machine does not hold a pass of 1 image: CUDA out of memory. Tried to allocate 2.00 GiB. "
        "GPU 0 has a total capacity of 79.11 GiB of which 1.20 GiB is free; not even one fits: use a device with more, "
        "a lower compute.precision or a smaller network"
    )


def takes(each: int, kept: list[object]) -> Callable[[int], None]:
    """A pass that saves so many bytes an image for backward, and 1 MiB in any case."""

    def rehearse(count: int) -> None:
        x = torch.ones(count, each // 4, requires_grad=True)
        weight = torch.ones(MIB // 4, requires_grad=True)
        kept.append((x.exp(), weight.exp()))  # each saves its result

    return rehearse


def test_a_fixed_cut_is_kept_and_the_line_says_what_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[list[int]] = []
    monkeypatch.setattr(memory, "host_free", lambda: 6 * MIB)
    with pytest.raises(UserError) as caught:
        passes(fixed=True, rehearse=takes(MIB, [])).fitting(works_up_to(5, met))
    assert met == [[8]]
    text = str(caught.value)
    assert "a pass of 8 images: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has" in text
    assert "; 4 images would fit: set training.micro_batch to 4, which is part of the artifact, or training." in text
    assert "\n" not in text


def test_a_rehearsal_tells_what_a_pass_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    eight = passes(rehearse=takes(2 * MIB, []), later=3 * MIB)
    assert eight._fitting(8)[1] == (8 * 2 + 1 + 3) * MIB
    for free, sizes in ((20, [8]), (19, [4, 4]), (12, [4, 4]), (11, [2] * 4), (6, [1] * 8)):
        monkeypatch.setattr(memory, "host_free", lambda free=free: free * MIB)
        found = passes(rehearse=takes(2 * MIB, []), later=3 * MIB)
        found.foresee()
        assert [len(part) for part in found.cut] == sizes


def test_what_is_certain_not_to_fit_is_refused_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_free", lambda: 5 * MIB)
    with pytest.raises(UserError, match=r"it needs 0.0166 GiB, 0.00488 GiB are free; 2 images would fit: set training"):
        passes(fixed=True, rehearse=takes(2 * MIB, [])).foresee()
    with pytest.raises(UserError, match="a pass of 8 images: it needs .*; not even one fits"):
        passes(rehearse=takes(5 * MIB, [])).foresee()
    monkeypatch.setattr(memory, "host_free", lambda: None)
    for fixed in (True, False):
        silent = passes(fixed=fixed, rehearse=takes(5 * MIB, []))
        silent.foresee()  # where the system does not tell, the run begins
        assert silent.largest == 8


def system(root: Path, available: int, groups: str, **files: str) -> Path:
    for name, text in {"proc/meminfo": f"MemAvailable: {available} kB\n", "proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_free_memory_heeds_the_limits_of_control_groups(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/job"
    second = {
        f"{group}/memory.max": "1000\n",
        f"{group}/memory.current": "900\n",
        f"{group}/memory.stat": "anon 500\ninactive_file 300\n",
        f"{group}/step/memory.max": "max\n",
        f"{group}/step/memory.current": "10\n",
        f"{group}/step/memory.stat": "inactive_file 0\n",
    }
    assert host_free(system(tmp_path / "plain", 7, "0::/\n")) == 7 * 1024
    assert host_free(system(tmp_path / "two", 7, "0::/job/step\n", **second)) == 400
    first = {
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "5000\n",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "4000\n",
        "sys/fs/cgroup/memory/job/memory.stat": "total_inactive_file 500\n",
    }
    assert host_free(system(tmp_path / "one", 7, "3:cpu:/other\n5:memory:/job\n0::/\n", **first)) == 1500
    assert host_free(tmp_path / "none") is None
    assert (host_free() or 1) > 0


@pytest.mark.parametrize(
    ("free", "keeps", "largest"),
    [(8 * 20, True, 8), (8 * 20 - 1, False, 8), (8 * 10 - 1, False, 4), (10, False, 1)],
)
def test_a_gpu_keeps_everything_where_it_fits(
    free: int, keeps: bool, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image takes 20 bytes where everything is kept, and 10 where half of it is made again."""
    state = {"keeps": False}
    monkeypatch.setattr(memory, "spent", lambda device, work: work())
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    eight = Passes(
        range(8),
        8,
        fixed=False,
        device=torch.device("cuda"),
        rehearse=lambda count: count * (20 if state["keeps"] else 10),
        keep=lambda everything: state.update(keeps=everything),
        later=0,
    )
    eight.foresee()
    assert (state["keeps"], eight.largest) == (keeps, largest)
    before = eight.largest
    if before > 1:
        eight.shrink(WORDS)
        assert not state["keeps"]
        assert eight.largest == (before if keeps else before // 2)  # what is kept goes first
