"""Files that nobody meant to give, for `ipdiff evaluate`, `ipdiff import` and the Inception network.

`python tests/unit/fuzz_files.py evaluate|import|network EXAMPLES`, called in an empty directory, ends with exit code 0
if the verb ended with 0, 2 or 3 for every file, with 300 characters or fewer on stderr, and within the memory limit. It
is a process of its own because of that limit: one that is reached would take the tests down. A further argument: other
files each time.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import struct
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from inception import write_inception  # noqa: E402
from safetensors.torch import save  # noqa: E402
from unit.params_factory import put, small, write  # noqa: E402

from ipdiff import cli  # noqa: E402
from ipdiff.interop import checking  # noqa: E402
from ipdiff.pipeline import config  # noqa: E402

GIB = 2**30
MOST = 300
"""Characters on stderr."""

MAGIC = [
    *(b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00", b"\x93NUMPY\x03\x00"),
    *(b"\x80\x02}q\x00", b"\x80\x04\x95", b"\x1f\x8b\x08", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff", b"BZh9"),
    b"<!DOCTYPE html>",
    *(b"version https://git-lfs.github.com/spec/v1\n", b"\x00" * 16, b"\xff" * 16, b"", b"\x02" + bytes(7) + b"{}"),
]  # fmt: skip
DTYPES = ["u1", "i1", "i8", "f2", "f4", "f8", "c16", "?", "U3", "S0", "V7", "M8[s]", "u1,f4", "O"]
NAMES = ["arr_0", "mu", "sigma", "mu_s", "sigma_s", "mu_pixel", "sigma_pixel", "n", "image_shape", "features", "x"]
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=200)
SIZES = st.sampled_from([0, 1, 2, 3, 4, 8, 16])
SHAPES = st.one_of(
    st.lists(SIZES, max_size=5).map(tuple),
    st.tuples(SIZES, st.just(8), st.just(8), st.sampled_from([0, 1, 2, 3, 4])),
    st.tuples(st.just(16)),
    st.just((16, 16)),
)
HUGE = st.lists(st.sampled_from([-1, 0, 1, 3, 8, 2**20, 2**31, 2**40, 2**63, 10**30]), max_size=6).map(tuple)


def npy(shape: tuple[int, ...], dtype: str, fill: float = 1, order: Any = "C") -> bytes:
    """An npy file of one value."""
    stream = io.BytesIO()
    with np.errstate(all="ignore"):
        made = np.zeros(shape) if dtype in ("u1,f4", "V7") else np.full(shape, fill)
        np.save(stream, made.astype(dtype, order=order), allow_pickle=True)
    return stream.getvalue()


def claims(header: str, payload: bytes = b"\0" * 64, version: bytes = b"\x01\x00") -> bytes:
    """An npy file with this header, whatever it says."""
    text = header.encode("latin-1", "replace")
    length = struct.pack("<H", len(text) % 2**16) if version == b"\x01\x00" else struct.pack("<I", len(text))
    return b"\x93NUMPY" + version + length + text + payload


HEADERS = st.one_of(
    st.tuples(
        HUGE, st.sampled_from(["|u1", "<f8", "|O", "<U9999999", "|V2147483647", "|S0", "nonsense"]), st.booleans()
    ).map(lambda parts: repr({"descr": parts[1], "fortran_order": parts[2], "shape": parts[0]}) + "\n"),
    TEXT,
    st.integers(1, 300).map(lambda depth: "(" * depth),
    st.just("{'descr': [('a', '<f4', (1000000, 1000000))], 'fortran_order': False, 'shape': (3,)}"),
)
CLAIMED = st.builds(claims, HEADERS, st.binary(max_size=80), st.sampled_from([b"\x01\x00", b"\x02\x00", b"\x03\x00"]))
PLAIN = st.builds(
    npy, SHAPES, st.sampled_from(DTYPES), st.sampled_from([0.0, 1.0, 255.0, -1.0, 1e300, np.nan]), st.sampled_from("CF")
)


def zipped(members: dict[str, bytes], method: int) -> bytes:
    """A zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


