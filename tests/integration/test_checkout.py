"""A checkout has the bytes that were committed, also where git turns line ends into those of Windows."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def git(folder: Path, *words: str, given: str | None = None) -> str:
    return subprocess.run(["git", *words], cwd=folder, input=given, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git repository: a downloaded copy cannot be cloned")
def test_a_clone_with_the_line_ends_of_windows_has_the_committed_bytes(tmp_path: Path) -> None:
    windows = ("-c", "core.autocrlf=true", "-c", "core.eol=crlf")
    git(tmp_path, "clone", "--quiet", *windows, str(ROOT), "clone")
    listed = [line.split("\t") for line in git(tmp_path / "clone", "ls-files", "--stage", "-z").split("\0") if line]
    committed = {name: stage.split()[1] for stage, name in listed}
    found = git(tmp_path / "clone", "hash-object", "--no-filters", "--stdin-paths", given="\n".join(committed)).split()
    assert [name for name, digest in zip(committed, found, strict=True) if committed[name] != digest] == []
    for script in (tmp_path / "clone").rglob("*.sh"):
        subprocess.run(["bash", "-n", str(script)], check=True)
