"""What a study's params.yaml holds: its data sets and models, beside what the report shows of it."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from ipdiff.data.spec import Download, Quantise, Source
from ipdiff.device.spec import Compute
from ipdiff.metrics.spec import (
    FEATURES,
    METRICS,
    Classifier,
    FeatureName,
    Inception,
    KernelDistance,
    Metric,
    Reference,
    TorchScript,
)
from ipdiff.parameters import FORBID, Range, Record, check
from ipdiff.report.spec import Study
from ipdiff.sample_sets.spec import Analysis, Sampler, Sampling
from ipdiff.spec import (
    FAMILIES,
    Decay,
    Diffusion,
    Family,
    FamilyKind,
    Network,
    Objective,
    Strength,
    Target,
    Training,
)
from ipdiff.work.spec import Work


@dataclass(frozen=True)
class FamilySettings(Record):
    """How the models of a network family are built and trained on a data set."""

    network: Network
    diffusion: Diffusion
    training: Training
    clip_denoised: Annotated[bool, "clamp the predicted x0 to [-1, 1] while sampling; the DDIM code does not"]
    quantise: Annotated[
        Quantise, "how samples become whole grey levels; guided-diffusion truncates, the DDIM code rounds"
    ]


def _settings(name: str, kind: FamilyKind) -> type[FamilySettings]:
    """The record of a family's settings, with the architecture of its networks."""
    text = f"How models of the family {name} are built and trained on a data set."
    namespace = {"__doc__": text, "__pydantic_config__": FORBID}
    fields = [("network", kind.network)]
    return make_dataclass(f"{name.upper()}Family", fields, bases=(FamilySettings,), frozen=True, namespace=namespace)


if TYPE_CHECKING:
    Families = Record
else:
    Families = make_dataclass(
        "Families",
        [(name, _settings(name, kind) | None, None) for name, kind in FAMILIES.items()],
        bases=(Record,),
        frozen=True,
        namespace={
            "__doc__": "The network families a data set can be trained with.",
            "__pydantic_config__": FORBID,
        },
    )


@dataclass(frozen=True)
class Strengths(Record):
    """Strengths of the regularisers, chosen for each data set; models ask for them with the word `dataset`."""

    __pydantic_config__: ClassVar = FORBID
    gamma: Annotated[Strength, "input perturbation, Eq. 6: a constant, values over t, or a ramp", Range(0)] = 0.1
    gp_weight: Annotated[
        float,
        "lambda_GP of the gradient penalty, reduced like the squared error: acts as extra input noise of this variance "
        "(the paper's value is not published)",
        Range(0),
    ] = 3e-3
    weight_decay: Annotated[float, "lambda_WD (the paper's value is not published)", Range(0)] = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.gamma != [], "gamma is an empty list; use 0 or more, or a list of such values")


