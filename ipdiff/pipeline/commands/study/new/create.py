"""`ipdiff new`: from pictures and a budget to a study, with everything that is worth saying on the way.

Nothing is written before all of it is known to be right: the study is put together in a temporary project first.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ipdiff.data.formats.files import shown
from ipdiff.data.readers.images import UnusableImages
from ipdiff.data.readers.survey import Survey, survey
from ipdiff.device.spec import Compute
from ipdiff.errors import ConfigError, UserError
from ipdiff.metrics.spec import Classifier, TorchScript
from ipdiff.pipeline import config, grid
from ipdiff.pipeline.commands.planning import plan
from ipdiff.pipeline.commands.store.verify import bytes_text
from ipdiff.pipeline.commands.study.new import features, presets, speeds
from ipdiff.pipeline.commands.study.new.features import Chosen
from ipdiff.pipeline.commands.study.new.fit import Choice, Work, duration, fit, training_room
from ipdiff.pipeline.commands.study.new.presets import Preset
from ipdiff.pipeline.commands.study.new.text import PRETRAINED, Draft, render
from ipdiff.pipeline.engines import dvc_files
from ipdiff.pipeline.grid.freshness import Freshness
from ipdiff.work.files import recordable

Say = Callable[[str, str], None]
"""Prints a word and what there is to say under it."""
NAMED = 5
"""Files that are named; the others are counted."""
FEW = 500
"""Pictures below which networks learn them by heart sooner than what they have in common."""


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
        name: of the study and its data set.
        images: directory, .zip or .tar.gz of pictures.
        size: one of `presets.SIZES`.
        gammas: strengths of input perturbation; the baseline 0 is added.
        budget: seconds that the whole study may take on this machine.
        seeds: training seeds of each model.
        device: cpu or cuda; what this machine has if None.
        features: see `features.choose`.
        feature_size: see `features.choose`.
        labels: whether folders are labels.
        skip_broken: pass over pictures that cannot be read.
        checkpoint: a file whose network all models are trained on from.
        step: its training step, where neither it nor its name says that.
    """

    name: str
    images: Path
    size: int
    gammas: Sequence[float]
    budget: float
    seeds: int = 2
    device: str | None = None
    features: str | None = None
    feature_size: int = 224
    labels: Literal["folders", "none"] = "folders"
    skip_broken: bool = False
    checkpoint: Path | None = None
    step: int | None = None


def strengths(text: str) -> list[float]:
    """Read `0,0.05,0.1`: ascending, with 0. Raises UserError for anything else."""
    try:
        found = [float(part) for part in text.split(",")]
        if not all(0 <= gamma <= 1 for gamma in found):
            raise ValueError
    except ValueError:
        raise UserError(f"--gammas is '{text}'; write numbers in 0..1, e.g. 0,0.05,0.1,0.2") from None
    if len(set(found)) < len(found):
        raise UserError(f"--gammas is '{text}'; a strength stands twice")
    every = sorted({0.0, *found})
    if len(every) < 2:
        raise UserError(f"--gammas is '{text}'; name a strength above 0, to hold against 0")
    return every


def create(request: Request, *, dry_run: bool, say: Say) -> list[Path]:
    """Look, measure, fit, say all of it, and write the study.

    Args:
        request: what is asked for.
        dry_run: write nothing.
        say: is told what was found and chosen, as it becomes known.

    Returns:
        The files that were written.

    Raises:
        UserError: something is refused; nothing is written then.
    """
    _check(request)
    load = speeds.load()
    device = _device(request.device)
    say("looking", f"at every file of {request.images}")
    found = _looked_at(request, say)
    chosen = features.choose(request.features, found, request.feature_size)
    say("features", chosen.why)
    channels, candidates, step = found.channels, presets.of_size(request.size), None
    if request.checkpoint is not None:
        step, channels, candidates = _start(request.checkpoint, request, found.channels, candidates)
        say("start", f"{request.checkpoint}, step {step:,}: the network {candidates[0].name}; all models go on from it")
    choice, compute, clocks = _fitted(request, device, found, chosen, channels, candidates, say)
    if isinstance(chosen.settings, Classifier):
        chosen = replace(chosen, settings=replace(chosen.settings, steps=choice.classifier_steps))
    draft = Draft(
        name=request.name,
        raw=config.project_path(str(request.images)),
        size=request.size,
        channels=channels,
        survey=found,
        skip_broken=request.skip_broken,
        labelled=bool(found.labels),
        features=chosen.name,
        settings=chosen.settings,
        compute=compute,
        choice=choice,
        start=step,
    )
    files = _checked(draft, say)
    _warn(request, found, choice, say)
    if device == "cpu" and (longer := speeds.longer(load, *clocks)):
        say("mind", f"the machine is busy (load {load:.1f} on {speeds.all_cores()} cores): the study may take {longer}")
    written = [] if dry_run else _write(request.name, files)
    _next(request, step, dry_run, say)
    return written


