"""Batches of a data set that has no room on the GPU: gathered by a thread while the batches before them are used.

The thread fills page-locked buffers from the memory map and sends them on a stream of its own; the GPU waits for a
batch only if it is not there yet, the host only if its turn has not come.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

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
        self._images, self._batch, self._device = images, batch, device
        self._free: queue.Queue[_Slot | None] = queue.Queue()
        self._ready: queue.Queue[_Slot | BaseException] = queue.Queue()
        for _ in range(DEPTH):
            self._free.put(_Slot((size, *images.shape[1:]), device))
        self._stream = torch.cuda.Stream() if device.type == "cuda" else None
        self._thread = threading.Thread(target=self._work, args=(first,), name="prefetch", daemon=True)
        self._thread.start()

    def take_into(self, to: Tensor) -> None:
        """Write the next step's batch into `to`, [size, H, W, C] uint8 on the device, in the order of its stream.

        Raises:
            Exception: whatever stopped the thread.
        """
        slot = self._ready.get()
        if isinstance(slot, BaseException):
            self._ready.put(slot)  # for whoever asks again
            raise slot
        if slot.sent is not None and slot.used is not None:
            torch.cuda.current_stream().wait_event(slot.sent)
            to.copy_(slot.there)
            slot.used.record()
        else:
            to.copy_(slot.there)
        self._free.put(slot)

    def close(self) -> None:
        """End the thread; batches not asked for are dropped."""
        self._free.put(None)
        while self._thread.is_alive():
            self._drop()
            self._thread.join(timeout=0.05)
        if self._stream is not None:
            self._stream.synchronize()  # a copy may be under way to memory that is free from here on

    def _drop(self) -> None:
        """Make the thread come to the end mark: no free slot may lie before it."""
        try:
            while True:
                if self._free.get_nowait() is None:
                    break
        except queue.Empty:
            pass
        self._free.put(None)

    def _work(self, step: int) -> None:
        try:
            while (slot := self._free.get()) is not None:
                self._fill(slot, self._batch(step))
                self._ready.put(slot)
                step += 1
        except BaseException as error:  # handed to the process' own thread
            self._ready.put(error)

    def _fill(self, slot: _Slot, indices: NDArray[np.int64]) -> None:
        if slot.sent is not None:
            slot.sent.synchronize()  # the buffer's last batch has left it
        np.take(self._images, indices, axis=0, out=slot.host.numpy(), mode="clip")  # "raise" would copy twice
        if slot.sent is None or slot.used is None:
            return
        within: Any = nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with within:
            slot.used.wait()
            slot.there.copy_(slot.host, non_blocking=True)
            slot.sent.record()
