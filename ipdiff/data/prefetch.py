"""Batches of a data set that has no room on the GPU: gathered by a thread while the batches before them are used.

The thread fills page-locked buffers from the memory map and sends them on a stream of its own; the GPU waits for a
batch only if it is not there yet, the host only if its turn has not come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DEPTH = 4
"""Batches that may be under way."""


class _Slot:
    """A batch on its way: on the host, on the device, and (on a GPU) when it arrived and when it was used."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        cuda = device.type == "cuda"
        self.host = torch.empty(shape, dtype=torch.uint8, pin_memory=cuda)
        self.there = torch.empty(shape, dtype=torch.uint8, device=device) if cuda else self.host
        self.sent, self.used = (torch.cuda.Event(), torch.cuda.Event()) if cuda else (None, None)


class Prefetch:
    """The batches of consecutive steps, in order."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        batch: Callable[[int], NDArray[np.int64]],
        first: int,
        size: int,
        device: torch.device,
    ) -> None:
        """Start to gather.

        Args:
            images: [N, H, W, C] uint8, any memory map.
            batch: step -> indices [size] int64 of its images.
            first: the first step that will be asked for.
            size: images a batch.
            device: where they are wanted.
        """
        self._images, self._batch, self._next = images, batch, first
        self._stream = torch.cuda.Stream() if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._under_way: deque[Future[_Slot]] = deque()
        for _ in range(DEPTH):
            self._ask(_Slot((size, *images.shape[1:]), device))

    def _ask(self, slot: _Slot) -> None:
        self._under_way.append(self._thread.submit(self._fill, slot, self._next))
        self._next += 1

    def take_into(self, to: Tensor) -> None:
        """Write the next step's batch into `to`, [size, H, W, C] uint8 on the device, in the order of its stream.

        Raises:
            Exception: whatever kept the thread from gathering it.
        """
        slot = self._under_way[0].result()
        self._under_way.popleft()
        if slot.sent is not None and slot.used is not None:
            torch.cuda.current_stream().wait_event(slot.sent)
            to.copy_(slot.there)
            slot.used.record()
        else:
            to.copy_(slot.there)
        self._ask(slot)

    def close(self) -> None:
        """End the thread; batches not asked for are dropped."""
        self._thread.shutdown(cancel_futures=True)
        if self._stream is not None:
            self._stream.synchronize()  # a copy may be under way to memory that is free from here on

    def _fill(self, slot: _Slot, step: int) -> _Slot:
        if slot.sent is not None:
            slot.sent.synchronize()  # the buffer's last batch has left it
        np.take(self._images, self._batch(step), axis=0, out=slot.host.numpy(), mode="clip")  # "raise" would copy twice
        if slot.sent is not None and slot.used is not None:
            with torch.cuda.stream(self._stream):
                slot.used.wait()
                slot.there.copy_(slot.host, non_blocking=True)
                slot.sent.record()
        return slot
