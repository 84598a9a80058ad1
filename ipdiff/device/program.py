"""A program over fixed tensors: on a GPU captured once in a CUDA graph and launched whole, elsewhere run as it is.

A step of training or sampling is some thousand kernels of a few microseconds; launched one by one they leave the GPU
waiting for the host.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable

import torch

from ipdiff.device import kernels
from ipdiff.errors import UserError

AHEAD = 4
"""Runs that may wait in the GPU's queue: enough to keep it busy, few enough that a warning is heeded soon."""
WARM_UPS = 3
"""Runs before the capture: kernels are compiled and loaded in them, and libraries take their workspace."""
SWITCH = "IPDIFF_CUDA_GRAPHS"
"""Environment variable: 0 runs programs kernel by kernel, with the same results."""


class Program:
    """Work on tensors that stay where they are, without a look at their values: the device never waits for the host."""

    def __init__(self, run: Callable[[], None], device: torch.device, name: str) -> None:
        """`run` reads and writes tensors on `device`; `name` says in an error what could not be captured."""
        self._run, self._device, self._name = run, device, name
        self._graph: torch.cuda.CUDAGraph | None = None
        self._running: deque[torch.cuda.Event] = deque()

    def prepare(self) -> None:
        """Capture the program, where it can be: on a GPU whose random numbers its own kernel draws.

        It runs a few times: put the tensors in a state in which that does no harm, and set them afterwards.

        What cannot be captured is said in one line, and runs kernel by kernel, like all programs after it.
        """
        if self._device.type != "cuda" or not kernels.available() or os.environ.get(SWITCH) == "0":
            return
        _warm_up(self._run)  # what fails there is not the graph's fault
        here = torch.cuda.current_stream()
        try:
            self._graph = _captured(self._run)
        except Exception as error:  # of the driver, of a library, of a compiler: none has a common class
            torch.cuda.set_stream(here)  # where a capture fails, torch leaves its own stream the current one
            cause = _first(error)
            if isinstance(cause, torch.OutOfMemoryError | UserError):
                raise cause from None
            os.environ[SWITCH] = "0"  # a receipt says so
            reason = str(cause).strip().partition("\n")[0]
            print(
                f"ipdiff: {self._name} cannot be captured in a CUDA graph ({reason}): it runs without, slower",
                file=sys.stderr,
                flush=True,
            )

    def __call__(self) -> None:
        """Run it once, or have it run: on a GPU the host goes on, at most `AHEAD` runs before the device."""
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()
        if self._device.type == "cuda":
            self._running.append(torch.cuda.Event(blocking=True))
            self._running[-1].record()
            if len(self._running) > AHEAD:
                self._running.popleft().synchronize()


def _first(error: BaseException) -> BaseException:
    """What broke a capture: its end raises an error of its own, which only remembers that one."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _warm_up(run: Callable[[], None]) -> None:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)


def _captured(run: Callable[[], None]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph
