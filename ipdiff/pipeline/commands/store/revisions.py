"""What a git revision of the project says: its files, and what its dvc.lock files record."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

from ipdiff.errors import UserError
from ipdiff.pipeline.engines import dvc_files


def commit_of(revision: str) -> str:
    """The digest of a revision's commit; UserError where git knows none of that name."""
    found = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if not found:
        raise UserError(f"git knows no revision '{revision}' here; see git log")
    return found.decode().strip()


def text_of(revision: str, path: str) -> bytes:
    """A file of a known revision, by its path from the project's root; nothing where it has none."""
    return git("show", f"{revision}:./{path}")


def recorded(revision: str, studies: Iterable[str]) -> dict[str, str]:
    """Output path -> md5, by the dvc.lock and .dvc files of a git revision.

    Raises:
        UserError: git does not know the revision, or one of the files is damaged there.
    """
    commit = commit_of(revision)
    pointers = git("ls-tree", "--name-only", commit, f"./{dvc_files.IMPORTED}/").decode().splitlines()
    names = [*(dvc_files.lock_of(study).as_posix() for study in studies), *pointers]
    files = {name: text_of(commit, name) for name in names if name.endswith((".dvc", ".lock"))}
    return dvc_files.digests_in({name: text for name, text in files.items() if text}, revision)


def git(*arguments: str) -> bytes:
    """What git says; nothing if it fails."""
    try:
        ran = subprocess.run(["git", *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise UserError("git is not installed; --against asks it for what a revision records") from None
    return b"" if ran.returncode else ran.stdout
