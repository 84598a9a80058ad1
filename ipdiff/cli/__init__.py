"""The command line: one verb a stage, and the verbs that look after the project."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence

from ipdiff.cli import arguments
from ipdiff.cli.verbs import say
from ipdiff.errors import IntegrityError, Preempted, UserError, brief
from ipdiff.pipeline.engines import fork_server
from ipdiff.pipeline.stages import STAGES
from ipdiff.work import launch

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says when a disk or a quota is full."""
DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)
"""What it says where one may not write, or read."""
MISPLACED = (errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""What it says where something else stands in the place of a folder, or a name is too long."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    return arguments.parser(main)


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
        if error.errno in MISPLACED:
            where = brief(error.filename or "a file")
            return say(
                f"{where}: {error.strerror}; give it a shorter name, or a folder that is there: no file or link "
                "to a disk that is not mounted may stand in its place",
                2,
            )
        if error.errno not in FULL:
            raise
        return say(f"{error.strerror}; nothing was published, free some (work/ holds work in progress)", 2)


def _out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device's or the host's memory is used up; torch is not imported to know its own."""
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    )
