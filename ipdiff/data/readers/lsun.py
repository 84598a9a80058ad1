"""LSUN: a zip around an LMDB database of encoded images."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from ipdiff.data.formats import decode, files, lmdb_values
from ipdiff.data.spec import Source
from ipdiff.errors import UserError, brief

_LONGEST_KEY = 511


def read(
    source: Source, paths: Sequence[Path], scratch: Path, notes: dict[str, Any]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """{category}_train_lmdb.zip, or its directory, in the order of the database's keys.

    A zip is first unpacked into `scratch`: LMDB maps its file into memory.
    """
    with files.opened(paths[0], max_entry=None) as found:
        database = files.named(found, lambda name: name == "data.mdb")
        if not database:
            raise UserError(f"{paths[0]}: no data.mdb; expected an LSUN database such as tower_train_lmdb.zip")
        entry = database["data.mdb"]
        kind = entry.kind()
        if kind.name != "lmdb":
            raise UserError(f"{entry.where}: is no LMDB database, or a damaged one: it is {kind.words}")
        values = _values(entry.local(scratch), entry.where)
        images = (decode.image(value, f"{entry.where} {_shown(key)}", source) for key, value in values)
        yield from decode.blocks(((pixels, -1) for pixels in images), source)


def _shown(key: bytes) -> str:
    return files.shown(key.decode("ascii", "replace"))


def _values(path: Path, where: str) -> Iterator[tuple[bytes, bytes]]:
    """What a process of its own reads from the database (see `lmdb_values`); UserError where it fails or dies."""
    command = [sys.executable, "-m", lmdb_values.__name__, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        values, complaints = cast(IO[bytes], child.stdout), cast(IO[bytes], child.stderr)
        try:
            while record := _record(values, where):
                yield record
            return
        except EOFError:
            said = complaints.read().decode(errors="replace").strip().splitlines()
            code = child.wait()
        finally:
            child.kill()
    reason = f"reading it crashed (signal {-code})" if code < 0 else brief(said[-1]) if said else f"exit code {code}"
    raise UserError(f"{where}: is no LMDB database, or a damaged one: {reason}; get it again")


def _record(stream: IO[bytes], where: str) -> tuple[bytes, bytes] | None:
    """The next (key, value), None at the end; EOFError if the stream breaks off."""
    sizes = lmdb_values.RECORD.unpack(files.exactly(stream, lmdb_values.RECORD.size))
    if sizes == (0, 0):
        return None
    key = files.exactly(stream, min(sizes[0], _LONGEST_KEY))
    if sizes[1] > files.MAX_ENTRY:
        raise UserError(f"{where} {_shown(key)}: has more than {files.MAX_ENTRY} bytes")
    return key, files.exactly(stream, sizes[1])
