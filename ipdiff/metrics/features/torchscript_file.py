"""TorchScript files: looked at, hashed, and only then opened, for such a file is a program."""

from __future__ import annotations

import hashlib
import io
import warnings
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipdiff.data.formats import filekind
from ipdiff.errors import IntegrityError, UserError, brief


def open_file(
    path: Path, device: torch.device, sha256: str | None, what: str = "a feature network"
) -> tuple[torch.jit.ScriptModule, str]:
    """Open a program whose digest is known. The bytes that are opened are those that were hashed.

    Args:
        path: the file.
        device: where it is to run.
        sha256: what its digest must be; anything if None.
        what: the file should be, for messages.

    Returns:
        The program in evaluation mode, and its sha256.

    Raises:
        UserError: it is missing, no TorchScript file, or damaged.
        IntegrityError: it has another digest.
    """
    kind = filekind.look(path)
    if kind.name != "torchscript":
        raise UserError(f"{path}: is {kind.words}; expected {what}, a TorchScript file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    digest = hashlib.sha256(data).hexdigest()
    if sha256 not in (None, digest):
        raise IntegrityError(path, f"sha256 {sha256}", digest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch prefers torch.export; the file is TorchScript
        try:
            return torch.jit.load(io.BytesIO(data), map_location=device).eval(), digest
        except Exception as error:  # torch raises many kinds on damaged bytes
            raise UserError(f"{path}: a damaged or truncated TorchScript file: {first_line(error)}") from None


def unfused() -> AbstractContextManager[None]:
    """Without TorchScript's own optimiser, whose first calls differ from the later, fused ones."""
    return torch.jit.optimized_execution(False)  # pyright: ignore[reportPrivateImportUsage]


def three_channels(images: NDArray[np.uint8]) -> Tensor:
    """[n, H, W, C] uint8 -> [n, 3, H, W] float32 in [0, 255]; grey images are repeated."""
    x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).to(torch.float32)
    return (x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x).contiguous()


def first_line(error: Exception) -> str:
    """What torch says, which may be pages, as one line."""
    return brief(str(error).strip().split("\n", 1)[0] or type(error).__name__)