def _check(request: Request) -> None:
    """Refuse what is wrong by itself, before anything is looked at."""
    name, studies = request.name, config.Studies()
    if why := config.misnamed(name, study=True):
        raise UserError(f"a study's name: '{name}' {why}")
    if name in studies.names or config.path_of(name).parent.exists() or name == config.DEFAULT:
        raise UserError(f"study '{name}' is here already, in {config.path_of(name).parent}/; choose another name")
    for study, datasets in studies.datasets.items():
        if name in (datasets or ()):
            raise UserError(
                f"'{name}' is a data set of the study {study} already, and a data set belongs to one study; choose "
                "another name"
            )
    if not request.images.exists():
        raise UserError(f"--images {request.images}: no such file or directory")
    if set(config.project_path(str(request.images))) <= {".", "/"}:
        raise UserError(f"--images {request.images} holds the project itself; name a directory of pictures alone")
    if {"{", "}"} & set(str(request.images)):
        raise UserError(f"--images {request.images}: neither engine reads braces in a path; rename it")
    if request.size not in presets.SIZES:
        known = ", ".join(map(str, presets.SIZES))
        raise UserError(f"--size is {request.size}; there are networks for {known} pixels")
    if request.seeds < 1:
        raise UserError(f"--seeds is {request.seeds}; use 1 or more")
    if request.step is not None and request.step < 1:
        raise UserError(f"--step is {request.step}; use 1 or more")
    features.check(request.features)


def _looked_at(request: Request, say: Say) -> Survey:
    """What is in the pictures' folder; UserError where some of it cannot be used."""
    if request.images.is_dir():
        deque(recordable(request.images), maxlen=0)  # what DVC could not record is refused
    try:
        found = survey(request.images, request.size, request.labels)
    except UnusableImages as error:
        raise UserError(f"{error.found}; move it into one of them or away, or give --labels none") from None
    modes = ", ".join(f"{count:,} {mode}" for mode, count in Counter(found.modes).most_common())
    say("pictures", f"{found.usable:,} in {request.images}: {modes}; {_sizes(found.sizes)}")
    for word, faults in (("unusable", found.refused), ("broken", found.broken)):
        for name, why in list(faults.items())[:NAMED]:
            say(word, f"{shown(name)} {why}")
        if len(faults) > NAMED:
            say(word, f"and {len(faults) - NAMED:,} more")
    if found.passed_over:
        ignored = ", ".join(f"{count:,} {what}" for what, count in sorted(found.passed_over.items()))
        say("ignored", f"{ignored} (no pictures)")
    if found.refused:
        raise UserError(f"{request.images}: {_count(found.refused)} cannot be used; convert or remove them")
    if found.broken and not request.skip_broken:
        raise UserError(
            f"{request.images}: {_count(found.broken)} cannot be read; mend or remove them, or give --skip-broken"
        )
    if found.mixed:
        say("convert", "transparency is put on white; grey, palette and CMYK become RGB; 16 bits become 8")
    if not found.fits(request.size):
        say("crop", f"the shorter side is brought to {request.size} pixels, then the centre is cut out")
    labels = [f"{shown(folder)} ({count:,})" for folder, count in found.labels.items()]
    more = f" and {len(labels) - NAMED:,} more" if len(labels) > NAMED else ""
    say("labels", f"{', '.join(labels[:NAMED])}{more}" if labels else "none: pictures of one folder")
    return found


