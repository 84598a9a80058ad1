"""The command line: one verb a stage, and the verbs that look after the project.

Exit codes: 0 done, 2 bad input, 3 integrity, 75 preempted (run me again), 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ipdiff import __version__
from ipdiff.cli import engines, exchange, stages, store, study  # noqa: F401  # each adds its verbs
from ipdiff.cli.verbs import VERBS, say
from ipdiff.errors import IntegrityError, Preempted, UserError, brief
from ipdiff.pipeline.engines import fork_server
from ipdiff.pipeline.stages import STAGES, WILDCARDS
from ipdiff.work import launch

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says when a disk or a quota is full."""
DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)
"""What it says where one may not write, or read."""


class _Parser(argparse.ArgumentParser):
    """Argument errors as one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = _Parser(prog="ipdiff", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.set_defaults(main=main)  # what a server of commands runs
    top.add_argument("--version", action="version", version=f"ipdiff {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, stage in STAGES.items():
        sub = verbs.add_parser(verb, help=stage.help, description=stage.help)
        for name in stage.wildcards:
            sub.add_argument(f"--{name}", required=verb not in stages.OPTIONAL, help=WILDCARDS[name])
        sub.set_defaults(work=stages.make)
        if verb == "evaluate":
            stages.add_files(sub)
        if verb == "sample":
            sub.add_argument("--index", type=int, help="draw only this image of the set, as a PNG")
            sub.add_argument("--out", type=Path, help="where --index writes its PNG")
        if verb == "report":
            text = "instead: a page of the study's numbers at this git revision, now, and their differences"
            sub.add_argument("--against", metavar="REV", help=text)
    for verb, (text, arguments, work) in VERBS.items():
        sub = verbs.add_parser(verb, help=text, description=text)
        for name, options in arguments:
            sub.add_argument(name, **options)
        sub.set_defaults(work=work)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    args = parser().parse_args(argv)
    for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # read when numpy is imported:
        os.environ[pool] = "1"  # the artifact's compute.threads sets torch's, and a cluster's setting decides no byte
    if args.verb in STAGES and not launch.started_here():  # else open files were inherited, which stay here
        if (code := fork_server.run(sys.argv[1:] if argv is None else argv)) is not None:
            return code
    try:
        return args.work(args) or 0
    except UserError as error:
        return say(error, 2)
    except IntegrityError as error:
        return say(error, 3)
    except Preempted as error:
        return say(error, 75)
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        return say("interrupted", 130)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        return say(
            f"out of memory: {brief(error, 200)}; nothing was published: take a machine or a device with more, or a "
            "smaller batch_size of this stage, which is part of the artifact",
            2,
        )
    except OSError as error:
        if error.errno in DENIED:
            where = error.filename or "a file"
            return say(f"{where}: {error.strerror}; use a copy of the project that you may write", 2)
        if error.errno not in FULL:
            raise
        return say(f"{error.strerror}; nothing was published, free some (work/ holds work in progress)", 2)


def _out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device's or the host's memory is used up; torch is not imported to know its own."""
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    )
