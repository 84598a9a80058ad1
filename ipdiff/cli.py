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
from typing import TYPE_CHECKING

from ipdiff import __version__
from ipdiff.errors import IntegrityError, Preempted, UserError
from ipdiff.pipeline.engines import fork_server
from ipdiff.pipeline.stages import STAGES, WILDCARDS
from ipdiff.work import launch

if TYPE_CHECKING:
    from ipdiff.pipeline.grid import Cell

EXPORT_FORMATS = ("safetensors", "guided-diffusion", "diffusers")


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
    top.add_argument("--version", action="version", version=f"ipdiff {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, stage in STAGES.items():
        sub = verbs.add_parser(verb, help=stage.help, description=stage.help)
        for name in stage.wildcards:
            sub.add_argument(f"--{name}", required=verb != "evaluate", help=WILDCARDS[name])
        if verb == "evaluate":
            _add_files(sub)
        if verb == "sample":
            sub.add_argument("--index", type=int, help="draw only this image of the set, as a PNG")
            sub.add_argument("--out", type=Path, help="where --index writes its PNG")
    text = "say what this machine has and lacks, in plain words"
    check = verbs.add_parser("doctor", help=text, description=text)
    check.add_argument("--study", help="what this study needs counts as lacking (default: the digits study)")
    check.add_argument("--json", action="store_true", help="print JSON, for a bug report")
    graph = verbs.add_parser("grid", help="list the cells of a study; write or check the dvc.yaml files")
    graph.add_argument("--study", help="the study whose cells to list (default: the digits study)")
    graph.add_argument(
        "--stale",
        action="store_true",
        help="list only cells to be made again: missing, changed, or below a changed one",
    )
    graph.add_argument("--write", action="store_true", help="write the dvc.yaml files, config/README.md and the schema")
    graph.add_argument("--check", action="store_true", help="exit 2 if one of those files is stale")
    text = "write what decides a study's cells besides the files they read (a stage of DVC)"
    chosen = verbs.add_parser("settings", help=text, description=text)
    chosen.add_argument("--study", required=True, help=WILDCARDS["study"])
    text = "what targets need before they are made: cells, network evaluations, hours on one device, disk"
    plan = verbs.add_parser("plan", help=text, description=text)
    plan.add_argument("targets", nargs="*", metavar="TARGET", help=TARGET_HELP)
    text = "measured speed of one data set's network: images/s of training, image-steps/s of sampling"
    plan.add_argument("--speed", metavar="DATASET=TRAIN,SAMPLE", help=text)
    plan.add_argument("--json", action="store_true", help="print JSON")
    text = "how fast a data set's network trains and samples on this machine, against its convolutions"
    bench = verbs.add_parser("bench", help=text, description=text)
    bench.add_argument("--dataset", required=True, help=WILDCARDS["dataset"])
    bench.add_argument("--model", help=f"{WILDCARDS['model']} (default: the first that the data set trains)")
    bench.add_argument("--seconds", type=float, default=20.0, help="time to measure (default: 20)")
    bench.add_argument("--json", action="store_true", help="print JSON")
    text = "bring dvc.lock, DVC's cache and Snakemake's records into agreement with what is there"
    agree = verbs.add_parser("sync", help=text, description=text)
    agree.add_argument("--record-only", action="store_true", help="leave Snakemake's records alone (it is running)")
    text = "run a command with torch imported once for all the stages it starts"
    preloaded = verbs.add_parser("warm", help=text, description=text)
    preloaded.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    preloaded.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="such as: dvc repro")
    _add_store_verbs(verbs)
    text = "copy a study's numbers, tables, figures and receipts to published/STUDY, for git"
    copied = verbs.add_parser("publish", help=text, description=text)
    copied.add_argument("study", help=WILDCARDS["study"])
    _add_checkpoint_verbs(verbs)
    return top


def _add_files(sub: argparse.ArgumentParser) -> None:
    """The second form of `evaluate`: any two files."""
    names = " ".join(f"--{name} {name.upper()}" for name in STAGES["evaluate"].wildcards)
    sub.usage = f"%(prog)s {names}\n       %(prog)s SAMPLES --reference FILE [--features F] [--metrics M] [--json]"
    files = sub.add_argument_group("files from outside the pipeline")
    text = "npz with arr_0 (uint8 NHWC) or mu, sigma, mu_s, sigma_s (used as they are); npy, folder or zip of images"
    files.add_argument("samples", nargs="?", metavar="SAMPLES", type=Path, help=text)
    files.add_argument("--reference", metavar="FILE", type=Path, help="the real images: a file of the same kinds")
    text = "inception (default), a classifier.safetensors of the pipeline, or a .json that names a TorchScript network"
    files.add_argument("--features", help=text)
    files.add_argument("--metrics", help="comma-separated (default: all that the files permit)")
    files.add_argument("--device", choices=["cpu", "cuda"], help="where to compute (default: cpu)")
    files.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    files.add_argument("--json", action="store_true", help="print JSON")


