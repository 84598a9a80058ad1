"""The command line: one verb a stage, and the verbs that look after the project.

Exit codes: 0 done, 2 bad input, 3 integrity, 75 preempted (run me again).
"""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ipdiff import __version__
from ipdiff.errors import IntegrityError, Preempted, UserError
from ipdiff.pipeline.engines import fork_server
from ipdiff.pipeline.stages import STAGES, WILDCARDS
from ipdiff.work import launch

EXPORT_FORMATS = ("safetensors", "guided-diffusion", "diffusers")
FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says when a disk or a quota is full."""
DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)
"""What it says where one may not write, or read."""


class _Parser(argparse.ArgumentParser):
    """Argument errors as one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


Work = Callable[[argparse.Namespace], int | None]
"""What a verb does; returns the exit code, or None for 0."""
Argument = tuple[str, dict[str, Any]]
"""What argparse is told of an argument of a verb."""
VERBS: dict[str, tuple[str, tuple[Argument, ...], Work]] = {}
"""Verbs that are no stage's: what each does, its arguments, and its work."""


def _arg(name: str, text: str, **options: Any) -> Argument:
    return name, {"help": text, **options}


def _flag(name: str, text: str) -> Argument:
    return name, {"help": text, "action": "store_true"}


def _verb(name: str, text: str, *arguments: Argument) -> Callable[[Work], Work]:
    """Make a function the work of a verb."""

    def keep(work: Work) -> Work:
        VERBS[name] = (text, arguments, work)
        return work

    return keep


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = _Parser(prog="ipdiff", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action="version", version=f"ipdiff {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, stage in STAGES.items():
        sub = verbs.add_parser(verb, help=stage.help, description=stage.help)
        for name in stage.wildcards:
            sub.add_argument(f"--{name}", required=verb != "evaluate", help=WILDCARDS[name])
        sub.set_defaults(work=_make)
        if verb == "evaluate":
            _add_files(sub)
        if verb == "sample":
            sub.add_argument("--index", type=int, help="draw only this image of the set, as a PNG")
            sub.add_argument("--out", type=Path, help="where --index writes its PNG")
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
        return _say(error, 2)
    except IntegrityError as error:
        return _say(error, 3)
    except Preempted as error:
        return _say(error, 75)
    except BrokenPipeError:
        return 0
    except OSError as error:
        if error.errno in DENIED:
            where = error.filename or "a file"
            return _say(f"{where}: {error.strerror}; use a copy of the project that you may write", 2)
        if error.errno not in FULL:
            raise
        return _say(f"{error.strerror}; nothing was published, free some (work/ holds work in progress)", 2)


def _say(error: Exception | str, code: int = 0) -> int:
    text = f"ipdiff: {error}".encode(errors="backslashreplace").decode()  # names of files may be no text
    print(text, file=sys.stderr)
    return code


def _json(data: object) -> str:
    import json

    return json.dumps(data, indent=1)


# Stages


def _make(args: argparse.Namespace) -> int:
    """Make the cell that a stage's verb names."""
    from ipdiff.pipeline import grid, jobs
    from ipdiff.work import signals

    names = {name: getattr(args, name) for name in STAGES[args.verb].wildcards}
    cell = grid.load().cell(args.verb, **names)
    if args.verb == "sample" and (args.index is not None or args.out is not None):
        if args.index is None:
            raise UserError("ipdiff sample: --out goes with --index")
        path = args.out or Path(f"{args.index}.png")
        jobs.draw_one(cell, args.index, path)
        print(path)
        return 0
    count = launch.wanted(shared=STAGES[args.verb].shared)
    if count > 1:
        return jobs.make_with(count, cell, [args.verb, *(f"--{name}={value}" for name, value in names.items())])
    launch.follow_starter()
    with signals.immediate():
        jobs.make(cell)
    print(cell.directory)
    return 0


def _add_files(sub: argparse.ArgumentParser) -> None:
    """The second form of `evaluate`: any two files."""
    names = " ".join(f"--{name} {name.upper()}" for name in STAGES["evaluate"].wildcards)
    sub.usage = f"%(prog)s {names}\n       %(prog)s SAMPLES --reference FILE [--features F] [--metrics M] [--json]"
    files = sub.add_argument_group("files from outside the pipeline")
    text = "npz with arr_0 (uint8 NHWC) or mu, sigma, mu_s, sigma_s (used as they are); npy, folder or zip of images"
    files.add_argument("samples", nargs="?", metavar="SAMPLES", type=Path, help=text)
    files.add_argument("--reference", metavar="FILE", type=Path, help="the real images: a file of the same kinds")
    text = "inception (default) or the path of its file, a classifier.safetensors, or a .json of a TorchScript network"
    files.add_argument("--features", help=text)
    files.add_argument("--metrics", help="comma-separated (default: all that the files permit)")
    files.add_argument("--device", choices=["cpu", "cuda"], help="where to compute (default: cpu)")
    files.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    files.add_argument("--json", action="store_true", help="print JSON")
    sub.set_defaults(work=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    """Either form of `evaluate`: one or the other, and whole. Raises UserError."""
    wildcards = STAGES["evaluate"].wildcards
    names = [f"--{name}" for name in wildcards if getattr(args, name) is not None]
    options = ("reference", "features", "metrics", "device", "threads")
    files = [f"--{name}" for name in options if getattr(args, name) is not None] + ["--json"] * args.json
    if args.samples is None:
        if files:
            raise UserError(f"ipdiff evaluate: {files[0]} goes with a file of samples: SAMPLES --reference FILE")
        if missing := [f"--{name}" for name in wildcards if getattr(args, name) is None]:
            raise UserError(f"ipdiff evaluate: needs {', '.join(missing)}, or SAMPLES --reference FILE")
        return _make(args)
    if names:
        raise UserError(f"ipdiff evaluate: {names[0]} names a cell of the grid; leave it out, or leave SAMPLES out")
    if args.reference is None:
        raise UserError("ipdiff evaluate: SAMPLES needs --reference FILE")
    return _compare(args)


def _compare(args: argparse.Namespace) -> int:
    from ipdiff.metrics.spec import METRICS

    metrics = args.metrics.split(",") if args.metrics else []
    if unknown := [name for name in metrics if name not in METRICS]:
        raise UserError(f"--metrics: no metric '{unknown[0]}'; known: {', '.join(METRICS)}")
    from ipdiff.metrics.compare import compare, compute_of

    compute = compute_of(args.device or "cpu", args.threads)
    compared = compare(args.samples, args.reference, args.features or "inception", compute, metrics)
    for warning in compared.warnings:
        _say(f"warning: {warning}")
    said = {name: "unknown" if value is None else value for name, value in compared.values.items()}
    said["dimensions"] = ", ".join(f"{of} {size}" for of, size in compared.values["dimensions"].items())
    print(_json(compared.values) if args.json else "\n".join(f"{name:<16}{value}" for name, value in said.items()))
    return 0


# The project

JSON = _flag("--json", "print JSON")
TARGETS = "a study, table:STUDY/NAME, figure:STUDY/NAME, an output, an artifact's folder (default: everything)"


@_verb(
    "doctor",
    "say what this machine has and lacks, in plain words",
    _arg("--study", "what this study needs counts as lacking (default: the digits study)"),
    _flag("--json", "print JSON, for a bug report"),
)
def _doctor(args: argparse.Namespace) -> int:
    from ipdiff.pipeline.commands.study import doctor

    findings = doctor.examine(args.study)
    print(_json(doctor.as_json(findings)) if args.json else "\n".join(doctor.lines(findings)))
    return 2 if any(finding.mark == doctor.WRONG for finding in findings) else 0


@_verb(
    "grid",
    "list the cells of a study; write or check the dvc.yaml files",
    _arg("--study", "the study whose cells to list (default: the digits study)"),
    _flag("--stale", "list only cells to be made again: missing, changed, or below a changed one"),
    _flag("--write", "write the dvc.yaml files, config/README.md and the schema"),
    _flag("--check", "exit 2 if one of those files is stale"),
)
def _grid(args: argparse.Namespace) -> int | None:
    from ipdiff.pipeline import config, grid
    from ipdiff.pipeline.commands.study import generated_files
    from ipdiff.pipeline.engines import dvc_files
    from ipdiff.pipeline.grid.freshness import Freshness

    known = grid.load()
    if args.write:
        for path in generated_files.write(known):
            print(f"wrote {path}" if path.exists() else f"removed {path}: there is no such study")
    broken = known.studies.broken().values() if args.write or args.check else ()
    for line in broken:
        _say(line)
    if broken:
        return 2
    if args.check and (stale := generated_files.stale(known)):
        raise UserError(f"{', '.join(map(str, stale))}: not what params.yaml asks for; run `ipdiff grid --write`")
    if args.stale or args.study or not (args.write or args.check):
        cells, fresh = known.study(args.study or config.DEFAULT), Freshness(known)
        for cell in fresh.stale(cells) if args.stale else cells:
            print(*([fresh.state(cell)] if args.stale else []), dvc_files.address(cell), cell.directory, sep="\t")


@_verb(
    "settings",
    "write what decides a study's cells besides the files they read (a stage of DVC)",
    _arg("--study", WILDCARDS["study"], required=True),
)
def _settings(args: argparse.Namespace) -> None:
    from ipdiff.pipeline import grid
    from ipdiff.pipeline.grid import cache_keys

    print(*cache_keys.write(cache_keys.texts(grid.load(), args.study)), sep="\n")


@_verb(
    "plan",
    "what targets need before they are made: cells, network evaluations, hours on one device, disk",
    _arg("targets", TARGETS, nargs="*", metavar="TARGET"),
    _arg(
        "--speed",
        "measured speed of one data set's network: images/s of training, image-steps/s of sampling",
        metavar="DATASET=TRAIN,SAMPLE",
    ),
    JSON,
)
def _plan(args: argparse.Namespace) -> None:
    from ipdiff.pipeline.commands.study import plan

    speed = plan.Speed.parse(args.speed) if args.speed else None
    found, data = plan.run(args.targets, speed)
    print(_json(data) if args.json else plan.describe(found, speed))


@_verb(
    "bench",
    "how fast a data set's network trains and samples on this machine, against its convolutions",
    _arg("--dataset", WILDCARDS["dataset"], required=True),
    _arg("--model", f"{WILDCARDS['model']} (default: the first that the data set trains)"),
    _arg("--seconds", "time to measure (default: 20)", type=float, default=20.0),
    JSON,
)
def _bench(args: argparse.Namespace) -> None:
    from ipdiff.pipeline.commands.study import bench

    rows = bench.run(args.dataset, args.model, args.seconds)
    print(_json(bench.as_json(rows)) if args.json else bench.describe(rows))
    if not args.json:
        print(f"for the hours of a plan: ipdiff plan {bench.for_plan(args.dataset, rows)}")


@_verb(
    "sync",
    "bring dvc.lock, DVC's cache and Snakemake's records into agreement with what is there",
    _flag("--record-only", "leave Snakemake's records alone (it is running)"),
)
def _sync(args: argparse.Namespace) -> int:
    from ipdiff.pipeline.engines import sync

    if (why := sync.obstacle()) is not None:
        if args.record_only:  # Snakemake has said so when it started
            return 0
        raise UserError(f"nothing can be recorded: {why}")
    done = sync.record()
    adopted = [] if args.record_only else sync.adopt()
    for lock in done.mended:
        _say(f"a damaged dvc.lock was set aside as {lock}; cells that are here are recorded anew")
    for line in done.refused:
        _say(f"not recorded: {line}")
    print(f"recorded {len(done.cells)} cells with DVC; told Snakemake of {len(adopted)}")
    return 3 if done.refused else 0


@_verb(
    "warm",
    "run a command with torch imported once for all the stages it starts",
    _arg("--serve", argparse.SUPPRESS, type=int),
    _arg("command", "such as: dvc repro", nargs=argparse.REMAINDER, metavar="COMMAND"),
)
def _warm(args: argparse.Namespace) -> int:
    if args.serve is not None:
        fork_server.serve(args.serve, main)
        return 0
    if not args.command:
        raise UserError("warm needs a command to run, such as: ipdiff warm dvc repro")
    with fork_server.server():
        try:
            return subprocess.run(args.command, check=False).returncode
        except OSError as error:
            raise UserError(f"{args.command[0]}: cannot be run: {error.strerror}") from None


# The store


@_verb(
    "verify",
    "hash every artifact again and hold it against its recipe, dvc.lock and DVC's cache",
    _arg("targets", f"{TARGETS}; what is named has to be there", nargs="*", metavar="TARGET"),
    _arg("--study", "only this study's artifacts"),
    _arg(
        "--cache", "hash DVC's local cache as well (default: yes)", action=argparse.BooleanOptionalAction, default=True
    ),
    _arg(
        "--against",
        "instead: how many artifacts are byte-identical to those in the dvc.lock of this git revision",
        metavar="REV",
    ),
)
def _verify(args: argparse.Namespace) -> int:
    from ipdiff.pipeline.commands.store import verify

    if args.against is not None:
        print(*verify.against(args.against, args.targets, study=args.study), sep="\n")
        return 0
    done = verify.verify(args.targets, study=args.study, cache=args.cache)
    print(*done.problems, done, sep="\n")
    return 3 if done.problems else 0


@_verb(
    "pull",
    "bring artifacts from a DVC remote, verify them, and tell Snakemake of them",
    _arg("targets", TARGETS, nargs="*", metavar="TARGET"),
    _arg("--remote", "name of the DVC remote (default: the project's default remote)"),
    _flag("--metrics-only", "only metrics, tables, figures, reports and recipes"),
    _arg("--jobs", "files at a time (default: what DVC chooses for the remote)", type=int),
    _flag("--force", "replace files here that DVC does not know"),
)
def _pull(args: argparse.Namespace) -> int:
    from ipdiff.pipeline.commands.store import pull

    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs is {args.jobs}; use 1 or more")
    done = pull.pull(args.targets, remote=args.remote, metrics_only=args.metrics_only, jobs=args.jobs, force=args.force)
    print(done.said)
    for line in [*done.wrong, *filter(None, [done.failed])]:
        _say(line)
    return 3 if done.wrong else 2 if done.failed is not None else 0


@_verb(
    "publish",
    "copy a study's numbers, tables, figures and receipts to published/STUDY, for git",
    _arg("study", WILDCARDS["study"]),
)
def _publish(args: argparse.Namespace) -> None:
    from ipdiff.pipeline.commands.store import publish

    print(*publish.publish(args.study), sep="\n")


# Checkpoints of others


@_verb(
    "import",
    "check a checkpoint of guided-diffusion or the DDIM code, and make it a run of this project",
    _arg("file", "state dict (.pt), the DDIM code's list (.pth), safetensors", type=Path, metavar="FILE"),
    _arg(
        "--as",
        "the run it becomes; MODEL has `imported: true` in params.yaml",
        dest="run",
        required=True,
        metavar="DATASET/MODEL",
    ),
    _arg("--seed", "the run's seed (default: 0); sampling draws noise by it", type=int, default=0),
    _arg("--step", "its training step (default: what the file or its name says)", type=int),
)
def _import(args: argparse.Namespace) -> None:
    from ipdiff.pipeline.commands.exchange import import_

    print(import_.import_checkpoint(args.file, args.run, seed=args.seed, step=args.step))


@_verb(
    "export",
    "write a run's weights in a format of others",
    _arg(
        "source",
        "a checkpoint's folder or DATASET/MODEL[/sSEED[/STEP]] (default: seed 0, the final step)",
        metavar="CHECKPOINT",
    ),
    _arg("--format", "diffusers: a folder for UNet2DModel", required=True, choices=EXPORT_FORMATS),
    _arg("--to", "the file or folder to write; it must not exist", type=Path, required=True),
)
def _export(args: argparse.Namespace) -> None:
    from ipdiff.pipeline.commands.exchange import export

    print(export.export_checkpoint(args.source, args.format, args.to, lambda line: print(line, file=sys.stderr)))


if __name__ == "__main__":
    raise SystemExit(main())
