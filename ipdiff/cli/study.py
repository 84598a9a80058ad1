"""Verbs on a study: what it needs, holds and costs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ipdiff.cli.verbs import JSON, TARGETS, arg, as_json, flag, say, verb
from ipdiff.errors import UserError
from ipdiff.pipeline.stages import WILDCARDS


@verb(
    "new",
    "write a study of your own pictures that fits a time budget",
    arg("name", "of the study, and of its data set", metavar="NAME"),
    arg("--images", "your pictures: a directory, .zip or .tar.gz", type=Path, required=True, metavar="DIR_OR_ZIP"),
    arg("--size", "side in pixels that they are brought to: 16, 32, 64 or 128", type=int, required=True),
    arg("--gammas", "strengths of input perturbation; 0 is always among them (default: 0,0.1)", default="0,0.1"),
    arg("--budget", "time that the whole study may take on this machine (default: 2h)", default="2h"),
    arg("--seeds", "training seeds of each model (default: 2)", type=int, default=2, metavar="N"),
    arg("--device", "what networks run on (default: a GPU where there is one)", choices=("cpu", "cuda")),
    arg(
        "--features",
        "what distances are taken on: classifier (needs labels), inception (its file), pixels, or the path of a "
        "TorchScript network (default: the first of these that is to be had)",
    ),
    arg("--feature-size", "pixels to which images are resized for it (default: 224)", type=int, default=224),
    arg("--labels", "whether folders are labels (default: folders)", choices=("folders", "none"), default="folders"),
    flag("--skip-broken", "pass over pictures that cannot be read, instead of refusing"),
    arg("--from-checkpoint", "train all models on from this file, as `ipdiff import` reads it", type=Path),
    arg("--step", "its training step, where it does not say", type=int),
    flag("--dry-run", "say everything and write nothing"),
)
def _new(args: argparse.Namespace) -> None:
    """Reads every picture and measures this machine; writes studies/NAME/params.yaml and studies/NAME/dvc.yaml.

    ipdiff new photos --images my-photos.zip --size 32 --budget 2h
    """
    from ipdiff.pipeline.commands.study.new import create, fit

    request = create.Request(
        name=args.name,
        images=args.images,
        size=args.size,
        gammas=create.strengths(args.gammas),
        budget=fit.seconds_of(args.budget),
        seeds=args.seeds,
        device=args.device,
        features=args.features,
        feature_size=args.feature_size,
        labels=args.labels,
        skip_broken=args.skip_broken,
        checkpoint=args.from_checkpoint,
        step=args.step,
    )
    written = create.create(
        request, dry_run=args.dry_run, say=lambda word, text: print(f"{word:<10} {text}", flush=True)
    )
    print(*(f"{'wrote':<10} {path}" for path in written), sep="\n", end="\n" if written else "")


@verb(
    "doctor",
    "say what this machine has and lacks, in plain words",
    arg("--study", "look at this study alone (default: at all; what the digits study needs counts as lacking)"),
    flag("--gpu", "instead: try own kernels and captured programs on this GPU, against torch's own operations"),
    flag("--json", "print JSON, for a bug report"),
)
def _doctor(args: argparse.Namespace) -> int:
    """Reads params.yaml and looks at programs, files and the GPU; writes nothing.

    ipdiff doctor --study paper
    ipdiff doctor --gpu
    """
    from ipdiff.pipeline.commands.study import doctor

    findings = doctor.gpu() if args.gpu else doctor.examine(args.study)
    print(as_json(doctor.as_json(findings)) if args.json else "\n".join(doctor.lines(findings)))
    return 2 if any(finding.mark == doctor.WRONG for finding in findings) else 0


@verb(
    "grid",
    "list the cells of a study; write or check the dvc.yaml files",
    arg("--study", "the study whose cells to list (default: the digits study)"),
    flag("--stale", "list only cells to be made again: missing, changed, or below a changed one"),
    flag("--write", "write the dvc.yaml files, config/README.md and the schema"),
    flag("--check", "exit 2 if one of those files is stale, or a study cannot be made"),
    flag("--fill", "first write the defaults of missing keys that both engines compare into the study's params.yaml"),
)
def _grid(args: argparse.Namespace) -> int | None:
    """Reads every study's params.yaml and the recipes; --write writes dvc.yaml, config/README.md and the schema.

    ipdiff grid --study digits --stale
    ipdiff grid --write
    """
    from ipdiff.pipeline import config, grid
    from ipdiff.pipeline.commands.study import fill, generated_files
    from ipdiff.pipeline.engines import dvc_files
    from ipdiff.pipeline.grid import checks
    from ipdiff.pipeline.grid.freshness import Freshness

    if args.fill:
        path, keys = fill.fill(args.study or config.DEFAULT)
        print(f"{path}: " + (f"wrote {', '.join(keys)}" if keys else "nothing is missing"))
        if not (args.write or args.check):
            return None
    known = grid.load()
    if args.write:
        for path in generated_files.write(known):
            print(f"wrote {path}" if path.exists() else f"removed {path}: there is no such study")
    if args.write or args.check:
        broken = checks.broken(known)
        for line in broken.values():
            say(line)
        for study in known.studies.names if args.write else []:
            for line in checks.notes(known, study) if study not in broken else []:
                say(f"note: {line}")
        if broken:
            return 2
    if args.check and (stale := generated_files.stale(known)):
        raise UserError(f"{', '.join(map(str, stale))}: not what params.yaml asks for; run `ipdiff grid --write`")
    if args.stale or args.study or not (args.write or args.check):
        cells, fresh = known.study(args.study or config.DEFAULT), Freshness(known)
        for cell in fresh.stale(cells) if args.stale else cells:
            print(*([fresh.state(cell)] if args.stale else []), dvc_files.address(cell), cell.directory, sep="\t")


@verb(
    "settings",
    "write what decides a study's cells besides the files they read (a stage of DVC)",
    arg("--study", WILDCARDS["study"], required=True),
)
def _settings(args: argparse.Namespace) -> None:
    """Reads params.yaml and the code; writes settings/STUDY/. DVC runs it by itself.

    ipdiff settings --study digits
    """
    from ipdiff.pipeline import grid
    from ipdiff.pipeline.grid import cache_keys

    print(*cache_keys.write(cache_keys.texts(grid.load(), args.study)), sep="\n")


@verb(
    "plan",
    "what targets need before they are made: cells, network evaluations, GPU memory, hours, disk",
    arg("targets", TARGETS, nargs="*", metavar="TARGET"),
    arg("--device", "the GPU that makes them: v100, a100, h100, ...; another name lists all", metavar="NAME"),
    arg(
        "--speed",
        "instead: measured speed of one data set's network: images/s of training, image-steps/s of sampling",
        metavar="DATASET=TRAIN,SAMPLE",
    ),
    arg("--gpus", "how many devices work at a time, for the time that passes (default: 1)", type=int, default=1),
    JSON,
)
def _plan(args: argparse.Namespace) -> None:
    """Reads params.yaml and the recipes of what is there; writes nothing.

    ipdiff plan paper --device h100 --gpus 8
    ipdiff plan table:paper/table3
    """
    from ipdiff.pipeline.commands.planning import plan, rates, text

    if args.device is not None and args.speed is not None:
        raise UserError("plan takes --device or --speed, not both: a device as published, or as it was measured here")
    if args.gpus < 1:
        raise UserError(f"--gpus is {args.gpus}; use 1 or more")
    speed = rates.Named.parse(args.device) if args.device is not None else None
    speed = rates.Speed.parse(args.speed) if args.speed is not None else speed
    found = plan.run(args.targets, speed, args.gpus)
    print(as_json(found.as_json()) if args.json else text.describe(found))


@verb(
    "bench",
    "how fast a data set's network trains and samples on this machine, against its convolutions",
    arg("--dataset", WILDCARDS["dataset"], required=True),
    arg("--model", f"{WILDCARDS['model']} (default: the first that the data set trains)"),
    arg("--seconds", "time to measure (default: 20)", type=float, default=20.0),
    JSON,
)
def _bench(args: argparse.Namespace) -> None:
    """Reads params.yaml and runs the network for some seconds; writes nothing.

    ipdiff bench --dataset cifar10
    """
    from ipdiff.pipeline.commands.study import bench

    rows = bench.run(args.dataset, args.model, args.seconds)
    print(as_json(bench.as_json(rows)) if args.json else bench.describe(rows))
    if not args.json:
        print(f"for the hours of a plan: ipdiff plan {bench.for_plan(args.dataset, rows)}")


@verb(
    "watch",
    "how a study stands: cells done, running, failed and waiting, and the newest numbers",
    arg("study", "a study (default: the digits study)", nargs="?"),
    flag("--once", "say it once (a terminal is refreshed until all is done)"),
    JSON,
)
def _watch(args: argparse.Namespace) -> None:
    """Reads recipes and work/progress/; writes nothing.

    ipdiff watch digits
    """
    from ipdiff.pipeline import config, grid
    from ipdiff.pipeline.commands.study import watch

    known, study = grid.load(), args.study or config.DEFAULT
    if sys.stdout.isatty() and not (args.once or args.json):
        watch.follow(lambda: watch.look(known, study))
        return
    snapshot = watch.look(known, study)
    print(as_json(watch.as_json(snapshot)) if args.json else watch.describe(snapshot))
