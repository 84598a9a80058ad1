"""What holds for every test."""

from __future__ import annotations

import hypothesis
import pytest

hypothesis.settings.register_profile("unhurried", deadline=None)  # an example may take long on a busy machine
hypothesis.settings.load_profile("unhurried")


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Bytes have their parameter's name: a gzip file's would differ from one collection to the next."""
    return argname if isinstance(val, bytes | bytearray) else None
