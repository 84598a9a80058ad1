"""From a cell to its stage: inputs verified, its function run, outputs published."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ipdiff.errors import Preempted, UserError
from ipdiff.metrics.spec import METRICS
from ipdiff.pipeline import config, selfcheck
from ipdiff.pipeline.grid import Cell
from ipdiff.pipeline.job import Job
from ipdiff.pipeline.progress import reporter, sinks, status
from ipdiff.pipeline.progress.curve import Curve
from ipdiff.pipeline.progress.status import Status
from ipdiff.pipeline.stages import CURVE, IMPORT, MEASURED, STAGES
from ipdiff.pipeline.store import artifact
from ipdiff.pipeline.store.artifact import Publication
from ipdiff.sample_sets.spec import Sampler
from ipdiff.spec import RunSpec
from ipdiff.work import launch, progress
from ipdiff.work.locks import locked
from ipdiff.work.recipes import RECIPE
from ipdiff.work.shards import Shards, unit_of

if TYPE_CHECKING:
    from ipdiff.device.spec import Compute
    from ipdiff.metrics.features.extractors import Network
    from ipdiff.metrics.spec import Reference
    from ipdiff.sample_sets.sample import ImageSampler


def _prepare(job: Job, made: Publication) -> None:
    from ipdiff.data import prepare
    from ipdiff.data.download import obtain

    source = job.dataset.source
    raw = [Path(source.raw)] if source.raw else [obtain(archive) for archive in job.params.archives(source)]
    notes = prepare.run(source, made.staging, raw)
    if notes:
        made.extra = {"read": notes}
        print(f"ipdiff: {raw[0]}: {prepare.summary(notes)}", file=sys.stderr, flush=True)
    if source.reader == "ffhq" and source.archives:
        print(f"ipdiff: {raw[0]}: {_faces(made.staging / 'images.npy')}", file=sys.stderr, flush=True)


def _faces(images: Path) -> str:
    """What is known of FFHQ, of which no archive is published: its pixels, and whether the published list has them.

    Raises:
        IntegrityError: an image is another, or the list is.
    """
    from ipdiff.data.download import place
    from ipdiff.data.formats import ffhq_list
    from ipdiff.data.images import load_images
    from ipdiff.data.spec import Archive

    pixels, published = load_images(images), place(Archive(file=ffhq_list.NAME))
    said = f"{len(pixels)} images, sha256 of their pixels {ffhq_list.digest(pixels)}"
    if not published.exists():
        return f"{said}; none was held against its published digest: {published} is not here"
    ffhq_list.check(pixels, published)
    return f"{said}; each is as {published} says"


def _classifier(job: Job, made: Publication) -> None:
    from ipdiff.metrics import classifier

    classifier.run(
        job.dataset.classifier, job.dataset.compute, job.path("images.npy"), job.path("labels.npy"), made.staging
    )


def _reference(job: Job, made: Publication) -> None:
    from ipdiff.metrics import reference

    reference.run(*_real_images(job, made))


def _neighbours(job: Job, made: Publication) -> None:
    from ipdiff.metrics import neighbours

    neighbours.run(*_real_images(job, made))


def _halves(job: Job, made: Publication) -> None:
    from ipdiff.metrics import halves

    halves.run(*_real_images(job, made), count=int(job.names["samples"]))


def _real_images(job: Job, made: Publication) -> tuple[Reference, Network, Compute, Path, Path, Shards]:
    """What a stage takes that looks at a data set's own images."""
    dataset = job.dataset
    return dataset.reference, job.network(), dataset.compute, job.path("images.npy"), made.staging, job.shared(made)


def _train(job: Job, made: Publication) -> None:
    from ipdiff.training import segment
    from ipdiff.training.distributed import Processes, share_of

    spec = job.run_spec()
    previous = None
    if "previous" in job.names:
        recorded = job.recipe()
        started, starts = (
            {path: digest for path, digest in inputs.items() if path.endswith(f"/{IMPORT.files[0]}")}
            for inputs in (recorded["inputs"], job.inputs)
        )
        if recorded["run"] != spec.to_json() or started != starts:
            raise UserError(
                f"{job.path(RECIPE)} is of other parameters, or of another start, than there are now; make that "
                "checkpoint again first"
            )
        previous = (int(job.names["previous"]), recorded["state"])
    setup = job.setup(spec)
    share_of(spec.training, Processes(setup.rank, setup.count))  # refused before they meet: who has met waits for all
    if setup.rank == 0:
        setup.states.prune_others(job.checkpoint_states())
        if previous:
            published = STAGES["resume"].outputs[0].format(**{**job.names, "step": previous[0]})  # if made or pulled
            setup.states.take(Path(published), *previous)
    batch, wanted = spec.training.batch_size, job.params.work.sinks if setup.rank == 0 else []
    curve = Curve(Path(job.cell.fill(CURVE)), batch, wanted)
    with setup.states.in_use(), closing(curve), progress.listening(curve) if setup.rank == 0 else nullcontext():
        made.extra = segment.run(setup, made.staging, int(job.names["step"]), previous)
        made.execution = made.extra.pop("execution")