def _count(faults: Mapping[str, str]) -> str:
    first = f"the first: {shown(next(iter(faults)))}"
    return f"{len(faults):,} {'picture' if len(faults) == 1 else 'pictures'} ({first})"


def _sizes(sizes: Mapping[tuple[int, int], int]) -> str:
    low, high = min(sizes, key=min), max(sizes, key=max)
    texts = list(dict.fromkeys(f"{width}x{height}" for width, height in (low, high)))
    if len(sizes) == 1:
        return f"all {texts[0]} pixels"
    return f"{len(sizes):,} sizes, {' to '.join(texts)} pixels"


def _start(path: Path, request: Request, channels: int, candidates: Sequence[Preset]) -> tuple[int, int, list[Preset]]:
    """Step, channels and network of the checkpoint that models are trained on from."""
    from ipdiff.interop import checking, reading
    from ipdiff.pipeline.commands.exchange import import_

    found, nearest = reading.read(path), list[str]()
    for preset in reversed(candidates):
        for shape in dict.fromkeys((channels, 3)):
            spec = presets.run_spec(preset, shape, request.size, 1000, Compute())
            problems = checking.problems(found.tensors, checking.shapes(spec))
            if not problems:
                step = request.step or found.step or import_.named_step(path.name)
                if step is None:
                    raise UserError(f"{path}: its name does not say the training step; give it with --step N")
                return step, shape, [replace(preset, worth=0)]
            nearest = nearest or problems
    names = ", ".join(preset.name for preset in candidates)
    raise UserError(
        f"{path}: none of the networks for {request.size} pixels ({names}) has these weights; of the paper's, "
        f"{nearest[0]} ({len(nearest)} differences)"
    )


