"""Verbs beside the engines: their agreement, and one start of torch for all stages."""

from __future__ import annotations

import argparse

from ipdiff.cli.verbs import arg, flag, say, verb
from ipdiff.errors import UserError
from ipdiff.pipeline.engines import fork_server


@verb(
    "sync",
    "bring dvc.lock, DVC's cache and Snakemake's records into agreement with what is there",
    flag("--record-only", "leave Snakemake's records alone (it is running)"),
)
def _sync(args: argparse.Namespace) -> int:
    """Reads recipes and both engines' records; writes dvc.lock, DVC's cache and Snakemake's records.

    Snakemake runs it when it starts and ends.

    ipdiff sync
    """
    from ipdiff.pipeline.engines import sync

    if (why := sync.obstacle()) is not None:
        if args.record_only:  # Snakemake has said so when it started
            return 0
        raise UserError(f"nothing can be recorded: {why}")
    done = sync.record()
    adopted = [] if args.record_only else sync.adopt()
    for lock in done.mended:
        say(f"a damaged dvc.lock was set aside as {lock}; cells that are here are recorded anew")
    for line in done.refused:
        say(f"not recorded: {line}")
    print(f"recorded {len(done.cells)} cells with DVC; told Snakemake of {len(adopted)}")
    return 3 if done.refused else 0


@verb(
    "warm",
    "run a command with torch imported once for all the stages it starts",
    arg("--serve", argparse.SUPPRESS, type=int),
    arg("command", "such as: dvc repro", nargs=argparse.REMAINDER, metavar="COMMAND"),
)
def _warm(args: argparse.Namespace) -> int:
    """Reads and writes what the command does.

    ipdiff warm dvc repro
    """
    if args.serve is not None:
        fork_server.serve(args.serve, args.main)
        return 0
    if not args.command:
        raise UserError("warm needs a command to run, such as: ipdiff warm dvc repro")
    return fork_server.command(args.command)
