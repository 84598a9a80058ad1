"""One reader for each kind of source: raw files in, blocks of uint8 NHWC images and int64 labels out.

A reader is a generator, so that no data set has to fit into memory. Labels are -1 where there are none.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipdiff.data.spec import READERS, Source
from ipdiff.errors import UserError
from ipdiff.parameters import resolve

Block = tuple[NDArray[np.uint8], NDArray[np.int64]]


def read(source: Source, paths: Sequence[Path], scratch: Path, notes: dict[str, Any]) -> Generator[Block, None, None]:
    """Read a data set, training images only, in the published order.

    Args:
        source: which reader, and what the images must be.
        paths: the raw files: `source.raw` or those of `source.archives`; none for embedded data.
        scratch: existing directory that the reader may unpack into; the caller removes it.
        notes: what is worth recording of what was read is written into it, as far as the blocks have come.

    Yields:
        images [n, H, W, C] uint8 and labels [n] int64, -1 where there is none; n >= 1 differs from block to block.

    Raises:
        UserError: the raw data is missing or not what `source` says.
    """
    kind = READERS[source.reader]
    if kind.files == 1 and len(paths) != 1:
        names = ", ".join(path.name for path in paths) or "none"
        raise UserError(f"reader {source.reader} reads one archive or directory; found {names}")
    yield from resolve(kind.read)(source, paths, scratch, notes)