def _resume(job: Job, made: Publication) -> None:
    from ipdiff.training import resume

    recorded = job.recipe()
    spec = RunSpec.from_json(recorded["run"])
    states = job.states(spec)
    with states.in_use():
        resume.run(states, made.staging, int(job.names["step"]), recorded["state"], lambda: job.setup(spec))


def _image_sampler(job: Job) -> ImageSampler:
    from ipdiff.data.images import load_images
    from ipdiff.sample_sets.sample import ImageSampler

    family = job.params.family(job.names["dataset"], job.names["model"])
    sampler = Sampler.parse(job.names["sampler"])
    spec, compute = job.checkpoint_spec(), job.dataset.sampled_on(sampler)
    selfcheck.trust(spec.family, compute)
    return ImageSampler(
        spec,
        job.path("ema.safetensors"),
        sampler,
        clip_denoised=family.clip_denoised,
        quantise=family.quantise,
        compute=compute,
        images=load_images(job.path("images.npy")) if sampler.row.from_images else None,
    )


def _sample(job: Job, made: Publication) -> None:
    from ipdiff.sample_sets import sample

    draw, sampling = _image_sampler(job), job.dataset.sampling
    made.extra = sample.run(draw, sampling, made.staging, job.shared(made))


def draw_some(cell: Cell, images: range, path: Path) -> None:
    """Draw these images of a sample set alone and write them as one PNG, 8 a line (see `sheet.png`).

    The network calls they belong to are repeated whole, so their bytes are those of the set.

    Raises:
        UserError: there is no such image, or no such place.
    """
    import numpy as np

    from ipdiff.pipeline.store import sheet

    if not path.parent.is_dir():
        raise UserError(f"--out {path}: {path.parent} is no directory; make it first")
    if path.is_dir():
        raise UserError(f"--out {path}: is a directory; name the PNG in it")
    job = _job(cell)
    sampling = job.dataset.sampling
    count = sampling.count(Sampler.parse(job.names["sampler"]))
    calls = dict.fromkeys(unit_of(index, count, sampling.batch_size) for index in images)
    draw = _image_sampler(job)
    drawn = np.concatenate([draw.draw(call) for call in calls])
    first = images.start - next(iter(calls)).start
    path.write_bytes(sheet.png(drawn[first : first + len(images)]))


def _evaluate(job: Job, made: Publication) -> None:
    from ipdiff.metrics import evaluate

    about = job.about | {
        "sample_steps": Sampler.parse(job.names["sampler"]).steps,
        "nfe": job.recipe()["nfe"],
        "reference_digest": job.inputs[str(job.path("stats.npz"))],
    }
    made.extra = evaluate.run(
        job.network(),
        job.dataset.compute,
        job.path("samples.npz"),
        job.path("stats.npz"),
        about,
        made.staging,
        metrics=job.dataset.metrics,
        settings=job.dataset.metric_settings,
        neighbours=job.path("features.npy").parent if job.dataset.reference.neighbours else None,
        halves=job.path("halves.npz"),
        shards=job.shared(made),
    )
    if launch.place()[0] == 0 and "tensorboard" in job.params.work.sinks:
        found = json.loads((made.staging / "metrics.json").read_text())
        shown = {name: found[name] for name in METRICS if name in found}
        sinks.measured(Path(job.cell.fill(MEASURED)), int(job.names["step"]), job.names["sampler"], shown)
    _say_rising(job.cell, made.staging)


def _say_rising(cell: Cell, made: Path) -> None:
    """A line where the FID rises up to this checkpoint, of those of its run that were drawn and measured alike."""
    from ipdiff.report.figures import monitor

    file, here = cell.stage.files[0], int(cell.bindings["step"])
    if not (made / file).exists():  # a process that shares the work publishes nothing
        return
    there = Path().glob(cell.stage.directory.format(**{**cell.bindings, "step": "*"}))
    files = {int(path.parent.name): path / file for path in there if path.parent.name.isdecimal()}
    earlier = {step: path for step, path in files.items() if step < here and path.exists()}
    fids = {step: json.loads(path.read_text())["fid"] for step, path in {**earlier, here: made / file}.items()}
    for stretch in monitor.rises(fids):
        if stretch[-1] == here:
            names = f"{cell.bindings['dataset']} {cell.bindings['model']} seed {cell.bindings['seed']}"
            print(f"ipdiff: {monitor.line(names, fids, stretch)}", file=sys.stderr, flush=True)


