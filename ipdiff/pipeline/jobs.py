"""From a cell to its stage: parameters resolved, inputs verified, outputs published."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipdiff.errors import IntegrityError, UserError
from ipdiff.metrics.spec import FEATURES
from ipdiff.pipeline import config, grid
from ipdiff.pipeline.config.spec import Dataset
from ipdiff.pipeline.grid import Cell
from ipdiff.pipeline.stages import IMPORT, STAGES, START
from ipdiff.pipeline.store import artifact
from ipdiff.pipeline.store.artifact import Publication
from ipdiff.pipeline.store.code_digests import code_digest
from ipdiff.sample_sets.spec import Sampler
from ipdiff.spec import RunSpec
from ipdiff.work import launch, recipes
from ipdiff.work.files import md5
from ipdiff.work.locks import locked
from ipdiff.work.recipes import RECIPE
from ipdiff.work.shards import Shards
from ipdiff.work.train_states import States

if TYPE_CHECKING:
    from ipdiff.device.spec import Compute
    from ipdiff.metrics.features.extractors import Network
    from ipdiff.metrics.spec import Reference
    from ipdiff.sample_sets.sample import ImageSampler
    from ipdiff.training.segment import Setup

WORK = Path("work")


class Job:
    """A cell about to be made: what its stage's `run` needs, from params.yaml and its inputs."""

    def __init__(self, params: config.Params, cell: Cell, inputs: dict[str, str]) -> None:
        """`inputs`: verified paths and digests."""
        self.params, self.cell, self.inputs = params, cell, inputs
        self.names = cell.bindings

    @property
    def dataset(self) -> Dataset:
        """The cell's data set."""
        return self.params.dataset(self.names["dataset"])

    def path(self, name: str) -> Path:
        """The input file of this name."""
        return Path(next(path for path in self.inputs if path.endswith(f"/{name}")))

    def paths(self, name: str) -> list[Path]:
        """All input files of this name."""
        return [Path(path) for path in self.inputs if path.endswith(f"/{name}")]

    def recipe(self) -> dict[str, Any]:
        """The recipe among the inputs."""
        return recipes.read(self.path(RECIPE))

    def recipes(self) -> list[dict[str, Any]]:
        """All recipes among the inputs."""
        return [recipes.read(path) for path in self.paths(RECIPE)]

    def network(self) -> Network:
        """The data set's feature network."""
        from ipdiff.metrics.features import inception_file
        from ipdiff.metrics.features.extractors import Network

        name, settings = self.dataset.features, self.dataset.feature_settings
        file = FEATURES[name].file
        made = self.path(STAGES[name].files[0]) if file == "stage" else None
        return Network(name, inception_file.obtain(settings) if file == "published" else made, settings)

    @property
    def start(self) -> Path | None:
        """The weights that the run is trained on from, if it is."""
        return Path(START.format(**self.names), IMPORT.files[0]) if "start_model" in self.names else None

    def setup(self, spec: RunSpec) -> Setup:
        """What a run is trained with here.

        Raises:
            UserError: it is to be trained on from the weights of another network.
        """
        from ipdiff.training.segment import Setup

        if self.start is not None:
            there = RunSpec.from_json(recipes.read(self.start.with_name(RECIPE))["run"])
            if wrong := spec.unlike(there):
                raise UserError(f"{self.start} is of another network than params.yaml has now: {wrong}; make it again")
        progress, images = _progress(int(self.names["step"]), "updates"), self.path("images.npy")
        return Setup(spec, images, self.states(spec), self.params.work, self.start, *launch.place(), progress)

    def run_spec(self) -> RunSpec:
        """The training run of the cell's names."""
        names = self.names
        return self.params.run_spec(names["dataset"], names["model"], int(names["seed"]))

    def checkpoint_spec(self) -> RunSpec:
        """The run of the checkpoint among the inputs, by its recipe.

        Raises:
            UserError: it was imported for another network or noise process than params.yaml has now: no engine makes
                it anew, as it does with a trained one.
        """
        recipe = self.recipe()
        recorded = RunSpec.from_json(recipe["run"])
        if recipe["stage"] == IMPORT.verb:
            now = self.run_spec()
            changed = [key for key in ("family", "network", "diffusion") if getattr(recorded, key) != getattr(now, key)]
            if changed:
                where = f"datasets.{self.names['dataset']}.families.{now.family}.{changed[0]}"
                raise UserError(f"{recipe['cell']} was imported with another {where}; delete that folder, import again")
        return recorded

    def published_state(self, step: int) -> Path:
        """Where the run's `resume` artifact of a step lies, if it was made or pulled."""
        return Path(STAGES["resume"].outputs[0].format(**{**self.names, "step": str(step)}))

    def states(self, spec: RunSpec) -> States:
        """The run's train states: their directory's name is the digest of all that decides the run's bytes."""
        names, train = self.names, STAGES["train"]
        code = code_digest(train.module, grid.rows_of(self.params, names), train.runs)
        start = [] if self.start is None else [self.inputs[str(self.start)]]
        name = _digest(spec.to_json(), self.inputs[str(self.path("images.npy"))], code, *start)
        run = WORK / "states" / names["dataset"] / names["model"] / f"s{names['seed']}"
        return States(run / name, self.params.work.states_kept)

    def checkpoint_states(self) -> set[str]:
        """Digests of the states that the run's checkpoints name, as far as they are here."""
        train = STAGES["train"]
        found = set[str]()
        for path in Path().glob(train.outputs[-1].format(**{**self.names, "step": "*"})):
            try:
                found.add(str(recipes.read(path).get("state")))
            except IntegrityError:  # its reader will say so
                continue
        return found

    def shards(self) -> Shards:
        """Where finished parts of the cell are saved until it is published."""
        name = _digest(self.inputs, self.params.values(self.cell.params), self.cell.code)
        return Shards(WORK / self.cell.directory / name, *launch.place())

    def shared(self, made: Publication) -> Shards:
        """`shards`, of which those of other versions are removed now, and these when the cell is published."""
        shards = self.shards()
        if shards.first:
            shards.drop_others()
            made.afterwards = shards.drop
        return shards


