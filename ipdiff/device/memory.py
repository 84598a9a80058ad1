"""Memory of a device: how many images a pass of training may have, and what is done where there are too many.

How a process cuts its images into passes changes the rounding of a sum, no more; so where the cut is no part of an
artifact it follows from the memory at hand, and a pass that fails is tried again with fewer images.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ipdiff.errors import UserError, brief

SPARE = 0.1
"""Of a GPU's memory, left free: for fragments, and for what libraries take."""
MEASURED = (2, 4)
"""Images of the two passes from which the memory of others follows."""

_T = TypeVar("_T")


def spread(images: range, count: int) -> list[range]:
    """Cut images into `count` parts, 1 or more, whose sizes differ by one at most."""
    return [images[a:b] for a, b in pairwise(len(images) * i // count for i in range(count + 1))]


def even(images: range, most: int) -> list[range]:
    """Cut images into few parts of at most `most`, 1 or more: equal ones where at most half as many more are."""
    least = max(1, -(-len(images) // most))
    few = range(least, least + least // 2 + 1)
    return spread(images, next((count for count in few if len(images) % count == 0), least))


class Passes:
    """The images of each update that a process computes, cut into forward and backward passes.

    Attributes:
        images: their places in the batch.
        fixed: whether the cut decides bytes, and so stays as it is.
        cut: the places of each pass, in their order.
    """

    def __init__(
        self,
        images: range,
        most: int,
        *,
        fixed: bool,
        device: torch.device,
        rehearse: Callable[[int], object],
        keep: Callable[[bool], None] = lambda everything: None,
        later: int,
    ) -> None:
        """Begin with passes of at most `most` images.

        Args:
            images: see the class.
            most: images a pass, 1 or more.
            fixed: see the class.
            device: where they are computed.
            rehearse: computes a pass of so many images, for nothing.
            keep: says whether passes keep what they could make again; they begin with making it again.
            later: bytes that are there in later passes and not in a rehearsal's.
        """
        self.images, self.fixed, self.cut = images, fixed, even(images, most)
        self._device, self._rehearse, self._keep, self._later = device, rehearse, keep, later
        self._keeps = False

    @property
    def largest(self) -> int:
        """Images of the largest pass."""
        return max(map(len, self.cut))

    def foresee(self) -> None:
        """Cut so that the device's memory holds each pass, as far as a rehearsal tells; keep everything where it can.

        A GPU says itself where that was wrong, and is left to say so of a fixed cut. On a host the kernel would kill
        the process: what is certain not to fit is refused.

        Raises:
            UserError: the host's memory cannot hold a pass.
        """
        gpu = self._device.type == "cuda"
        if gpu and (self._all_kept() or self.fixed):
            return
        try:
            fits, need, free = self._fitting(self.largest)
        except torch.OutOfMemoryError:
            return  # `fitting` will find out
        if fits >= self.largest:
            return
        if not gpu and (self.fixed or not fits):
            raise UserError(self._refusal(f"it needs {_gib(need)}, {_gib(free)} are free", fits))
        self.cut = even(self.images, max(1, fits))

    def _all_kept(self) -> bool:
        """Whether the memory holds the largest pass with all that it could make again; if so, it is kept."""
        self._keep(True)
        try:
            self._keeps = self._fitting(self.largest)[0] >= self.largest
        except torch.OutOfMemoryError:
            release()
        self._keep(self._keeps)
        return self._keeps

    def fitting(self, work: Callable[[list[range]], _T]) -> _T:
        """Do `work` on the passes; where the device's memory does not suffice, again with smaller ones.

        Raises:
            UserError: the cut is fixed, or memory does not suffice for one image.
            torch.OutOfMemoryError: while a program is captured; it has to begin anew.
        """
        while True:
            try:
                return work(self.cut)
            except torch.OutOfMemoryError as error:
                if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                    raise
                said = str(error)
            self.shrink(said)  # here, where the error holds no tensors any more

    def shrink(self, said: str) -> None:
        """After an error that said this: keep no more what can be made again, or cut into the next smaller passes.

        Raises:
            UserError: as `fitting`.
        """
        release()
        if self._keeps:
            self._keeps = False
            self._keep(False)
            return
        if self.fixed or self.largest == 1:
            raise UserError(self._refusal(reason(said), self._after()))
        self.cut = even(self.images, self.largest - 1)

    def _after(self) -> int:
        """Images that would have fitted: measured now, where a fixed cut did not fit."""
        if self.largest == 1:
            return 0
        try:
            return self._fitting(self.largest - 1)[0]
        except torch.OutOfMemoryError:
            release()
        try:
            self._rehearse(1)
        except torch.OutOfMemoryError:
            return 0
        return 1

    def _fitting(self, most: int) -> tuple[int, int, int]:
        """How many images fit into a pass, up to `most`; the bytes that `most` need; and those that are free."""
        few, more = MEASURED
        if self._device.type == "cuda":
            self._rehearse(few)  # libraries take their workspace now
        low, high = (spent(self._device, lambda n=n: self._rehearse(n)) for n in MEASURED)
        release()
        each = max(1, (high - low) // (more - few))
        base = max(0, low - few * each) + self._later
        free = free_bytes(self._device)
        if free is None:
            return most, base + most * each, 0
        return max(0, min(most, (free - base) // each)), base + most * each, free

    def _refusal(self, why: str, fits: int) -> str:
        where = "the GPU" if self._device.type == "cuda" else "this machine"
        text = f"the memory of {where} does not hold a pass of {_images(self.largest)}: {why}"
        if not fits:
            return f"{text}; not even one fits: use a device with more, a lower compute.precision or a smaller network"
        whole = len(self.images)
        fits = next(n for n in range(fits, 0, -1) if whole % n == 0)
        return (
            f"{text}; {_images(fits)} would fit: set training.micro_batch to {fits}, which is part of the artifact, or "
            "training.reduction to fast, which chooses it"
        )


def spent(device: torch.device, work: Callable[[], object]) -> int:
    """Bytes that work takes besides what was there: the most at once on a GPU; on a CPU, what is saved for backward."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = max(storage.nbytes(), saved.get(storage.data_ptr(), 0))
        return tensor.detach()  # not itself: it might hold what holds it

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return sum(saved.values())


def free_bytes(device: torch.device) -> int | None:
    """Bytes that this process can still take on a device, a GPU's `SPARE` left out; None where the system is silent."""
    if device.type != "cuda":
        return host_free()
    free, total = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0, int(free + cached - SPARE * total))


def host_free(system: Path = Path("/")) -> int | None:
    """Bytes that this process can still take of the host's memory, its control group's limit included; None: unknown.

    `system` is where /proc and /sys lie.
    """
    try:
        lines = (system / "proc/meminfo").read_text().splitlines()
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        groups = (system / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError, IndexError):
        return None
    for line in groups:
        _, controllers, name = line.split(":", 2)
        if controllers == "" or "memory" in controllers.split(","):
            found += _group_free(system / "sys/fs/cgroup" / ("memory" if controllers else ""), name.strip("/"))
    return min(found, default=None)


def _group_free(root: Path, name: str) -> list[int]:
    """What the control groups of this path leave, each of them; its files that can be given back count as free."""
    found = []
    here = root / name
    for folder in (here, *here.parents):
        for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            try:
                most, now = (int((folder / file).read_text()) for file in (limit, used))  # "max" is no limit
                pairs = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                found.append(max(0, most - now + int(pairs.get(cache, 0))))
            except (OSError, ValueError):
                continue
        if folder == root:
            break
    return found


def release() -> None:
    """Give back to the GPU what passes held that are over."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def reason(said: str) -> str:
    """What was asked and what there is, of torch's words for it."""
    text = said.partition(" If reserved but unallocated")[0].partition(" Including non-PyTorch")[0]
    return brief(text, 240).rstrip(".")


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"


def _gib(count: int) -> str:
    return f"{count / 2**30:.3g} GiB"
