"""Verbs that make artifacts, one a stage, and `evaluate` of any two files."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ipdiff.cli.verbs import as_json, say
from ipdiff.errors import UserError
from ipdiff.pipeline.stages import STAGES
from ipdiff.work import launch

OPTIONAL = ("evaluate", "report")
"""Verbs that can be called without the names of a cell."""


def make(args: argparse.Namespace) -> int:
    """Make the cell that a stage's verb names."""
    from ipdiff.pipeline import config, grid, jobs
    from ipdiff.pipeline.engines import failures, imports
    from ipdiff.work import signals

    names = {name: getattr(args, name) for name in STAGES[args.verb].wildcards}
    if args.verb == "report":
        names["study"] = args.study or config.DEFAULT
        if args.against is not None:
            from ipdiff.pipeline.commands.store import numbers

            print(*numbers.compare(args.against, names["study"]), sep="\n")
            return 0
    known = grid.load()
    cell = known.cell(args.verb, **names)
    imports.require_inputs(known, cell)
    if args.verb == "sample" and (args.index is not None or args.out is not None):
        if args.index is None:
            raise UserError("sample: --out goes with --index")
        first, last = args.index[0], args.index[-1]
        path = args.out or Path(f"{first}.png" if first == last else f"{first}-{last}.png")
        jobs.draw_some(cell, args.index, path)
        print(path)
        return 0
    count = launch.wanted(shared=STAGES[args.verb].shared)
    with failures.remembered(cell, known) as failure:
        if failure is not None:
            return say(str(failure), failure.code)
        if count > 1:
            return jobs.make_with(count, cell, [args.verb, *(f"--{name}={value}" for name, value in names.items())])
        launch.follow_starter()
        with signals.immediate():
            jobs.make(cell)
    print(cell.directory)
    return 0


def images(text: str) -> range:
    """What --index names: an image, `7`, or several, `0-63`."""
    found = re.fullmatch(r"(-?\d+)(?:-(\d+))?", text)
    chosen = range(int(found[1]), int(found[2] or found[1]) + 1) if found else range(0)
    if not chosen:
        raise argparse.ArgumentTypeError(f"'{text}' is no image; use a number such as 7, or FIRST-LAST such as 0-63")
    return chosen


def add_files(sub: argparse.ArgumentParser) -> None:
    """The second form of `evaluate`: any two files."""
    names = " ".join(f"--{name} {name.upper()}" for name in STAGES["evaluate"].wildcards)
    options = "[--size N] [--convert] [--features F] [--metrics M] [--json]"
    sub.usage = f"%(prog)s {names}\n       %(prog)s SAMPLES --reference FILE {options}"
    files = sub.add_argument_group("files from outside the pipeline")
    text = "npz with arr_0 (uint8 NHWC) or mu, sigma, mu_s, sigma_s (used as they are); npy, folder or zip of images"
    files.add_argument("samples", nargs="?", metavar="SAMPLES", type=Path, help=text)
    files.add_argument("--reference", metavar="FILE", type=Path, help="the real images: a file of the same kinds")
    files.add_argument(
        "--size", type=int, help="resize images to NxN: halved, bicubic, the centre cut out, as `prepare` does"
    )
    files.add_argument("--convert", action="store_true", help="make all images RGB, as `modes: convert` does")
    text = "inception (default) or the path of its file, a classifier.safetensors, or a .json of a TorchScript network"
    files.add_argument("--features", help=text)
    files.add_argument("--metrics", help="comma-separated (default: all that the files permit)")
    files.add_argument("--device", choices=["cpu", "cuda"], help="where to compute (default: cpu)")
    files.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    files.add_argument(
        "--save-statistics", metavar="NPZ", type=Path, help="write the reference's, for a later --reference"
    )
    files.add_argument("--no-cache", action="store_true", help="leave the user's cache of features alone")
    files.add_argument("--json", action="store_true", help="print JSON")
    sub.set_defaults(work=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    """Either form of `evaluate`: one or the other, and whole. Raises UserError."""
    wildcards = STAGES["evaluate"].wildcards
    names = [f"--{name}" for name in wildcards if getattr(args, name) is not None]
    options = ("reference", "size", "convert", "features", "metrics", "device", "threads")
    options += ("save_statistics", "no_cache", "json")
    files = [f"--{name.replace('_', '-')}" for name in options if getattr(args, name) not in (None, False)]
    if args.samples is None:
        if files:
            raise UserError(f"evaluate: {files[0]} goes with a file of samples: SAMPLES --reference FILE")
        if missing := [f"--{name}" for name in wildcards if getattr(args, name) is None]:
            raise UserError(f"evaluate: needs {', '.join(missing)}, or SAMPLES --reference FILE")
        return make(args)
    if names:
        raise UserError(f"evaluate: {names[0]} names a cell of the grid; leave it out, or leave SAMPLES out")
    if args.reference is None:
        raise UserError("evaluate: SAMPLES needs --reference FILE")
    return _compare(args)


def _compare(args: argparse.Namespace) -> int:
    from ipdiff.metrics.spec import METRICS

    metrics = args.metrics.split(",") if args.metrics else []
    if unknown := [name for name in metrics if name not in METRICS]:
        raise UserError(f"--metrics: no metric '{unknown[0]}'; known: {', '.join(METRICS)}")
    from ipdiff.metrics.outside.compare import compare, compute_of
    from ipdiff.pipeline.progress.reporter import reporting

    compute, features = compute_of(args.device or "cpu", args.threads), args.features or "inception"
    more = {"size": args.size, "convert": args.convert, "cache": not args.no_cache, "save": args.save_statistics}
    with reporting(str(args.samples)):
        compared = compare(args.samples, args.reference, features, compute, metrics, **more)
    for warning in compared.warnings:
        say(f"warning: {warning}")
    said = {name: "unknown" if value is None else value for name, value in compared.values.items()}
    if all(METRICS[name].ending == "_pixel" for name in METRICS if name in said):  # no network's features
        said = {name: value for name, value in said.items() if not name.startswith("features")}
    said["dimensions"] = ", ".join(f"{of} {size}" for of, size in compared.values["dimensions"].items())
    print(as_json(compared.values) if args.json else "\n".join(f"{name:<16}{value}" for name, value in said.items()))
    return 0