def _digest(*deciding: Any) -> str:
    return md5(json.dumps(deciding, sort_keys=True).encode())


def _prepare(job: Job, made: Publication) -> None:
    from ipdiff.data import prepare
    from ipdiff.data.download import obtain

    source = job.dataset.source
    raw = [Path(source.raw)] if source.raw else [obtain(archive) for archive in job.params.archives(source)]
    notes = prepare.run(source, made.staging, raw, progress=_progress(source.expected_images or 0, "images"))
    if notes:
        made.extra = {"read": notes}
        print(f"ipdiff: {raw[0]}: {prepare.summary(notes)}", file=sys.stderr, flush=True)


def _classifier(job: Job, made: Publication) -> None:
    from ipdiff.metrics.features import classifier

    classifier.run(
        job.dataset.classifier, job.dataset.compute, job.path("images.npy"), job.path("labels.npy"), made.staging
    )


def _reference(job: Job, made: Publication) -> None:
    from ipdiff.metrics import reference

    reference.run(*_real_images(job, made))


def _neighbours(job: Job, made: Publication) -> None:
    from ipdiff.metrics import neighbours

    neighbours.run(*_real_images(job, made))


def _real_images(job: Job, made: Publication) -> tuple[Reference, Network, Compute, Path, Path, Shards]:
    """What a stage takes that looks at a data set's own images."""
    dataset = job.dataset
    return dataset.reference, job.network(), dataset.compute, job.path("images.npy"), made.staging, job.shared(made)


