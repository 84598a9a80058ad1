"""What of an update each process computes, and what they tell each other: nothing (one process), or over gloo and NCCL.

In the exact mode partial sums travel by all_gather and are added here, in the order of `optimizer.tree_sum`:
all_reduce chooses its own order. Every process arrives at the same numbers, so none has to be told the result.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]  # documented, though not in __all__

from ipdiff.device.compute import take_gpu
from ipdiff.device.memory import Passes, spread
from ipdiff.errors import Preempted, UserError
from ipdiff.nets.execution import low_precision
from ipdiff.spec import Training
from ipdiff.training import optimizer
from ipdiff.training.run import Run
from ipdiff.work.files import write_whole

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for a word from the others; one that has died is noticed at once."""

BUCKET = 1 << 24
"""Numbers that travel together: small tensors share the cost of a message, large nets do not double their memory."""

PIECE = 1 << 28
"""Bytes of a train state that travel together."""


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int = 0
    count: int = 1

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return (self.count > 1 and bool(self.gather(torch.tensor([int(flag)])).any())) or flag

    def gather(self, part: Tensor) -> Tensor:
        """Parts of equal shape and dtype of all processes, in their order: [count, *part.shape]."""
        if self.count == 1:
            return part[None]
        parts = torch.empty((self.count, *part.shape), dtype=part.dtype, device=part.device)
        with _together():
            dist.all_gather(list(parts.unbind()), part.contiguous())
        return parts

    def join(self, part: Tensor, whole: int) -> Tensor:
        """The parts of all processes, of `whole` numbers in all and spread among them, in their order: [whole]."""
        if self.count == 1:
            return part
        lengths = [len(share) for share in spread(range(whole), self.count)]
        rows = self.gather(torch.cat([part, part.new_zeros(max(lengths) - len(part))]))
        return torch.cat([row[:length] for row, length in zip(rows, lengths, strict=True)])

    def sum_(self, tensors: Sequence[Tensor], *, exact: bool) -> None:
        """Replace tensors by their sums over all processes.

        Args:
            tensors: any shapes, of one dtype and device; the same shapes in every process.
            exact: add in the order of `optimizer.tree_sum`, else leave the order to all_reduce.
        """
        if self.count == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            if exact:
                parts = self.gather(flat)
                (flat,) = optimizer.tree_sum(self.count, lambda rank, parts=parts: [parts[rank]])
            else:
                with _together():
                    dist.all_reduce(flat)
            sums = flat.split([tensor.numel() for tensor in bucket])
            for tensor, total in zip(bucket, sums, strict=True):
                tensor.copy_(total.view_as(tensor))

    def share(self, data: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
        """What process 0 hands in, in every process (the others' argument is not looked at), with no second copy."""
        if self.count == 1:
            return data
        size = torch.tensor([len(data) if self.rank == 0 and data is not None else -1])
        with _together():
            dist.broadcast(size, 0)
            if int(size) < 0:
                return None
            if self.rank == 0 and data is not None:
                buffer = torch.from_numpy(data)
            else:
                buffer = torch.empty(int(size), dtype=torch.uint8)
            for piece in buffer.split(PIECE):
                dist.broadcast(piece, 0)
        return buffer.numpy()


ALONE = Processes()
"""One process that trains by itself."""


def share_of(spec: Training, processes: Processes) -> range:
    """The images of an update that a process computes, by their places in the batch.

    Processes have equal shares; where the reduction is fast, such that differ by one image at most.

    Raises:
        UserError: there are too many processes, or they cannot share the fixed tree of an exact sum.
    """
    count = processes.count
    if spec.reduction == "fast":
        if count > spec.batch_size:
            raise UserError(f"{count} processes cannot share the {spec.batch_size} images of an update; use fewer")
        return spread(range(spec.batch_size), count)[processes.rank]
    whole = spec.batch_size // (spec.micro_batch or spec.batch_size)
    fitting = [n for n in range(1, whole + 1) if whole % n == 0 and not n & (n - 1)]
    if count not in fitting:
        raise UserError(
            f"{count} processes cannot share the {whole} micro-batches of an update exactly (training.reduction); "
            f"use {' or '.join(map(str, fitting))}, or a smaller training.micro_batch, or training.reduction: fast"
        )
    return spread(range(spec.batch_size), count)[processes.rank]


def passes_of(run: Run, processes: Processes = ALONE, most: int | None = None) -> Passes:
    """The passes in which a process computes its share of an update.

    Args:
        run: the run.
        processes: those that train together.
        most: images a pass, where the reduction is fast; None: all. With the exact one training.micro_batch says it.

    Raises:
        UserError: as `share_of`.
    """
    spec = run.spec.training
    images, fixed = share_of(spec, processes), spec.reduction == "exact"
    most = spec.micro_batch if fixed else most
    later = sum(p.nbytes for p in run.params) * (1 if run.optimizer.moments else 3)  # a sum, and moments
    return Passes(
        images,
        min(most or len(images), len(images)),
        fixed=fixed,
        device=run.device,
        rehearse=lambda count: _rehearse(run, count),
        keep=lambda everything: setattr(run, "keeps", everything),
        later=later,
    )


def _rehearse(run: Run, count: int) -> None:
    """Compute gradients of so many images for nothing; not compiled, which takes no more memory."""
    model, run.model = run.model, low_precision(run.net, run.spec.compute)
    try:
        t, weights = run.timesteps.sample(torch.zeros(count, dtype=torch.float64, device=run.device))
        gamma = None if run.gamma(0) is None else torch.ones((), dtype=torch.float64, device=run.device)
        run.gradients(run.pictures(np.zeros(count, np.int64)), None, t, weights, range(count), 0, 1.0, gamma)
    finally:
        run.model = model


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(other.numel() for other in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


@contextmanager
def joined(rank: int, count: int, device: str) -> Iterator[Processes]:
    """Meet the other processes, for the block.

    Args:
        rank: this process.
        count: all processes.
        device: "cpu" or "cuda".

    Raises:
        Preempted: the others did not come, or are gone.
    """
    if count == 1:
        yield Processes()
        return
    if device == "cuda":
        take_gpu()
    with _together():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            store=_store(rank, os.environ.get("IPDIFF_RENDEZVOUS")),  # None: torchrun's, from the environment
            rank=rank,
            world_size=count,
            timeout=TIMEOUT,
        )
    yield Processes(rank, count)
    dist.destroy_process_group()  # not after an error: it may wait for processes that are gone


def _store(rank: int, rendezvous: str | None) -> TCPStore | None:
    """Where processes that `ipdiff.work.launch` started leave word for each other: at process 0, on a port it chose."""
    if rendezvous is None:
        return None
    file = Path(rendezvous)
    if rank == 0:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
        write_whole(file, str(store.port).encode())
        return store
    while not file.exists():
        time.sleep(0.02)
    return TCPStore("127.0.0.1", int(file.read_text()), is_master=False, timeout=TIMEOUT)


@contextmanager
def _together() -> Iterator[None]:
    """The others' death, which torch reports as one of several errors, in one word."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        text = str(error).strip().split("\n")[0]
        raise Preempted(
            f"another process of this training is gone ({text}); run me again to go on from the last saved state"
        ) from error