def _check_form(args: argparse.Namespace) -> None:
    """Both forms of `evaluate` are one or the other, and whole. Raises UserError."""
    names = [f"--{name}" for name in STAGES["evaluate"].wildcards if getattr(args, name) is not None]
    options = ("reference", "features", "metrics", "device", "threads")
    files = [f"--{name}" for name in options if getattr(args, name) is not None] + ["--json"] * args.json
    if args.samples is None:
        if files:
            raise UserError(f"ipdiff evaluate: {files[0]} goes with a file of samples: SAMPLES --reference FILE")
        if missing := [f"--{name}" for name in STAGES["evaluate"].wildcards if getattr(args, name) is None]:
            raise UserError(f"ipdiff evaluate: needs {', '.join(missing)}, or SAMPLES --reference FILE")
        return
    if names:
        raise UserError(f"ipdiff evaluate: {names[0]} names a cell of the grid; leave it out, or leave SAMPLES out")
    if args.reference is None:
        raise UserError("ipdiff evaluate: SAMPLES needs --reference FILE")
    if args.threads is not None and args.threads < 1:
        raise UserError(f"--threads is {args.threads}; use 1 or more")


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


def _add_checkpoint_verbs(verbs: argparse._SubParsersAction[_Parser]) -> None:
    text = "check a checkpoint of guided-diffusion or the DDIM code, and make it a run of this project"
    into = verbs.add_parser("import", help=text, description=text)
    into.add_argument(
        "file", type=Path, metavar="FILE", help="state dict (.pt), the DDIM code's list (.pth), safetensors"
    )
    text = "the run it becomes; MODEL has `imported: true` in params.yaml"
    into.add_argument("--as", dest="run", required=True, metavar="DATASET/MODEL", help=text)
    into.add_argument("--seed", type=int, default=0, help="the run's seed (default: 0); sampling draws noise by it")
    into.add_argument("--step", type=int, help="its training step (default: what the file or its name says)")
    text = "write a run's weights in a format of others"
    out = verbs.add_parser("export", help=text, description=text)
    text = "a checkpoint's folder or DATASET/MODEL[/sSEED[/STEP]] (default: seed 0, the final step)"
    out.add_argument("source", metavar="CHECKPOINT", help=text)
    out.add_argument("--format", required=True, choices=EXPORT_FORMATS, help="diffusers: a folder for UNet2DModel")
    out.add_argument("--to", type=Path, required=True, help="the file or folder to write; it must not exist")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    args = parser().parse_args(argv)
    for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # read when numpy is imported:
        os.environ[pool] = "1"  # the artifact's compute.threads sets torch's, and a cluster's setting decides no byte
    if args.verb in STAGES and not launch.started_here():  # else open files were inherited, which stay here
        if (code := fork_server.run(sys.argv[1:] if argv is None else argv)) is not None:
            return code
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
    except OSError as error:
        if error.errno in DENIED:
            return _say(
                f"{error.filename or 'a file'}: {error.strerror}; use a copy of the project that you may write", 2
            )
        if error.errno not in FULL:
            raise
        return _say(f"{error.strerror}; nothing was published, free some (work/ holds work in progress)", 2)


def _say(error: Exception | str, code: int) -> int:
    text = f"ipdiff: {error}".encode(errors="backslashreplace").decode()  # names of files may be no text
    print(text, file=sys.stderr)
    return code


def _run(args: argparse.Namespace) -> int:
    return VERBS.get(args.verb, _make)(args)


def _make(args: argparse.Namespace) -> int:
    """Make the cell that a stage's verb names."""
    from ipdiff.pipeline import grid, jobs
    from ipdiff.work import signals

    names = {name: getattr(args, name) for name in STAGES[args.verb].wildcards}
    cell = grid.load().cell(args.verb, **names)
    if args.verb == "sample" and args.index is not None:
        return _draw_one(cell, args.index, args.out or Path(f"{args.index}.png"))
    count = launch.wanted(shared=STAGES[args.verb].shared)
    if count > 1:
        return jobs.make_with(count, cell, [args.verb, *(f"--{name}={value}" for name, value in names.items())])
    launch.follow_starter()
    with signals.immediate():
        jobs.make(cell)
    print(cell.directory)
    return 0


def _draw_one(cell: Cell, index: int, path: Path) -> int:
    from ipdiff.pipeline import jobs

    jobs.draw_one(cell, index, path)
    print(path)
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    """Either form of `evaluate`."""
    _check_form(args)
    return _make(args) if args.samples is None else _compare(args)


