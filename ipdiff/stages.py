"""From a cell to its stage: parameters resolved, inputs verified, outputs published."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ipdiff import artifact, config, grid
from ipdiff.artifact import Publication
from ipdiff.code import code_digest
from ipdiff.errors import UserError
from ipdiff.grid import Cell
from ipdiff.spec import Dataset, Objective, RunSpec, Sampler
from ipdiff.states import States

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
        return artifact.read_recipe(self.path(artifact.RECIPE))

    def run_spec(self) -> RunSpec:
        """The training run of the cell's names."""
        names = self.names
        family = self.params.family(names["dataset"], names["model"])
        model = self.params.model(names["model"])
        return RunSpec(
            family=model.family,
            network=family.network,
            diffusion=family.diffusion,
            training=family.training,
            objective=Objective.resolve(model, self.dataset.strengths),
            compute=self.dataset.compute,
            image_size=self.dataset.source.image_size,
            channels=self.dataset.source.channels,
            seed=int(names["seed"]),
        )

    def published_state(self, step: int) -> Path:
        """Where the run's `resume` artifact of a step lies, if it was made or pulled."""
        names = {**self.names, "step": str(step)}
        return Path(grid.STAGES["resume"].outputs[0].format(**names))

    def states(self, spec: RunSpec) -> States:
        """The run's train states: their directory's name is the digest of all that decides the run's bytes."""
        deciding = [spec.to_json(), self.inputs[str(self.path("images.npy"))], code_digest("train")]
        text = json.dumps(deciding, sort_keys=True)
        name = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        return States(WORK / "states" / name, self.params.work.states_kept)


def _prepare(job: Job, made: Publication) -> None:
    from ipdiff import prepare

    prepare.run(job.dataset.source, made.staging)


def _classifier(job: Job, made: Publication) -> None:
    from ipdiff import classifier

    classifier.run(
        job.dataset.classifier, job.dataset.compute, job.path("images.npy"), job.path("labels.npy"), made.staging
    )


def _reference(job: Job, made: Publication) -> None:
    from ipdiff import reference

    reference.run(
        job.dataset.classifier,
        job.dataset.compute,
        job.path("images.npy"),
        job.path("classifier.safetensors"),
        made.staging,
    )


def _train(job: Job, made: Publication) -> None:
    from ipdiff import train

    spec = job.run_spec()
    previous = None
    if "previous" in job.names:
        recorded = job.recipe()
        if recorded["run"] != spec.to_json():
            raise UserError(
                f"{job.path(artifact.RECIPE)} is of other parameters than params.yaml has now; "
                "make that checkpoint again first"
            )
        previous = (int(job.names["previous"]), recorded["state"])
    step = int(job.names["step"])
    states = job.states(spec)
    if previous:
        states.take(job.published_state(previous[0]), *previous)
    made.extra = train.run(
        spec,
        job.path("images.npy"),
        made.staging,
        step=step,
        previous=previous,
        states=states,
        save_every=job.params.work.save_every,
        progress=_progress(step, "updates"),
    )


def _resume(job: Job, made: Publication) -> None:
    from ipdiff import resume

    recorded = job.recipe()
    spec = RunSpec.from_json(recorded["run"])
    resume.run(
        spec,
        job.path("images.npy"),
        made.staging,
        step=int(job.names["step"]),
        digest=recorded["state"],
        states=job.states(spec),
        save_every=job.params.work.save_every,
    )


def _sample(job: Job, made: Publication) -> None:
    from ipdiff import sample

    family = job.params.family(job.names["dataset"], job.names["model"])
    sampler = Sampler.parse(job.names["sampler"])
    made.extra = sample.run(
        RunSpec.from_json(job.recipe()["run"]),
        job.path("ema.safetensors"),
        sampler,
        job.dataset.sampling,
        made.staging,
        clip_denoised=family.clip_denoised,
        compute=job.dataset.compute,
        images=job.path("images.npy") if sampler.kind == "exposure" else None,
        progress=_progress(sample.num_images(sampler, job.dataset.sampling), "images"),
    )


