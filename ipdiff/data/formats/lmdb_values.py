"""Every value of an LMDB database on standard output: `python -m ipdiff.data.formats.lmdb_values FILE`.

A process of its own, because liblmdb trusts what the file says of itself: a damaged or forged one may crash it.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ipdiff.data.formats.files import MAX_ENTRY

if TYPE_CHECKING:
    import lmdb

RECORD = struct.Struct(">QQ")
"""Before each key and value: their lengths. Two zeros end the stream."""

_BLOCK_BYTES = 16 * 2**20


def values(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) in the order of the keys; of a value only what an image may have, and one byte more.

    The database is opened anew every 16 MiB: pages of a mapped file count as resident memory until it is closed.

    Raises:
        lmdb.Error: it is no database, or a damaged one.
        EOFError: its end is missing (reading on would crash).
    """
    last = b""
    while True:
        with _opened(path) as environment, environment.begin(buffers=True) as transaction:
            block = _after(transaction.cursor(), last)
        if not block:
            return
        last = block[-1][0]
        yield from block


def _after(cursor: lmdb.Cursor, last: bytes) -> list[tuple[bytes, bytes]]:
    """The next (key, value) after the key `last`; from the first if it is empty."""
    more = cursor.set_range(last) if last else cursor.first()
    if more and last:
        more = cursor.next()
    block: list[tuple[bytes, bytes]] = []
    size = 0
    while more and size < _BLOCK_BYTES:
        block.append((bytes(cursor.key()), bytes(cursor.value()[: MAX_ENTRY + 1])))
        size += len(block[-1][1])
        more = cursor.next()
    return block


def _opened(path: Path) -> lmdb.Environment:
    import lmdb

    environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    found = path.stat().st_size
    if found < needed:
        environment.close()
        raise EOFError(f"has {found} bytes of {needed}: it is incomplete")
    return environment


def main(path: Path) -> None:
    """Write the records of `values`; what is wrong with the file goes to stderr as one line, exit code 1."""
    import lmdb

    try:
        for key, value in values(path):
            sys.stdout.buffer.write(RECORD.pack(len(key), len(value)) + key + value)
        sys.stdout.buffer.write(RECORD.pack(0, 0))
    except (lmdb.Error, EOFError) as error:
        raise SystemExit(" ".join(str(error).split())) from None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
