"""How long a test waits for what another process or thread does: until it comes, on a machine as busy as may be.

The limit is there for what hangs, and for nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 1800.0
"""What takes longer hangs. Less than `timeout` in pyproject.toml, so that a test can say what it waited for."""


def wait_until(come: Callable[[], object], said: Callable[[], object] = str) -> None:
    """Wait until `come` is true; fail with what was `said` if it hangs."""
    end = time.monotonic() + PATIENCE_S
    while not come():
        assert time.monotonic() < end, f"did not come in {PATIENCE_S:.0f} s; {said()}"
        time.sleep(0.01)
