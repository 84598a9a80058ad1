"""`ipdiff VERB ...`: one verb a stage, and the verbs that look after the project.

Exit codes: 0 done, 2 bad input, 3 integrity, 75 preempted (run me again).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ipdiff import __version__
from ipdiff.errors import IntegrityError, Preempted, UserError

if TYPE_CHECKING:
    from ipdiff.grid import Cell

STAGE_HELP = {
    "prepare": "read a raw data set into images.npy and labels.npy",
    "classifier": "train the small CNN whose activations FID compares",
    "reference": "statistics of the real images",
    "train": "train one segment of a run and publish its checkpoint",
    "resume": "publish a run's full train state",
    "sample": "draw a sample set from a checkpoint",
    "evaluate": "FID, sFID and pixel Frechet distance of a sample set",
    "table": "make one table of a study",
    "figure": "make one figure of a study",
    "report": "make a study's page",
}
WILDCARDS = {
    "prepare": ("dataset",),
    "classifier": ("dataset",),
    "reference": ("dataset",),
    "train": ("dataset", "model", "seed", "step"),
    "resume": ("dataset", "model", "seed", "step"),
    "sample": ("dataset", "model", "seed", "step", "sampler"),
    "evaluate": ("dataset", "model", "seed", "step", "sampler"),
    "table": ("study", "table"),
    "figure": ("study", "figure"),
    "report": ("study",),
}
WILDCARD_HELP = {
    "dataset": "key of params.yaml datasets",
    "model": "key of params.yaml models",
    "seed": "training seed",
    "step": "optimiser updates of the checkpoint",
    "sampler": "ancestral-N, ddimETA-N, ddimETA-quadN, ddimETA-uniformN or exposure-t",
    "study": "key of params.yaml studies",
    "table": "table of the study",
    "figure": "figure of the study",
}


class _Parser(argparse.ArgumentParser):
    """Argument errors as one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = _Parser(prog="ipdiff", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action="version", version=f"ipdiff {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in STAGE_HELP.items():
        sub = verbs.add_parser(verb, help=text, description=text)
        for name in WILDCARDS[verb]:
            sub.add_argument(f"--{name}", required=True, help=WILDCARD_HELP[name])
        if verb == "sample":
            sub.add_argument("--index", type=int, help="draw only this image of the set, as a PNG")
            sub.add_argument("--out", type=Path, help="where --index writes its PNG")
    graph = verbs.add_parser("grid", help="list the cells of a study; write or check the dvc.yaml files")
    graph.add_argument("--study", help="the study whose cells to list (default: the digits study)")
    graph.add_argument(
        "--stale",
        action="store_true",
        help="list only cells to be made again: missing, changed, or below a changed one",
    )
    graph.add_argument("--write", action="store_true", help="write the dvc.yaml files and config/README.md")
    graph.add_argument("--check", action="store_true", help="exit 2 if one of those files is stale")
    code = verbs.add_parser("code", help="write a verb's code digest (a stage of DVC)")
    code.add_argument("--verb", dest="code_verb", required=True, choices=list(STAGE_HELP))
    code.add_argument("--study", required=True, help=WILDCARD_HELP["study"])
    text = "bring dvc.lock, DVC's cache and Snakemake's records into agreement with what is there"
    agree = verbs.add_parser("sync", help=text, description=text)
    agree.add_argument("--record-only", action="store_true", help="leave Snakemake's records alone (it is running)")
    _add_store_verbs(verbs)
    return top


TARGET_HELP = "a study, table:STUDY/NAME, figure:STUDY/NAME, an output, an artifact's folder (default: everything)"


def _add_store_verbs(verbs: argparse._SubParsersAction[_Parser]) -> None:
    text = "hash every artifact again and hold it against its recipe, dvc.lock and DVC's cache"
    check = verbs.add_parser("verify", help=text, description=text)
    check.add_argument("targets", nargs="*", metavar="TARGET", help=f"{TARGET_HELP}; what is named has to be there")
    check.add_argument("--study", help="only this study's artifacts")
    text = "hash DVC's local cache as well (default: yes)"
    check.add_argument("--cache", action=argparse.BooleanOptionalAction, default=True, help=text)
    text = "instead: how many artifacts are byte-identical to those in the dvc.lock of this git revision"
    check.add_argument("--against", metavar="REV", help=text)
    text = "bring artifacts from a DVC remote, verify them, and tell Snakemake of them"
    bring = verbs.add_parser("pull", help=text, description=text)
    bring.add_argument("targets", nargs="*", metavar="TARGET", help=TARGET_HELP)
    bring.add_argument("--remote", help="name of the DVC remote (default: the project's default remote)")
    text = "only metrics, tables, figures, reports and recipes"
    bring.add_argument("--metrics-only", action="store_true", help=text)
    bring.add_argument("--jobs", type=int, help="files at a time (default: what DVC chooses for the remote)")
    bring.add_argument("--force", action="store_true", help="replace files here that DVC does not know")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    args = parser().parse_args(argv)
    for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # read when numpy is imported; torch's threads are
        os.environ.setdefault(pool, "1")  # set by the artifact's compute.threads
    try:
        return _run(args)
    except UserError as error:
        return _say(error, 2)
    except IntegrityError as error:
        return _say(error, 3)
    except Preempted as error:
        return _say(error, 75)
    except BrokenPipeError:
        return 0


def _say(error: Exception, code: int) -> int:
    print(f"ipdiff: {error}", file=sys.stderr)
    return code


def _run(args: argparse.Namespace) -> int:
    if args.verb == "grid":
        return _grid(args)
    if args.verb == "code":
        return _code(args.code_verb, args.study)
    if args.verb == "sync":
        return _sync(args)
    if args.verb == "verify":
        return _verify(args)
    if args.verb == "pull":
        return _pull(args)
    from ipdiff import grid, stages

    cell = grid.load().cell(args.verb, **{name: getattr(args, name) for name in WILDCARDS[args.verb]})
    if args.verb == "sample" and args.index is not None:
        return _draw_one(cell, args.index, args.out or Path(f"{args.index}.png"))
    stages.make(cell)
    print(cell.directory)
    return 0


def _draw_one(cell: Cell, index: int, path: Path) -> int:
    from ipdiff import stages

    stages.draw_one(cell, index, path)
    print(path)
    return 0


def _code(verb: str, study: str) -> int:
    from ipdiff import config, sync

    config.load().study(study)
    print(sync.write_code_digest(verb, study))
    return 0


def _sync(args: argparse.Namespace) -> int:
    from ipdiff import sync

    done = sync.record() if args.record_only else sync.sync()
    for lock in done.mended:
        print(
            f"ipdiff: a damaged dvc.lock was set aside as {lock}; cells that are here are recorded anew",
            file=sys.stderr,
        )
    for line in done.refused:
        print(f"ipdiff: not recorded: {line}", file=sys.stderr)
    print(f"recorded {len(done.recorded)} cells with DVC; told Snakemake of {len(done.adopted)}")
    return 3 if done.refused else 0


def _verify(args: argparse.Namespace) -> int:
    from ipdiff import verify

    studies = None if args.study is None else [args.study]
    if args.against is not None:
        for line in verify.against(args.against, args.targets, studies=studies).lines():
            print(line)
        return 0
    done = verify.verify(args.targets, studies=studies, cache=args.cache)
    for problem in done.problems:
        print(problem)
    print(done)
    return 3 if done.problems else 0


def _pull(args: argparse.Namespace) -> int:
    from ipdiff import pull

    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs is {args.jobs}; use 1 or more")
    done = pull.pull(args.targets, remote=args.remote, metrics_only=args.metrics_only, jobs=args.jobs, force=args.force)
    print(done)
    wrong = [*done.damaged, *map(str, done.problems)]
    for line in [*wrong, *filter(None, [done.failed])]:
        print(f"ipdiff: {line}", file=sys.stderr)
    return 3 if wrong else 2 if done.failed is not None else 0


def _grid(args: argparse.Namespace) -> int:
    from ipdiff import dvcfile, grid, written

    cells = grid.load()
    if args.write:
        for path in written.write(cells):
            print(f"wrote {path}")
    if args.check:
        stale = written.stale(cells)
        if stale:
            raise UserError(f"{', '.join(map(str, stale))}: not what params.yaml asks for; run `ipdiff grid --write`")
    if args.stale:
        return _stale(args.study or dvcfile.DEFAULT_STUDY)
    if args.study or not (args.write or args.check):
        for cell in cells.study(args.study or dvcfile.DEFAULT_STUDY):
            print(f"{dvcfile.address(cell)}\t{cell.directory}")
    return 0


def _stale(study: str) -> int:
    from ipdiff import dvcfile, sync

    fresh = sync.freshness()
    for cell in fresh.stale(fresh.grid.study(study)):
        print(f"{fresh.state(cell)}\t{dvcfile.address(cell)}\t{cell.directory}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