def _train(job: Job, made: Publication) -> None:
    from ipdiff.training import optimizer, segment

    spec = job.run_spec()
    previous = None
    if "previous" in job.names:
        recorded = job.recipe()
        start = str(job.start)
        if recorded["run"] != spec.to_json() or recorded["inputs"].get(start) != job.inputs.get(start):
            raise UserError(
                f"{job.path(RECIPE)} is of other parameters than params.yaml has now; make that checkpoint again first"
            )
        previous = (int(job.names["previous"]), recorded["state"])
    setup = job.setup(spec)
    optimizer.micro_batches(spec.training, setup.count)  # refused before they meet: who has met waits for who has left
    if setup.rank == 0:
        setup.states.prune_others(job.checkpoint_states())
        if previous:
            setup.states.take(job.published_state(previous[0]), *previous)
    with setup.states.in_use():
        made.extra = segment.run(setup, made.staging, int(job.names["step"]), previous)


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
    return ImageSampler(
        job.checkpoint_spec(),
        job.path("ema.safetensors"),
        sampler,
        clip_denoised=family.clip_denoised,
        quantise=family.quantise,
        compute=job.dataset.sampling_compute,
        images=load_images(job.path("images.npy")) if sampler.row.from_images else None,
    )


def _sample(job: Job, made: Publication) -> None:
    from ipdiff.sample_sets import sample

    draw, sampling = _image_sampler(job), job.dataset.sampling
    progress = _progress(sampling.count(draw.sampler), "images")
    made.extra = sample.run(draw, sampling, made.staging, job.shared(made), progress)


def draw_one(cell: Cell, index: int, path: Path) -> None:
    """Draw image `index` of a sample set alone and write it as a PNG.

    The network call it belongs to is repeated whole, so its bytes are those of the set.
    """
    from PIL import Image

    from ipdiff.sample_sets import sample

    job = Job(config.Studies().of(cell.bindings), cell, artifact.verify_inputs(cell.inputs, _raw(cell)))
    call = sample.call_of(index, Sampler.parse(job.names["sampler"]), job.dataset.sampling)
    image = _image_sampler(job).draw(call)[index - call.start]
    Image.fromarray(image.squeeze()).save(path)


def _evaluate(job: Job, made: Publication) -> None:
    from ipdiff.metrics import evaluate

    names = job.names
    about = {
        "dataset": names["dataset"],
        "model": names["model"],
        "seed": int(names["seed"]),
        "step": int(names["step"]),
        "sampler": names["sampler"],
        "sample_steps": Sampler.parse(names["sampler"]).steps,
        "nfe": job.recipe()["nfe"],
        "reference_digest": job.inputs[str(job.path("stats.npz"))],
    }
    evaluate.run(
        job.network(),
        job.dataset.compute,
        job.path("samples.npz"),
        job.path("stats.npz"),
        about,
        made.staging,
        metrics=job.dataset.metrics,
        neighbours=job.path("features.npy").parent if job.dataset.reference.neighbours else None,
        shards=job.shared(made),
    )


def _analyse(job: Job, made: Publication) -> None:
    from ipdiff.sample_sets import prediction_error

    settings = job.dataset.analysis
    if settings is None:
        raise UserError(f"datasets.{job.names['dataset']}.analysis is missing")
    spec = job.checkpoint_spec()
    about = {name: job.names[name] for name in ("dataset", "model")} | {
        name: int(job.names[name]) for name in ("seed", "step")
    }
    prediction_error.run(
        spec,
        job.path("ema.safetensors"),
        job.path("images.npy"),
        settings,
        about,
        made.staging,
        compute=job.dataset.compute,
        progress=_progress(len(prediction_error.timesteps(settings, spec.diffusion.T)), "timesteps"),
    )


def _table(job: Job, made: Publication) -> None:
    from ipdiff.report.tables import table

    name = job.names["table"]
    table.run(name, job.params.table(name), job.paths("metrics.json"), made.staging, job.recipes())


def _figure(job: Job, made: Publication) -> None:
    from ipdiff.report.figures import figure

    name = job.names["figure"]
    shown = [Path(path) for path in job.inputs if not path.endswith(f"/{artifact.RECIPE}")]
    figure.run(name, job.params.figure(name), shown, made.staging, job.recipes())


