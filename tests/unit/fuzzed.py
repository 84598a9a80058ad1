"""`ipdiff` with inputs of any kind: one process runs many cases, and says what each ended in.

As a script it is that process: it reads cases from stdin, one JSON object a line, and answers each with one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


class Fuzzed:
    """The process, in a directory of its own; to be closed."""

    def __init__(self, directory: Path) -> None:
        self._child = subprocess.Popen(
            [sys.executable, __file__], cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, argv: list[str]) -> dict[str, Any]:
        """Run `ipdiff argv`: {"code", "said" (all of stderr, that of C libraries as well), "peak" (bytes)}."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(argv) + "\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        assert answer, f"ipdiff {argv} died: exit code {self._child.wait()}"
        return json.loads(answer)

    def close(self) -> None:
        """End it."""
        self._child.communicate()


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def _main() -> None:
    from ipdiff import cli

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        with tempfile.TemporaryFile() as said:
            kept = os.dup(2)
            os.dup2(said.fileno(), 2)
            try:
                code = cli.main(json.loads(line))
            except SystemExit as error:
                code = error.code
            except BaseException as error:  # a traceback, where a person runs it
                code = f"{type(error).__name__}: {error}"
            finally:
                sys.stderr.flush()
                os.dup2(kept, 2)
                os.close(kept)
            said.seek(0)
            text = said.read().decode(errors="replace")
        answers.write(json.dumps({"code": code, "said": text, "peak": _peak()}) + "\n")
        answers.flush()


if __name__ == "__main__":
    _main()