@dataclass(frozen=True)
class Dataset(Record):
    """One data set: images, features, networks, training, sampling."""

    __pydantic_config__: ClassVar = FORBID
    source: Source
    families: Families
    sampling: Sampling
    checkpoints: Annotated[list[int], "training steps that publish a checkpoint, ascending", Range(1)]
    final_step: Annotated[dict[str, int], "the checkpoint a table means, by model; `default` for the others", Range(1)]
    imports: Annotated[dict[str, str], "of imported models: which file to get and where, for people"] = field(
        default_factory=dict
    )
    strengths: Strengths = field(default_factory=Strengths)
    features: Annotated[FeatureName, "the network whose activations are compared; the paper's is inception"] = (
        "classifier"
    )
    metrics: Annotated[list[Metric], "measured besides those that always are; docs/metrics.md says what each needs"] = (
        field(default_factory=list)
    )
    classifier: Classifier = field(default_factory=Classifier)
    inception: Inception = field(default_factory=Inception)
    torchscript: Annotated[TorchScript | None, "needed by `features: torchscript`"] = None
    kid: Annotated[KernelDistance, "written out where `metrics` names kid"] = field(default_factory=KernelDistance)
    reference: Reference = field(default_factory=Reference)
    compute: Compute = field(default_factory=Compute)
    analysis: Annotated[Analysis | None, "prediction-error statistics; needed by figures of kind errors and drift"] = (
        None
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.checkpoints
        check(
            bool(steps) and steps == sorted(set(steps)),
            f"checkpoints {steps} must be one or more, ascending and without repeats",
        )
        known, asked = self.source.expected_images, self.reference.images
        check(
            known is None or asked is None or asked <= known,
            f"reference.images is {asked}, more than the {known} images",
        )
        check(
            self.features != "classifier" or self.source.image_size >= 2,
            "features is classifier, which needs source.image_size of 2 or more",
        )
        check(
            FEATURES[self.features].file != "named" or self.feature_settings is not None,
            f"features is {self.features}, which needs the key {self.features}: path, sha256 and how images are made "
            "ready for it",
        )
        check("default" in self.final_step, "final_step needs a `default`")
        last = self.final_step["default"]
        check(last in steps, f"final_step.default is {last}, not one of checkpoints {steps}")
        check(
            self.sampling.precision != "float16" or self.compute.device == "cuda",
            f"sampling.precision is float16 with device {self.compute.device}; float16 needs cuda, use bfloat16 or "
            "float32",
        )

    @property
    def feature_settings(self) -> Any:
        """Settings of its feature network: the key of that name, or None."""
        return getattr(self, self.features, None)

    @property
    def metric_settings(self) -> dict[str, Any]:
        """Settings of the metrics that it names, by their keys."""
        keys = dict.fromkeys(METRICS[name].settings for name in self.metrics)
        return {key: getattr(self, key) for key in keys if key}

    @property
    def sampling_compute(self) -> Compute:
        """What samples are drawn on: `compute`, in the precision of `sampling`."""
        return replace(self.compute, precision=self.sampling.precision or self.compute.precision)

    def sampled_on(self, sampler: Sampler) -> Compute:
        """What a sampler's set is drawn on: `sampling_compute`, in the precision of its name."""
        return replace(self.sampling_compute, precision=sampler.precision or self.sampling_compute.precision)

    def last_step(self, model: str) -> int:
        """The training step at which tables read `model`."""
        return self.final_step.get(model, self.final_step["default"])


@dataclass(frozen=True)
class Start(Record):
    """The checkpoint that a run is trained on from: its EMA weights; steps, optimiser and EMA begin anew."""

    __pydantic_config__: ClassVar = FORBID
    model: Annotated[str, "a model of this study: a trained one's run of the same seed, or an imported one's first"]
    dataset: Annotated[str | None, "a data set of this study with an equal network; empty: the run's own"] = None
    step: Annotated[int | None, "its training step; empty: the data set's final_step for it", Range(1)] = None


@dataclass(frozen=True)
class Model(Record):
    """A training objective on a network family. The word `dataset` takes the data set's own strength."""

    __pydantic_config__: ClassVar = FORBID
    family: Annotated[Family, "adm (guided-diffusion's network and training) or ddpm (the DDIM code base's)"]
    gamma: Annotated[Strength | Literal["dataset"], "input perturbation (official flag --input_pertub)", Range(0)] = 0.0
    target: Annotated[Target, "what the network is trained to say: eps (Alg. 3), eps' (DDPM-y) or v"] = "eps"
    gp_weight: Annotated[float | Literal["dataset"], "lambda_GP of the gradient penalty", Range(0)] = 0.0
    weight_decay: Annotated[float | Literal["dataset"], "lambda_WD, handed to the optimiser", Range(0)] = 0.0
    decay: Annotated[
        Decay,
        "of the weights beside the gradient (AdamW, the official code), or coupled: weight_decay times the weights is "
        "added to the gradient that Adam sees, after clipping, as an L2 term of the loss would be",
    ] = "decoupled"
    min_snr: Annotated[
        float | None,
        "k of min-SNR weighting (5 in its paper): the squared error counts min(SNR, k) / SNR times for eps, "
        "min(SNR, k) / (SNR + 1) times for v; empty: once",
        Range(above=0),
    ] = None
    start: Annotated[Start | None, "the checkpoint that it is trained on from; empty: random weights"] = None
    imported: Annotated[bool, "its checkpoints come from `ipdiff import`; nothing trains it"] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(not (self.imported and self.start), "start is set, but the model is imported: nothing trains it")
        check(self.gamma != [], "gamma is an empty list; use 0 or more, or a list of such values")
        check(
            self.gp_weight == 0 or self.gamma == 0,
            f"gp_weight is {self.gp_weight} with a gamma; the penalty is defined without perturbation, so set one of "
            "the two to 0",
        )

    @property
    def borrowed(self) -> list[str]:
        """Names of the strengths taken from the data set."""
        return [key for key in ("gamma", "gp_weight", "weight_decay") if getattr(self, key) == "dataset"]

    def objective(self, strengths: Strengths) -> Objective:
        """The objective on a data set: every word `dataset` replaced by the data set's strength."""
        values = {
            key: getattr(strengths if key in self.borrowed else self, key)
            for key in ("gamma", "gp_weight", "weight_decay")
        }
        return Objective(target=self.target, decay=self.decay, min_snr=self.min_snr, **values)


@dataclass(frozen=True, kw_only=True)
class StudyParams(Study):
    """One study: its tables and figures, and the data sets and models that they show."""

    __pydantic_config__: ClassVar = FORBID
    datasets: Annotated[dict[str, Dataset], "its data sets by name; a data set belongs to one study"]
    models: Annotated[dict[str, Model], "training objectives by name"]
    work: Annotated[Work, "how work is done and saved meanwhile; decides no artifact"] = field(default_factory=Work)
    downloads: Annotated[
        dict[str, Download],
        "how published files are got, by file name; they lie in raw/ or the directory that IPDIFF_RAW names",
    ] = field(default_factory=dict)