METHODS = st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
MEMBERS = st.sampled_from([f"{name}.npy" for name in NAMES])
ARCHIVES = st.builds(zipped, st.dictionaries(MEMBERS, st.one_of(PLAIN, CLAIMED), max_size=5), METHODS)
BOMB = "{{'descr': '|u1', 'fortran_order': False, 'shape': ({}, 512, 512, 3)}}\n"
BOMBS = st.builds(
    lambda size, method: zipped({"arr_0.npy": claims(BOMB.format(size), bytes(size * 512 * 512 * 3))}, method),
    st.sampled_from([2, 40]),
    METHODS,
)
OTHER_ZIPS = st.builds(
    zipped,
    st.dictionaries(st.one_of(TEXT, st.sampled_from(["a/data.pkl", "a/b.png", "a/data/0"])),
                    st.binary(max_size=50), max_size=4),
    METHODS,
)  # fmt: skip


def torch_saved(value: Any, zipped: bool) -> bytes:
    """What torch.save writes."""
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


TENSORS = st.builds(
    lambda shape, kind: torch.zeros(shape, dtype=kind),
    st.lists(st.integers(0, 4), max_size=5),
    st.sampled_from([torch.float32, torch.float16, torch.int64, torch.complex64, torch.bool]),
)
VALUES = st.recursive(
    st.one_of(TENSORS, st.integers(), TEXT, st.none(), st.builds(lambda: torch.zeros(1).expand(10**6, 10**6))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        st.dictionaries(st.one_of(TEXT, st.integers(), st.tuples(st.integers())), inner, max_size=4),
    ),
    max_leaves=8,
)
SAVED = st.builds(torch_saved, VALUES, st.booleans())
SAFETENSORS = st.one_of(
    st.dictionaries(TEXT, TENSORS, max_size=4).map(save),
    st.builds(
        lambda kind, shape, end: (lambda text: struct.pack("<Q", len(text)) + text + bytes(64))(
            f'{{"w":{{"dtype":"{kind}","shape":{list(shape)},"data_offsets":[0,{end}]}}}}'.encode()
        ),
        st.sampled_from(["F32", "F8_E4M3", "BF16", "X"]), HUGE, st.sampled_from([0, 4, 64, 2**40, 2**63]),
    ),
    st.builds(lambda length, rest: struct.pack("<Q", length) + b"{" + rest, st.integers(0, 2**64 - 1), st.binary()),
)  # fmt: skip


