"""numpy's and scipy's linear algebra on one thread: the bits of a sum depend on how many threads share it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController

_LOCK = threading.RLock()
"""The number of threads is the process': who leaves must not set it back under another who computes."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, or within a function that this decorates, BLAS computes with one thread; then with as many as before."""
    with _LOCK, _pools().limit(limits=1, user_api="blas"):
        yield


@functools.cache
def _pools() -> ThreadpoolController:
    """The libraries that are loaded: looked for once, by when numpy and scipy have theirs."""
    import numpy  # noqa: F401
    import scipy.linalg  # noqa: F401

    return ThreadpoolController()