def draw_one(cell: Cell, index: int, path: Path) -> None:
    """Draw image `index` of a sample set alone and write it as a PNG.

    The network call it belongs to is repeated whole, so its bytes are those of the set.
    """
    from PIL import Image

    from ipdiff import sample

    params = config.load()
    job = Job(params, cell, artifact.verify_inputs(cell.inputs, _raw(cell)))
    family = params.family(job.names["dataset"], job.names["model"])
    sampler = Sampler.parse(job.names["sampler"])
    count = sample.num_images(sampler, job.dataset.sampling)
    if not 0 <= index < count:
        raise UserError(f"index is {index}; the set has images 0..{count - 1}")
    image = sample.draw_one(
        RunSpec.from_json(job.recipe()["run"]),
        job.path("ema.safetensors"),
        sampler,
        job.dataset.sampling,
        index,
        clip_denoised=family.clip_denoised,
        compute=job.dataset.compute,
        images=job.path("images.npy") if sampler.kind == "exposure" else None,
    )
    Image.fromarray(image.squeeze()).save(path)


def _evaluate(job: Job, made: Publication) -> None:
    from ipdiff import evaluate

    names = job.names
    about = {
        "dataset": names["dataset"],
        "model": names["model"],
        "seed": int(names["seed"]),
        "step": int(names["step"]),
        "sampler": names["sampler"],
        "sample_steps": Sampler.parse(names["sampler"]).steps,
        "nfe": job.recipe()["nfe"],
        "features_digest": job.inputs[str(job.path("classifier.safetensors"))],
        "reference_digest": job.inputs[str(job.path("stats.npz"))],
    }
    evaluate.run(
        job.dataset.classifier,
        job.dataset.compute,
        job.path("samples.npz"),
        job.path("stats.npz"),
        job.path("classifier.safetensors"),
        about,
        made.staging,
    )


def _table(job: Job, made: Publication) -> None:
    from ipdiff.report import table

    name = job.names["table"]
    view = job.params.study(job.names["study"]).tables[name]
    table.run(name, view, job.paths("metrics.json"), made.staging)


def _figure(job: Job, made: Publication) -> None:
    from ipdiff.report import figure

    name = job.names["figure"]
    view = job.params.study(job.names["study"]).figures[name]
    figure.run(name, view, [Path(path) for path in job.inputs], made.staging)


def _report(job: Job, made: Publication) -> None:
    from ipdiff.report import html

    name = job.names["study"]
    study = job.params.study(name)
    html.run(
        name,
        study,
        {table: Path("tables") / name / table for table in study.tables},
        {figure: Path("figures") / name / figure for figure in study.figures},
        made.staging,
    )


RUN: dict[str, Callable[[Job, Publication], None]] = {
    "prepare": _prepare,
    "classifier": _classifier,
    "reference": _reference,
    "train": _train,
    "resume": _resume,
    "sample": _sample,
    "evaluate": _evaluate,
    "table": _table,
    "figure": _figure,
    "report": _report,
}


def _raw(cell: Cell) -> set[str]:
    """Inputs that no cell makes."""
    return {path for path in cell.inputs if path == cell.bindings.get("raw")}


def make(cell: Cell) -> None:
    """Make one cell: verify its inputs, run its stage, publish its outputs with their recipe."""
    params = config.load()
    inputs = artifact.verify_inputs(cell.inputs, _raw(cell))
    recipe = {
        "cell": cell.directory,
        "stage": cell.stage.verb,
        "command": cell.command,
        "code": code_digest(cell.stage.verb),
        "params": grid.param_values(cell, config.load_raw()),
        "inputs": inputs,
    }
    with artifact.publishing(Path(cell.directory), cell.stage.files, recipe) as made:
        RUN[cell.stage.verb](Job(params, cell, inputs), made)


def _progress(total: int, unit: str) -> Callable[[int], None]:
    """A progress bar on stderr, silent when that is no terminal."""
    if not sys.stderr.isatty():
        return lambda done: None
    from tqdm import tqdm

    bar = tqdm(total=total, unit=f" {unit}", smoothing=0.1)

    def show(done: int) -> None:
        bar.update(done - bar.n)

    return show
