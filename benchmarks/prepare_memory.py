"""Peak memory of `prepare` on a generated data set: `python benchmarks/prepare_memory.py --gib 10 imagenet32`.

Writes an archive of the given size in the published format (its images are noise, so that nothing is compressed
away), prepares it in a process of its own, and prints one line of JSON: bytes read and written, seconds, and the
process' peak resident memory, with that of a process it started. Needs 3 times the size of free disk; removes what
it wrote.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GIB = 2**30
BATCH_IMAGES = 130_000
"""Images an ImageNet-32 batch; a published one has 128,117."""
SIDE = 1200
"""Height and width of the generated LSUN images: larger than real ones, so that fewer make up the size."""

CHILD = """
import resource, sys
from pathlib import Path
from ipdiff.data import prepare
from ipdiff.data.spec import Source
reader, size, raw, out = sys.argv[1:]
prepare.run(Source(reader, int(size), 3, raw), Path(out), [Path(raw)])
for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith("VmHWM"):  # ru_maxrss would count what this process' parent had before it started it
        own = int(line.split()[1])
print((own + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024)
"""


def noise(rows: int, columns: int) -> NDArray[np.uint8]:
    """Bytes that do not compress: [rows, columns] uint8."""
    return np.random.default_rng(0).integers(0, 256, (rows, columns), dtype=np.uint8)


def write_imagenet32(path: Path, size: int) -> None:
    """Npz batches in a zip, stored, until `size` bytes are reached."""
    tile = noise(1000, 3072)
    count = -(-size // (3072 * BATCH_IMAGES))
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(1, count + 1):
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz") as batch:
                with zipfile.ZipFile(batch, "w") as arrays:
                    with arrays.open("data.npy", "w") as file:
                        header = {"descr": "|u1", "fortran_order": False, "shape": (BATCH_IMAGES, 3072)}
                        np.lib.format.write_array_header_1_0(file, header)
                        for _ in range(BATCH_IMAGES // len(tile)):
                            file.write(tile.tobytes())
                    with arrays.open("labels.npy", "w") as file:
                        np.lib.format.write_array(file, np.ones(BATCH_IMAGES, np.int64))
                batch.flush()
                archive.write(batch.name, f"Imagenet32_train_npz/train_data_batch_{number}.npz")


def write_lsun(path: Path, size: int) -> None:
    """One LMDB of uncompressed png in a zip, stored."""
    import lmdb
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(noise(SIDE, SIDE * 3).reshape(SIDE, SIDE, 3)).save(file, "PNG", compress_level=0)
    value = file.getvalue()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        database = Path(folder) / "data.mdb"
        with lmdb.open(str(database), subdir=False, map_size=2 * size + GIB, lock=False) as environment:
            for number in range(-(-size // len(value))):
                with environment.begin(write=True) as transaction:
                    transaction.put(b"%040x" % number, value)
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(database, "tower_train_lmdb/data.mdb")


WRITERS = {"imagenet32": (write_imagenet32, 32), "lsun": (write_lsun, 64)}


def main() -> None:
    """Measure one format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reader", choices=WRITERS)
    parser.add_argument("--gib", type=float, default=10.0, help="size of the archive")
    parser.add_argument("--directory", type=Path, help="where to work; the system's temporary directory by default")
    arguments = parser.parse_args()
    write, size = WRITERS[arguments.reader]
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        raw, out = Path(folder) / "raw.zip", Path(folder) / "out"
        out.mkdir()
        write(raw, int(arguments.gib * GIB))
        started = time.monotonic()
        command = [sys.executable, "-c", CHILD, arguments.reader, str(size), str(raw), str(out)]
        peak = int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        found = {
            "reader": arguments.reader,
            "archive_gib": round(raw.stat().st_size / GIB, 2),
            "images_gib": round((out / "images.npy").stat().st_size / GIB, 2),
            "seconds": round(time.monotonic() - started, 1),
            "peak_resident_mib": round(peak / 2**20),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