def _compare(args: argparse.Namespace) -> int:
    import json

    from ipdiff.device.spec import Compute
    from ipdiff.metrics.spec import METRICS

    metrics = args.metrics.split(",") if args.metrics else []
    if unknown := [name for name in metrics if name not in METRICS]:
        raise UserError(f"--metrics: no metric '{unknown[0]}'; known: {', '.join(METRICS)}")
    from ipdiff.metrics.compare import compare

    compute = Compute(args.device or "cpu", args.threads or os.cpu_count() or 1)
    compared = compare(args.samples, args.reference, args.features or "inception", compute, metrics)
    for warning in compared.warnings:
        print(f"ipdiff: warning: {warning}", file=sys.stderr)
    found = compared.values
    if args.json:
        print(json.dumps(found, indent=1))
        return 0
    for name, value in found.items():
        shown = ", ".join(f"{of} {size}" for of, size in value.items()) if isinstance(value, dict) else value
        print(f"{name:<16}{'unknown' if value is None else shown}")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    import json

    from ipdiff.pipeline.commands.study import doctor

    findings = doctor.examine(args.study)
    print(json.dumps(doctor.as_json(findings), indent=1) if args.json else "\n".join(doctor.lines(findings)))
    return 2 if any(finding.mark == doctor.WRONG for finding in findings) else 0


def _settings(args: argparse.Namespace) -> int:
    from ipdiff.pipeline import grid
    from ipdiff.pipeline.grid import cache_keys

    for path in cache_keys.write(cache_keys.texts(grid.load(), args.study)):
        print(path)
    return 0


def _sync(args: argparse.Namespace) -> int:
    from ipdiff.pipeline.engines import sync

    if (why := sync.obstacle()) is not None:
        if args.record_only:  # Snakemake has said so when it started
            return 0
        raise UserError(f"nothing can be recorded: {why}")
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
    from ipdiff.pipeline.commands.store import verify

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
    from ipdiff.pipeline.commands.store import pull

    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs is {args.jobs}; use 1 or more")
    done = pull.pull(args.targets, remote=args.remote, metrics_only=args.metrics_only, jobs=args.jobs, force=args.force)
    print(done)
    wrong = [*done.damaged, *map(str, done.problems)]
    for line in [*wrong, *filter(None, [done.failed])]:
        print(f"ipdiff: {line}", file=sys.stderr)
    return 3 if wrong else 2 if done.failed is not None else 0


def _import(args: argparse.Namespace) -> int:
    from ipdiff.pipeline.commands.exchange import import_

    print(import_.import_checkpoint(args.file, args.run, seed=args.seed, step=args.step))
    return 0


def _export(args: argparse.Namespace) -> int:
    from ipdiff.pipeline.commands.exchange import export

    print(export.export_checkpoint(args.source, args.format, args.to, lambda line: print(line, file=sys.stderr)))
    return 0


def _grid(args: argparse.Namespace) -> int:
    from ipdiff.pipeline import config, grid
    from ipdiff.pipeline.commands.study import generated_files
    from ipdiff.pipeline.engines import dvc_files

    cells = grid.load()
    if args.write:
        for path in generated_files.write(cells):
            print(f"wrote {path}" if path.exists() else f"removed {path}: there is no such study")
    broken = cells.studies.broken().values() if args.write or args.check else ()
    for line in broken:
        _say(line, 2)
    if broken:
        return 2
    if args.check:
        stale = generated_files.stale(cells)
        if stale:
            raise UserError(f"{', '.join(map(str, stale))}: not what params.yaml asks for; run `ipdiff grid --write`")
    if args.stale:
        return _stale(args.study or config.DEFAULT)
    if args.study or not (args.write or args.check):
        for cell in cells.study(args.study or config.DEFAULT):
            print(f"{dvc_files.address(cell)}\t{cell.directory}")
    return 0


def _plan(args: argparse.Namespace) -> int:
    import json

    from ipdiff.pipeline.commands.study import plan

    speed = plan.Speed.parse(args.speed) if args.speed else None
    found, data = plan.run(args.targets, speed)
    print(json.dumps(data, indent=1) if args.json else plan.describe(found, speed))
    return 0


def _bench(args: argparse.Namespace) -> int:
    import json

    from ipdiff.pipeline.commands.study import bench

    rows = bench.run(args.dataset, args.model, args.seconds)
    if args.json:
        print(json.dumps(bench.as_json(rows), indent=1))
    else:
        print(bench.describe(rows))
        print(f"for the hours of a plan: ipdiff plan {bench.for_plan(args.dataset, rows)}")
    return 0


def _stale(study: str) -> int:
    from ipdiff.pipeline.engines import dvc_files, sync

    fresh = sync.freshness()
    for cell in fresh.stale(fresh.grid.study(study)):
        print(f"{fresh.state(cell)}\t{dvc_files.address(cell)}\t{cell.directory}")
    return 0


def _publish(args: argparse.Namespace) -> int:
    from ipdiff.pipeline.commands.store import publish

    for path in publish.publish(args.study):
        print(path)
    return 0


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


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "doctor": _doctor,
    "evaluate": _evaluate,
    "grid": _grid,
    "settings": _settings,
    "bench": _bench,
    "plan": _plan,
    "sync": _sync,
    "verify": _verify,
    "pull": _pull,
    "publish": _publish,
    "warm": _warm,
    "import": _import,
    "export": _export,
}
"""Verbs that are no stage's, and `evaluate`, which is more than that."""


if __name__ == "__main__":
    raise SystemExit(main())