def _drift(job: Job, made: Publication) -> None:
    from ipdiff.sample_sets import drift

    drift.run(_image_sampler(job), job.path("images.npy"), job.analysis, made.staging)


def _analyse(job: Job, made: Publication) -> None:
    from ipdiff.sample_sets import prediction_error

    spec = job.checkpoint_spec()
    selfcheck.trust(spec.family, job.dataset.compute)
    prediction_error.run(
        spec,
        job.path("ema.safetensors"),
        job.path("images.npy"),
        job.analysis,
        job.about,
        made.staging,
        compute=job.dataset.compute,
    )


def _table(job: Job, made: Publication) -> None:
    from ipdiff.report.tables import table

    name, asked = job.names["table"], job.params.table(job.names["table"])
    gammas = config.gammas(job.params, asked)
    table.run(name, asked, job.paths("metrics.json"), made.staging, job.recipes(), gammas)


def _summary(job: Job, made: Publication) -> None:
    from ipdiff.report.tables import summary

    summary.run(job.paths("table.csv"), made.staging)


def _figure(job: Job, made: Publication) -> None:
    from ipdiff.report.figures import figure

    name, asked = job.names["figure"], job.params.figure(job.names["figure"])
    shown = [Path(path) for path in job.inputs if not path.endswith(f"/{RECIPE}")]
    figure.run(name, asked, shown, made.staging, job.recipes(), config.gammas(job.params, asked))


def _report(job: Job, made: Publication) -> None:
    from ipdiff.report.pages import report

    name, params = job.names["study"], job.params
    study = dataclasses.replace(params, datasets={name: params.datasets[name] for name in config.shown(params)})
    report.run(
        name,
        study,
        {table: Path("tables") / name / table for table in study.tables},
        {figure: Path("figures") / name / figure for figure in study.figures},
        job.recipes(),
        made.staging,
        config.unperturbed(params),
    )


RUN: dict[str, Callable[[Job, Publication], None]] = {
    "prepare": _prepare,
    "classifier": _classifier,
    "reference": _reference,
    "neighbours": _neighbours,
    "halves": _halves,
    "train": _train,
    "resume": _resume,
    "sample": _sample,
    "evaluate": _evaluate,
    "analyse": _analyse,
    "drift": _drift,
    "table": _table,
    "summary": _summary,
    "figure": _figure,
    "report": _report,
}


def make(cell: Cell) -> None:
    """Make one cell: verify its inputs, run its stage, publish its outputs with their recipe.

    One process at a time makes a cell: another one waits, and is content with what the first has published.
    Processes that share the work of one stage (`ipdiff.work.launch`) come here together; process 0 publishes.
    """
    directory = Path(cell.directory)
    rank, count = launch.place()
    if rank:
        _help(_job(cell))
        return
    with reporter.job(cell.directory, count) as report:
        job = _job(cell)
        held = launch.started_here()  # by whoever started this process
        with nullcontext() if held else locked(artifact.lock_of(directory), _say_waiting(cell)) as lock:
            if lock is not None and lock.waited:
                job = _job(cell)  # its inputs may be others by now
                if count == 1 and artifact.is_published(directory, job.begun()):
                    return
            report.keep_status(Status(cell.directory, processes=count))
            with artifact.publishing(directory, cell.stage.files, job.begun()) as made:
                RUN[cell.stage.verb](job, made)
            made.afterwards()


def _job(cell: Cell) -> Job:
    """The work to do, its inputs verified."""
    params = config.Studies().of(cell.bindings)
    return Job(params, cell, artifact.verify_inputs(cell.inputs, raw=cell.bindings.get("raw")))


def _help(job: Job) -> None:
    """Share the work of process 0, which publishes: all of a training run; of a set of images, what it has not done."""
    verb = job.cell.stage.verb
    if verb == "train":
        RUN[verb](job, Publication(Path()))
    elif job.cell.stage.shared:
        with job.shards().in_use():  # else what process 0 publishes now, and drops, would be begun anew
            if not artifact.is_published(Path(job.cell.directory), job.begun()):
                RUN[verb](job, Publication(Path()))


def make_with(count: int, cell: Cell, argv: Sequence[str]) -> int:
    """Make one cell with `count` processes that run `ipdiff argv`; returns the exit code."""
    with locked(artifact.lock_of(Path(cell.directory)), _say_waiting(cell)) as lock:
        try:
            code = launch.run(argv, count, keep=[lock.handle])
        except Preempted as error:
            status.ended(cell.directory, "stopped", str(error))
            raise
    if code:
        status.ended(cell.directory, "stopped" if code == launch.PREEMPTED else "failed", f"exit code {code}")
    return code


def _say_waiting(cell: Cell) -> Callable[[str], None]:
    def say(holder: str) -> None:
        print(f"ipdiff: {cell.directory} is being made by {holder}; waiting for it", file=sys.stderr, flush=True)

    return say
