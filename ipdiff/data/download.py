"""Published files: found where the user put them, or downloaded, and held against their digest.

A file has its name only when its size and digest fit: a download grows beside it as `NAME.part` and a broken
one goes on where it stopped. Parallel jobs wait for each other.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ipdiff.data.formats import filekind
from ipdiff.data.spec import Archive
from ipdiff.errors import IntegrityError, Unavailable, UserError, brief
from ipdiff.work import progress
from ipdiff.work.locks import locked

if TYPE_CHECKING:
    from requests import Response

VARIABLE = "IPDIFF_RAW"
"""Environment variable that names a directory to look in before raw/, for clusters without a network."""

_TIMEOUT_S = 30


def place(archive: Archive) -> Path:
    """Where the file lies, or has to be put: in the directory that IPDIFF_RAW names, or in raw/."""
    folders = [Path(folder) for folder in (os.environ.get(VARIABLE), "raw") if folder]
    places = [folder / archive.file for folder in folders]
    return next(filter(Path.exists, places), places[0])


def obtain(archive: Archive, path: Path | None = None) -> Path:
    """The path of a published file that is there and is the right one.

    Args:
        archive: its name, size, digest and source.
        path: where it lies, or is put; `place(archive)` if None.

    Returns:
        That path; the file was downloaded if it was missing and has a url.

    Raises:
        UserError: it is missing and cannot be downloaded, or a web page or a pointer stands in its place.
        IntegrityError: its size or digest is another.
    """
    path = path or place(archive)
    if not path.exists():
        if archive.url is None:
            _ask_for(archive, path)
        _download_from([archive.url, *archive.mirrors], archive, path)
    else:
        check(archive, path)
    return path


def _ask_for(archive: Archive, path: Path) -> NoReturn:
    how = archive.how.strip() or "Get it from its publisher."
    raise UserError(
        f"{path} is missing. {how} Put it there, or name the directory that has it in {VARIABLE}"
        + (f" (sha256 {archive.sha256})" if archive.sha256 else "")
    )


def check(archive: Archive, path: Path, name: str = "") -> None:
    """Hold a file against the archive's size and digest; see `obtain` for what is raised.

    Args:
        archive: what it should be.
        path: the file.
        name: what messages call it, if not by its path.
    """
    name = name or str(path)
    if not path.is_file():
        raise UserError(f"{name}: is no file; expected {archive.file} as published")
    with path.open("rb") as file:
        kind = filekind.of(file.read(filekind.HEAD))
        if kind.stand_in:
            raise UserError(f"{name}: is not {archive.file}; it is {kind.words}")
        size = path.stat().st_size
        if archive.size not in (None, size):
            raise IntegrityError(name, f"{archive.size} bytes", f"{size} bytes")
        file.seek(0)
        if archive.sha256 is not None:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != archive.sha256:
                raise IntegrityError(name, f"sha256 {archive.sha256}", f"sha256 {digest}")


def _download_from(urls: Sequence[str], archive: Archive, path: Path) -> None:
    """From the first place that has it. What failed before is said on stderr, and the last failure raised."""
    for url, following in zip(urls, [*urls[1:], None], strict=True):
        try:
            return _download(archive, url, path)
        except (UserError, IntegrityError) as error:
            if following is None:
                raise
            print(f"ipdiff: {error}; now from {following}", file=sys.stderr, flush=True)


def _download(archive: Archive, url: str, path: Path) -> None:
    """Download to PATH.part, going on from what is there, then check it and give it its name."""
    try:
        with locked(path.with_name(f".{path.name}.lock")):
            if path.exists():  # another job was faster
                return check(archive, path)
            part = path.with_name(f"{path.name}.part")
            more = _fetch(archive, url, part)
            try:
                check(archive, part, f"{archive.file} as downloaded")
            except (IntegrityError, UserError) as error:
                have = part.stat().st_size
                if more and isinstance(error, IntegrityError) and archive.size is not None and have < archive.size:
                    raise Unavailable(
                        f"{archive.file}: ended early at {have} of {archive.size} bytes; run again to go on"
                    ) from None
                part.unlink()
                raise
            part.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def _fetch(archive: Archive, url: str, part: Path) -> bool:
    """Append what is missing to `part`, from its start if the server cannot go on in the middle.

    Returns:
        Whether the server may have more: a connection may end early without an error where no length was said.
    """
    try:
        import requests
        from urllib3.exceptions import HTTPError
    except ImportError as error:
        raise UserError(f"downloading {url} needs {error.name}; pip install 'ipdiff[data]'") from error
    with part.open("ab") as file:
        have = file.tell()
        if archive.size is not None and have >= archive.size:
            return False
        _check_room(archive, part, have)
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
        try:
            with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as answer:
                if answer.status_code == 416:  # nothing is left to ask for
                    return False
                answer.raise_for_status()
                if answer.status_code == 200:  # the whole file, even where only the rest was asked for
                    _check_offer(archive, part, answer)
                    have = file.truncate(0)
                progress.begin("bytes", archive.size, have)
                for chunk in answer.iter_content(1 << 20):
                    have += file.write(chunk)
                    progress.tell(have)
                return True
        except (requests.RequestException, HTTPError) as error:  # requests lets some of urllib3's through
            raise Unavailable(
                f"{archive.file}: cannot be downloaded: {brief(error, 80)}; run again to go on, or get it on "
                f"another machine and put it at {part.with_suffix('')} (or name its directory in {VARIABLE})"
            ) from error


def _check_room(archive: Archive, part: Path, have: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if archive.size is not None and archive.size - have > free:
        raise Unavailable(f"{part}: needs {archive.size - have} bytes more, {free} are free")


def _check_offer(archive: Archive, part: Path, answer: Response) -> None:
    length = answer.headers.get("Content-Length")
    if archive.size is not None and length not in (None, str(archive.size)):
        kind = brief(answer.headers.get("Content-Type"), 40)
        raise UserError(
            f"{archive.file}: the server offers {brief(length, 20)} bytes ({kind}), not {archive.size}; get it "
            f"elsewhere and put it at {part.with_suffix('')}"
        )
