"""The stages: verbs that make artifacts, one row each, and all there is to know of one.

The only place that spells a path or a command. A row's texts are templates over names, which `ipdiff.pipeline.grid`
fills.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from string import Formatter

from ipdiff.work.recipes import RECIPE


@dataclass(frozen=True)
class Stage:
    """A verb.

    Attributes:
        verb: its name on the command line and in recipes.
        module: what makes its bytes: the digest of its import closure is the cells' code.
        help: what it does, for the command line.
        directory: template of its artifacts' directory.
        files: names of its outputs.
        wildcards: the names that tell its cells apart: its flags.
        inputs: templates of the files it reads.
        params: templates of the keys of params.yaml that decide its bytes.
        metrics: those of `files` that DVC shows as metrics, of the study in the root.
        runs: registries whose functions it runs, of the row that a cell names: their code counts.
        shared: whether several processes can share its work.
        network: whether it runs a network, for which a job gets threads and GPUs.
        kind: "result" for what is small and what a reader wants first, "made" for the rest.
        card: whether a number's card tells of it.
        published: names of its files that are copied to published/.
        stored: whether published/store keeps it besides the results (of a run, the last checkpoint alone).
        decided_by: names besides those in `params` that decide the code that counts.
        variant: name of a stage with other inputs; cells of one name have equal templates.
    """

    verb: str
    module: str
    help: str
    directory: str
    files: tuple[str, ...]
    wildcards: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    shared: bool = False
    network: bool = False
    kind: str = "made"
    card: bool = False
    published: tuple[str, ...] = ()
    stored: bool = False
    decided_by: tuple[str, ...] = ()
    variant: str = ""

    @property
    def name(self) -> str:
        """The verb, or the variant's name: stages of one name have equal templates."""
        return self.variant or self.verb

    @cached_property
    def named(self) -> frozenset[str]:
        """The names that its keys of params.yaml are spelt with."""
        return frozenset(name for key in self.params for _, name, _, _ in Formatter().parse(key) if name)

    @cached_property
    def derived(self) -> frozenset[str]:
        """Names besides its wildcards that decide its cells."""
        return self.named.union(self.decided_by).difference(self.wildcards)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Every declared output, the recipe last."""
        return tuple(f"{self.directory}/{name}" for name in (*self.files, RECIPE))

    @property
    def command(self) -> str:
        """What both engines run."""
        return " ".join([f"ipdiff {self.verb}", *(f"--{name} {{{name}}}" for name in self.wildcards)])

    @property
    def log(self) -> str:
        """Where Snakemake keeps what a job says."""
        return f"logs/{self.directory}.log"

    def reading(self, variant: str, inputs: tuple[str, ...] = (), params: tuple[str, ...] = ()) -> Stage:
        """A variant of the stage that reads more."""
        return dataclasses.replace(
            self, variant=variant, inputs=(*self.inputs, *inputs), params=(*params, *self.params)
        )


WILDCARDS = {
    "dataset": "a data set of any study",
    "samples": "images of the sample sets that are held against a half",
    "model": "a model of its study",
    "seed": "training seed",
    "step": "optimiser updates of the checkpoint",
    "sampler": "name of a sampler, such as ancestral-100 or ddim0-quad20",
    "study": "a study: digits in the root, or a folder of studies/",
    "table": "table of the study",
    "figure": "figure of the study",
}
"""The names that fill templates, and what they are."""

SETTINGS = "datasets.{dataset}"
DATA = "data/{dataset}"
IMAGES = f"{DATA}/images.npy"
REFERENCE = "reference/{dataset}"
NEIGHBOURS = "neighbours/{dataset}"
HALVES = "halves/{dataset}/{samples}"
RUN = "runs/{dataset}/{model}/s{seed}"
CURVE = f"logs/{RUN}"
"""Folder of a run's loss curve while it trains, and of what its sinks write."""
MEASURED = "logs/metrics/{dataset}/{model}/s{seed}"
"""Folder of what sinks write of a run's metrics."""
START = "runs/{start_dataset}/{start_model}/s{start_seed}/{start_step}"
"""The checkpoint that a run is trained on from."""
SAMPLES = "samples/{dataset}/{model}/s{seed}/{step}/{sampler}"
_CHECKPOINT = (f"{RUN}/{{step}}/ema.safetensors", f"{RUN}/{{step}}/{RECIPE}")
_OF_RUN = ("dataset", "model", "seed", "step")
_FAMILY = f"{SETTINGS}.families.{{family}}"
_FLOAT32 = (f"{SETTINGS}.compute.device", f"{SETTINGS}.compute.threads")
"""What feature networks compute on: their precision is float32 whatever `compute.precision` says."""