def _device(asked: str | None) -> Literal["cpu", "cuda"]:
    """What networks will run on. Raises UserError where that is not here."""
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but torch finds no CUDA device here; use cpu")
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def _fitted(
    request: Request,
    device: Literal["cpu", "cuda"],
    found: Survey,
    chosen: Chosen,
    channels: int,
    candidates: Sequence[Preset],
    say: Say,
) -> tuple[Choice, Compute, tuple[float, float]]:
    """What fits the budget on this machine, what networks run on, and how long measuring took by wall and CPU."""
    cores, runs = speeds.cores(), len(request.gammas) * request.seeds
    if device == "cuda":
        compute, jobs = Compute(device="cuda", precision="bfloat16"), 1
    else:
        compute = Compute(device="cpu", threads=max(1, min(8, cores // runs)))
        jobs = max(1, cores // compute.threads)
    distance, moments = speeds.of_distances(chosen.dimensions(channels, request.size))
    feature, update = 0.0, 0.0
    if isinstance(chosen.settings, Classifier):
        feature, update = speeds.of_classifier(chosen.settings, channels, request.size, compute)
    elif isinstance(chosen.settings, TorchScript):
        feature = speeds.of_torchscript(chosen.settings, channels, request.size, compute)
    work = Work(
        images=found.usable,
        gammas=request.gammas,
        seeds=request.seeds,
        jobs=jobs,
        prepare=found.seconds,
        classifier=update,
        feature=feature + moments,
        distance=distance,
    )
    room = training_room(work, request.budget)
    start = time.perf_counter(), speeds.cpu_seconds(compute.threads)
    known, limit = speeds.of_networks(candidates, channels, request.size, compute, room, runs)
    clocks = time.perf_counter() - start[0], speeds.cpu_seconds(compute.threads) - start[1]
    if chosen.name == "inception":
        work = replace(work, feature=speeds.of_inception(limit) + moments)
    smaller = request.size > min(presets.SIZES) and request.checkpoint is None
    choice = fit(work, known, request.budget, smaller=smaller)
    _say_choice(choice, compute, cores, channels, request, say)
    return choice, compute, clocks


def _say_choice(choice: Choice, compute: Compute, cores: int, channels: int, request: Request, say: Say) -> None:
    work, speed, preset = choice.work, choice.speed, choice.preset
    spec = presets.run_spec(preset, channels, request.size, choice.updates, compute)
    where = f"{cores} CPU cores" if compute.device == "cpu" else "one GPU"
    how = "measured" if speed.measured else "from a narrower network's, by arithmetic"
    say(
        "machine",
        f"{where}; this network trains {speed.train:,.3g} images/s and samples {speed.sample:,.3g} image-steps/s a job "
        f"({how})",
    )
    full = presets.of_size(request.size)[-1].network.model_channels
    paper = "the paper's" if preset.name == "full" else f"the paper's is {full} wide"
    width = preset.network.model_channels
    say("network", f"{preset.name}: {width} channels wide, {speeds.parameters(spec):,} weights ({paper})")
    gammas = ", ".join(f"{gamma:g}" for gamma in work.gammas)
    times = {what: duration(seconds) for what, seconds in choice.times.items()}
    steps = ", ".join(map(str, choice.steps))
    say(
        "training",
        f"{work.runs} runs (gamma {gammas}; {_seeds(work)}) of {choice.updates:,} updates of {preset.batch} images: "
        f"{times['training']}",
    )
    say("sampling", f"{work.runs * len(choice.steps)} sets of {choice.samples:,}, T' = {steps}: {times['sampling']}")
    say("measuring", f"features and distances of these: {times['measuring']}; all the rest {times['the rest']}")


def _seeds(work: Work) -> str:
    return f"{work.seeds} seeds each" if work.seeds > 1 else "1 seed each"


def _checked(draft: Draft, say: Say) -> dict[Path, str]:
    """The study's files by their paths, held against all that a study is held against, in a project of its own."""
    path = config.path_of(draft.name)
    with tempfile.TemporaryDirectory(prefix="ipdiff-new-") as folder:
        (Path(folder) / path).parent.mkdir(parents=True)
        text = render(draft)
        (Path(folder) / path).write_text(text)
        known = grid.load(Path(folder))
        try:
            made = {path: text, dvc_files.path_of(draft.name): dvc_files.render(known, draft.name)}
            found = plan.Planner(Freshness(known)).plan([draft.name])
        except ConfigError as error:
            raise UserError(str(error).replace(f"{folder}/", "")) from None
    total = found.total
    say("disk", f"{bytes_text(total.bytes + found.states)} for {total.cells} artifacts, train states among them")
    choice = draft.choice
    say(
        "together",
        f"about {duration(choice.seconds)} with snakemake --cores all; {duration(choice.one_by_one)} with dvc "
        "repro, one after another",
    )
    return made


def _warn(request: Request, found: Survey, choice: Choice, say: Say) -> None:
    if choice.preset.name in ("tiny", "small"):
        say(
            "mind",
            "so short a training gives blurred pictures. What counts is how the models differ, not any FID by itself",
        )
    if request.seeds < 2:
        say("mind", "one seed shows no spread: a difference may be chance; --seeds 2 or more tells")
    if found.usable < FEW:
        say("mind", f"{found.usable:,} pictures are few: networks soon know them by heart, and distances are noisy")
    if found.channels == 3 and found.grey == found.usable and request.checkpoint is None:
        say(
            "mind",
            f"all {found.usable:,} pictures are grey but stored as colour: channels: 1 with modes: convert would do",
        )
    say("mind", "pictures are mirrored at random; set flip: false for text and digits")


def _write(name: str, files: Mapping[Path, str]) -> list[Path]:
    """The study's folder, whole or not at all."""
    folder = config.path_of(name).parent
    folder.parent.mkdir(exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        for path, text in files.items():
            (staging / path.name).write_text(text)
        staging.chmod(0o755)
        staging.rename(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return list(files)


def _next(request: Request, step: int | None, dry_run: bool, say: Say) -> None:
    name = request.name
    if dry_run:
        say("next", "the same without --dry-run writes the study")
        return
    if step is not None:
        say("next", f"ipdiff import {request.checkpoint} --as {name}/{PRETRAINED} --step {step}")
    say("next", f"snakemake --cores all {name}    # or: ipdiff warm dvc repro {dvc_files.path_of(name)}")
    say("then", f"open report/{name}/index.html")