def damaged(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """These files, cut, with other first bytes, or with some bytes changed."""
    whole = st.integers(0, len(seeds) - 1).map(lambda i: seeds[i])  # sampled_from would print them all
    share = st.floats(0, 1)
    changes = st.lists(st.tuples(share, st.integers(0, 255)), min_size=1, max_size=6)

    def change(data: bytes, places: list[tuple[float, int]]) -> bytes:
        out = bytearray(data)
        for place, value in places:
            out[int(place * (len(out) - 1))] = value
        return bytes(out)

    return st.one_of(
        st.builds(lambda data, part: data[: int(part * len(data))], whole, share),
        st.builds(lambda data, magic: magic + data[len(magic) :], whole, st.sampled_from(MAGIC)),
        st.builds(change, whole, changes),
        st.builds(lambda data, places: data[:-400] + change(data[-400:], places), whole, changes),
        st.builds(lambda data, more: data + more, whole, st.binary(max_size=9)),
    )


RANDOM = st.one_of(st.binary(max_size=600), st.builds(bytes.__add__, st.sampled_from(MAGIC), st.binary(max_size=600)))


def run(argv: list[str]) -> tuple[int | str, str]:
    """Exit code of the command, or the traceback with which it ended, and all that came to stderr."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        sys.stderr.flush()
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                code: int | str = cli.main(argv)
        except BaseException:
            code = traceback.format_exc()
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        return code, file.read().decode(errors="replace")


def check(argv: list[str]) -> int:
    """Hold a command against what is promised; its exit code."""
    code, said = run(argv)
    assert code in (0, 2, 3), f"{argv}: {code}"
    assert len(said) <= MOST, f"{argv}: {len(said)} characters: {said}"
    assert code == 0 or said.count("\n") == 1, f"{argv}: {said}"
    assert "unsafe" not in said
    assert "allow_pickle" not in said
    assert "weights_only" not in said
    return int(code)


def evaluate() -> tuple[st.SearchStrategy[Any], Callable[[Any], int]]:
    """Any file as samples or as reference, with the features of a small classifier."""
    write(Path(), small())
    for verb in ("prepare", "classifier", "reference"):
        assert cli.main([verb, "--dataset", "tiny"]) == 0
    images, stats = Path("data/tiny/images.npy"), Path("reference/tiny/stats.npz")
    with np.load(stats) as file:
        np.savez_compressed("packed.npz", arr_0=np.load(images), **file)
    seeds = [path.read_bytes() for path in (images, stats, Path("packed.npz"))]
    odd = st.one_of(RANDOM, damaged(seeds), PLAIN, CLAIMED, ARCHIVES, BOMBS, OTHER_ZIPS, SAVED, SAFETENSORS)
    ours = ["--features", "features/tiny/classifier.safetensors", "--threads", "1"]

    def try_one(case: tuple[bytes, str, bool]) -> int:
        data, other, swapped = case
        Path("case.npz").write_bytes(data)
        names = [other, "case.npz"] if swapped else ["case.npz", other]
        return check(["evaluate", names[0], "--reference", names[1], *ours])

    return st.tuples(odd, st.sampled_from([str(images), str(stats)]), st.booleans()), try_one


def into() -> tuple[st.SearchStrategy[Any], Callable[[Any], int]]:
    """Any file as a checkpoint."""
    write(Path(), put(small(), "models.official", {"family": "adm", "imported": True}))
    spec = config.Studies().owner("tiny").run_spec("tiny", "official", 0)
    state = {name: torch.ones(shape) for name, shape in checking.shapes(spec).items()}
    listed = [{f"module.{name}": value for name, value in state.items()}, {}, 3, 5000, state]
    seeds = [torch_saved(state, True), torch_saved(state, False), torch_saved(listed, True), save(state)]
    odd = st.one_of(RANDOM, damaged(seeds), SAVED, SAFETENSORS, OTHER_ZIPS, ARCHIVES, PLAIN, CLAIMED, BOMBS)

    def try_one(data: bytes) -> int:
        Path("case.pt").write_bytes(data)
        code = check(["import", "case.pt", "--as", "tiny/official", "--step", "8"])
        assert Path("runs").exists() == (code == 0)
        shutil.rmtree("runs", ignore_errors=True)
        return code

    return odd, try_one


def network() -> tuple[st.SearchStrategy[Any], Callable[[Any], int]]:
    """Any file as the Inception network."""
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    np.save("images.npy", images)
    seeds = [write_inception(Path("net.pt"), width=1 / 64, classes=4).read_bytes()]
    odd = st.one_of(RANDOM, damaged(seeds), SAVED, OTHER_ZIPS)

    def try_one(data: bytes) -> int:
        Path("case.pt").write_bytes(data)
        options = ["--features", "case.pt", "--threads", "1", "--metrics", "fid,inception_score"]  # sfid takes seconds
        return check(["evaluate", "images.npy", "--reference", "images.npy", *options])

    return odd, try_one


SUBJECTS = {"evaluate": evaluate, "import": into, "network": network}


def main(subject: str, examples: int, derandomize: bool = True) -> None:
    """Try so many files, the same ones each time unless told otherwise."""
    warnings.simplefilter("ignore")  # of this process's preparations
    strategy, try_one = SUBJECTS[subject]()
    warnings.simplefilter("always")  # of the command: on stderr, where they count
    with Path("/proc/self/statm").open() as file:
        address_space = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (address_space + GIB, address_space + GIB))
    codes: dict[int, int] = {}

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=derandomize,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(case: Any) -> None:
        code = try_one(case)
        codes[code] = codes.get(code, 0) + 1

    try:
        each()
    except BaseException as error:  # its notes hold the whole file, which lies here as case.*
        raise SystemExit(f"{type(error).__name__}: {str(error)[:3000]}") from None
    peak = resident_peak()
    print(f"{sum(codes.values())} files; exit codes {dict(sorted(codes.items()))}; peak {peak} bytes")
    assert peak < GIB, f"peak of {peak} bytes"


def resident_peak() -> int:
    """Bytes; ru_maxrss would count what this process' parent had before it started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), derandomize=len(sys.argv) < 4)