_NETWORKS = ("ipdiff.spec.FAMILIES", "ipdiff.diffusion.TARGETS")

STAGES = {
    stage.verb: stage
    for stage in (
        Stage(
            verb="prepare",
            module="ipdiff.data.prepare",
            help="read a raw data set into images.npy and labels.npy",
            directory=DATA,
            files=("images.npy", "labels.npy"),
            wildcards=("dataset",),
            params=(f"{SETTINGS}.source",),
            runs=("ipdiff.data.spec.READERS",),
            card=True,
        ),
        Stage(
            verb="classifier",
            module="ipdiff.metrics.classifier",
            help="train the small CNN whose activations FID compares",
            directory="features/{dataset}",
            files=("classifier.safetensors", "accuracy.json"),
            wildcards=("dataset",),
            inputs=(IMAGES, f"{DATA}/labels.npy"),
            params=(f"{SETTINGS}.classifier", *_FLOAT32),
            network=True,
            stored=True,
        ),
        Stage(
            verb="reference",
            module="ipdiff.metrics.reference",
            help="statistics of the real images",
            directory=REFERENCE,
            files=("stats.npz",),
            wildcards=("dataset",),
            inputs=(IMAGES,),
            params=_FLOAT32,
            runs=("ipdiff.metrics.spec.FEATURES",),
            shared=True,
            network=True,
            stored=True,
        ),
        Stage(
            verb="neighbours",
            module="ipdiff.metrics.neighbours",
            help="features of the real images and their distances to each other, for precision and recall",
            directory=NEIGHBOURS,
            files=("features.npy", "radii.npy"),
            wildcards=("dataset",),
            inputs=(IMAGES,),
            params=_FLOAT32,
            runs=("ipdiff.metrics.spec.FEATURES",),
            shared=True,
            network=True,
        ),
        Stage(
            verb="halves",
            module="ipdiff.metrics.halves",
            help="how far halves of the real images are from each other",
            directory=HALVES,
            files=("halves.npz",),
            wildcards=("dataset", "samples"),
            inputs=(IMAGES,),
            params=_FLOAT32,
            runs=("ipdiff.metrics.spec.FEATURES",),
            shared=True,
            network=True,
        ),
        Stage(
            verb="train",
            module="ipdiff.training.segment",
            help="train one segment of a run and publish its checkpoint",
            directory=f"{RUN}/{{step}}",
            files=("ema.safetensors", "loss.csv"),
            wildcards=_OF_RUN,
            inputs=(IMAGES,),
            params=(
                "models.{model}",
                *(f"{_FAMILY}.{part}" for part in ("network", "diffusion", "training")),
                f"{SETTINGS}.compute",
            ),
            runs=_NETWORKS,
            shared=True,
            network=True,
            card=True,
            stored=True,
        ),
        Stage(
            verb="resume",
            module="ipdiff.training.resume",
            help="publish a run's full train state",
            directory="states/{dataset}/{model}/s{seed}/{step}",
            files=("state.safetensors",),
            wildcards=_OF_RUN,
            inputs=(IMAGES, f"{RUN}/{{step}}/{RECIPE}"),
            runs=_NETWORKS,
            decided_by=("family", "target"),
            network=True,
        ),
        Stage(
            verb="sample",
            module="ipdiff.sample_sets.sample",
            help="draw a sample set from a checkpoint",
            directory=SAMPLES,
            files=("samples.npz",),
            wildcards=(*_OF_RUN, "sampler"),
            inputs=_CHECKPOINT,
            params=(
                f"{SETTINGS}.sampling",
                *(f"{_FAMILY}.{part}" for part in ("clip_denoised", "quantise")),
                f"{SETTINGS}.compute",
            ),
            runs=("ipdiff.samplers.CHAINS", *_NETWORKS),
            decided_by=("kind",),
            shared=True,
            network=True,
            card=True,
        ),
        Stage(
            verb="evaluate",
            module="ipdiff.metrics.evaluate",
            help="FID, sFID and the other metrics of a sample set, or of any npz of images",
            directory="metrics/{dataset}/{model}/s{seed}/{step}/{sampler}",
            files=("metrics.json",),
            wildcards=(*_OF_RUN, "sampler"),
            inputs=(f"{SAMPLES}/samples.npz", f"{SAMPLES}/{RECIPE}", f"{REFERENCE}/stats.npz", f"{HALVES}/halves.npz"),
            params=_FLOAT32,
            runs=("ipdiff.metrics.spec.FEATURES", "ipdiff.metrics.spec.METRICS"),
            shared=True,
            network=True,
            kind="result",
            card=True,
        ),
        Stage(
            verb="analyse",
            module="ipdiff.sample_sets.prediction_error",
            help="statistics of a checkpoint's prediction error",
            directory="analysis/{dataset}/{model}/s{seed}/{step}",
            files=("errors.csv", "histogram.csv", "analysis.json"),
            stored=True,
            wildcards=_OF_RUN,
            inputs=(*_CHECKPOINT, IMAGES),
            params=(f"{SETTINGS}.analysis", f"{SETTINGS}.compute"),
            runs=_NETWORKS,
            decided_by=("family", "target"),
            network=True,
        ),
        Stage(
            verb="drift",
            module="ipdiff.sample_sets.drift",
            help="how far a sampling chain strays from diffused images",
            directory="drift/{dataset}/{model}/s{seed}/{step}/{sampler}",
            files=("drift.csv",),
            stored=True,
            wildcards=(*_OF_RUN, "sampler"),
            inputs=(*_CHECKPOINT, IMAGES),
            params=(
                *(f"{SETTINGS}.{part}" for part in ("analysis", "sampling")),
                f"{_FAMILY}.clip_denoised",
                f"{SETTINGS}.compute",
            ),
            runs=("ipdiff.samplers.CHAINS", *_NETWORKS),
            decided_by=("kind",),
            network=True,
        ),
        Stage(
            verb="table",
            module="ipdiff.report.tables.table",
            help="make one table of a study",
            directory="tables/{study}/{table}",
            files=("table.csv", "table.md", "table.tex"),
            wildcards=("study", "table"),
            params=("tables.{table}",),
            kind="result",
            published=("table.md", "table.csv"),
        ),
        Stage(
            verb="summary",
            module="ipdiff.report.tables.summary",
            help="the numbers of a study that experiments are compared by",
            directory="tables/{study}",
            files=("summary.json",),
            wildcards=("study",),
            metrics=("summary.json",),
            kind="result",
        ),
        Stage(
            verb="figure",
            module="ipdiff.report.figures.figure",
            help="make one figure of a study",
            directory="figures/{study}/{figure}",
            files=("figure.png", "figure.csv"),
            wildcards=("study", "figure"),
            params=("figures.{figure}",),
            kind="result",
            published=("figure.png", "figure.csv"),
        ),
        Stage(
            verb="report",
            module="ipdiff.report.pages.report",
            help="make a study's page",
            directory="report/{study}",
            files=("index.html", "cards.html"),
            wildcards=("study",),
            params=("title", "seeds", "tables", "models"),
            kind="result",
        ),
    )
}

IMPORT = Stage(
    verb="import",
    module="",
    help="",
    directory=f"{RUN}/{{step}}",
    files=("ema.safetensors",),
    wildcards=_OF_RUN,
    card=True,
)
"""A checkpoint that came from elsewhere, where a trained one would be. A user makes it, no engine does."""
