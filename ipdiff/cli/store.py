"""Verbs on the artifacts that are there: checked, brought, published."""

from __future__ import annotations

import argparse

from ipdiff.cli.verbs import TARGETS, arg, flag, say, verb
from ipdiff.errors import UserError
from ipdiff.pipeline.stages import WILDCARDS


@verb(
    "verify",
    "hash every artifact again and hold it against its recipe, dvc.lock and DVC's cache",
    arg("targets", f"{TARGETS}; what is named has to be there", nargs="*", metavar="TARGET"),
    arg("--study", "only this study's artifacts"),
    arg(
        "--cache", "hash DVC's local cache as well (default: yes)", action=argparse.BooleanOptionalAction, default=True
    ),
    arg(
        "--against",
        "instead: how many artifacts are byte-identical to those in the dvc.lock of this git revision",
        metavar="REV",
    ),
)
def _verify(args: argparse.Namespace) -> int:
    """Reads every artifact, its recipe, dvc.lock and DVC's cache; writes nothing. Exit code 3: something is wrong.

    ipdiff verify --study digits
    ipdiff verify --against HEAD
    """
    from ipdiff.pipeline.commands.store import verify

    if args.against is not None:
        print(*verify.against(args.against, args.targets, study=args.study), sep="\n")
        return 0
    done = verify.verify(args.targets, study=args.study, cache=args.cache)
    print(*done.problems, done, sep="\n")
    return 3 if done.problems else 0


@verb(
    "pull",
    "bring artifacts from a DVC remote, verify them, and tell Snakemake of them",
    arg("targets", TARGETS, nargs="*", metavar="TARGET"),
    arg("--remote", "name of the DVC remote (default: the project's default remote, else published/store)"),
    flag("--metrics-only", "only metrics, tables, figures, reports and recipes"),
    arg("--jobs", "files at a time (default: what DVC chooses for the remote)", type=int),
    flag("--force", "replace files here that DVC does not know"),
)
def _pull(args: argparse.Namespace) -> int:
    """Reads dvc.lock and the remote; writes the artifacts where they belong, and DVC's cache.

    ipdiff pull --metrics-only
    ipdiff pull runs/digits/adm-ip/s0/5000
    """
    from ipdiff.pipeline.commands.store import pull

    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs is {args.jobs}; use 1 or more")
    done = pull.pull(args.targets, remote=args.remote, metrics_only=args.metrics_only, jobs=args.jobs, force=args.force)
    print(*filter(None, [done.said, done.left_out]), sep="\n")
    for line in [*done.wrong, *filter(None, [done.failed])]:
        say(line)
    return 3 if done.wrong else 2 if done.failed is not None else 0


@verb(
    "publish",
    "copy a study's numbers, tables, figures, receipts and first images to published/STUDY, for git",
    arg("study", WILDCARDS["study"]),
    flag("--store", "make published/store anew too: the DVC remote inside the repository, of all published studies"),
)
def _publish(args: argparse.Namespace) -> None:
    """Reads the study's metrics, tables, figures and receipts; writes published/STUDY/, and published/store.

    ipdiff publish digits
    """
    from ipdiff.pipeline.commands.store import publish

    print(*publish.publish(args.study, store=args.store), sep="\n")