def _report(job: Job, made: Publication) -> None:
    from ipdiff.report.pages import report

    name = job.names["study"]
    params = job.params
    study = dataclasses.replace(params, datasets={name: params.datasets[name] for name in config.shown(params)})
    report.run(
        name,
        study,
        {table: Path("tables") / name / table for table in study.tables},
        {figure: Path("figures") / name / figure for figure in study.figures},
        job.recipes(),
        made.staging,
    )


RUN: dict[str, Callable[[Job, Publication], None]] = {
    "prepare": _prepare,
    "classifier": _classifier,
    "reference": _reference,
    "neighbours": _neighbours,
    "train": _train,
    "resume": _resume,
    "sample": _sample,
    "evaluate": _evaluate,
    "analyse": _analyse,
    "table": _table,
    "figure": _figure,
    "report": _report,
}


def _raw(cell: Cell) -> set[str]:
    """Inputs that no cell makes."""
    return {path for path in cell.inputs if path == cell.bindings.get("raw")}


def make(cell: Cell) -> None:
    """Make one cell: verify its inputs, run its stage, publish its outputs with their recipe.

    One process at a time makes a cell: another one waits, and is content with what the first has published.
    Processes that share the work of one stage (`ipdiff.work.launch`) come here together; process 0 publishes.
    """
    directory = Path(cell.directory)
    rank, count = launch.place()
    job, recipe = _job(cell)
    if rank:
        _help(job, recipe)
        return
    held = launch.started_here()  # by whoever started this process
    with nullcontext() if held else locked(artifact.lock_of(directory), _say_waiting(cell)) as lock:
        if lock is not None and lock.waited:
            job, recipe = _job(cell)  # its inputs may be others by now
            if count == 1 and artifact.is_published(directory, recipe):
                return
        with artifact.publishing(directory, cell.stage.files, recipe) as made:
            RUN[cell.stage.verb](job, made)
        made.afterwards()


def _job(cell: Cell) -> tuple[Job, dict[str, Any]]:
    """The work to do, its inputs verified, and what its recipe says of it beforehand."""
    params = config.Studies().of(cell.bindings)
    inputs = artifact.verify_inputs(cell.inputs, _raw(cell))
    recipe = {
        "cell": cell.directory,
        "stage": cell.stage.verb,
        "command": cell.command,
        "code": cell.code,
        "params": params.values(cell.params),
        "inputs": inputs,
    }
    return Job(params, cell, inputs), recipe


def _help(job: Job, recipe: dict[str, Any]) -> None:
    """Share the work of process 0, which publishes: all of a training run; of a set of images, what it has not done."""
    verb = job.cell.stage.verb
    if verb == "train":
        RUN[verb](job, Publication(Path()))
    elif job.cell.stage.shared:
        with job.shards().in_use():  # else what process 0 publishes now, and drops, would be begun anew
            if not artifact.is_published(Path(job.cell.directory), recipe):
                RUN[verb](job, Publication(Path()))


def make_with(count: int, cell: Cell, argv: Sequence[str]) -> int:
    """Make one cell with `count` processes that run `ipdiff argv`; returns the exit code."""
    with locked(artifact.lock_of(Path(cell.directory)), _say_waiting(cell)) as lock:
        return launch.run(argv, count, keep=[lock.handle])


def _say_waiting(cell: Cell) -> Callable[[str], None]:
    def say(holder: str) -> None:
        print(f"ipdiff: {cell.directory} is being made by {holder}; waiting for it", file=sys.stderr, flush=True)

    return say


def _progress(total: int, unit: str) -> Callable[[int], None]:
    """A progress bar on stderr, silent when that is no terminal."""
    if not sys.stderr.isatty():
        return lambda done: None
    from tqdm import tqdm

    bar = tqdm(total=total, unit=f" {unit}", smoothing=0.1)

    def show(done: int) -> None:
        bar.update(done - bar.n)

    return show
