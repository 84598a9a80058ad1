"""Plain parameter records: what each stage is told, and nothing else.

Every record is a frozen standard-library dataclass, so the compute core runs where only torch and numpy
are installed. `ipdiff.config` reads params.yaml into these same classes (and refuses unknown keys); the
text beside each field is its documentation in config/README.md.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

FORBID: dict[str, Any] = {"extra": "forbid"}
"""Read by pydantic when it meets one of these classes: an unknown key is an error."""

Strength = float | list[float]
"""A regulariser's strength: a constant, or values at equally spaced t from 0 to T-1 (linear in between)."""

Family = Literal["adm", "ddpm"]


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_gamma(gamma: Strength | str) -> None:
    values = gamma if isinstance(gamma, list) else [gamma]
    _check(
        bool(values) and all(isinstance(value, str) or value >= 0 for value in values),
        f"gamma is {gamma}; use 0 or more, or a list of such values",
    )


@dataclass(frozen=True)
class Source:
    """Where a data set comes from and what its images are."""

    __pydantic_config__: ClassVar = FORBID
    reader: Annotated[Literal["digits", "folder"], "which reader of `ipdiff.data` opens the raw data"]
    image_size: Annotated[int, "height and width in pixels"]
    channels: Annotated[int, "1 (grey) or 3 (RGB)"]
    raw: Annotated[str | None, "path of the raw archive or directory; none for embedded data"] = None
    limit: Annotated[int | None, "use only the first so many images; all if empty"] = None

    def __post_init__(self) -> None:
        _check(self.channels in (1, 3), f"channels is {self.channels}; use 1 or 3")
        _check(self.limit is None or self.limit > 1, f"limit is {self.limit}; use 2 or more, or leave it out")
        _check(
            (self.raw is None) == (self.reader == "digits"),
            f"reader {self.reader} needs "
            + ("no `raw`" if self.reader == "digits" else "`raw`: the path of its archive or directory"),
        )


@dataclass(frozen=True)
class Classifier:
    """A small CNN trained on the labelled data, whose activations are the features of FID and sFID."""

    __pydantic_config__: ClassVar = FORBID
    width: Annotated[int, "channels of the first convolution; the second has twice as many"] = 32
    features: Annotated[int, "width of the penultimate layer: the dimension of the FID features"] = 64
    spatial_channels: Annotated[int, "channels of the second convolution's map that sFID uses"] = 7
    steps: Annotated[int, "optimiser updates"] = 300
    batch_size: Annotated[int, "images an update"] = 128
    lr: Annotated[float, "AdamW learning rate, decayed to 0 by a cosine"] = 2e-3
    seed: Annotated[int, "seed of its initialisation and data order"] = 0
    holdout: Annotated[float, "share of the images kept out to measure its accuracy, 0..0.5"] = 0.2

    def __post_init__(self) -> None:
        _check(self.steps >= 1, f"steps is {self.steps}; use 1 or more")
        _check(self.batch_size >= 1, f"batch_size is {self.batch_size}; use 1 or more")
        _check(0 <= self.holdout <= 0.5, f"holdout is {self.holdout}; use 0..0.5")


@dataclass(frozen=True)
class Compute:
    """What the numbers are computed on; part of every artifact computed by a network."""

    __pydantic_config__: ClassVar = FORBID
    device: Annotated[Literal["cpu", "cuda"], "cpu or cuda"] = "cpu"
    threads: Annotated[int, "intra-op threads on the CPU; sums differ in the last bit between 1 and 2"] = 1

    def __post_init__(self) -> None:
        _check(self.threads >= 1, f"threads is {self.threads}; use 1 or more")


@dataclass(frozen=True)
class ADMNetwork:
    """The ADM U-Net's architecture (guided-diffusion's UNetModel)."""

    __pydantic_config__: ClassVar = FORBID
    model_channels: Annotated[int, "base width"]
    channel_mult: Annotated[list[int], "width of each level as a multiple of the base"]
    num_res_blocks: Annotated[int, "residual blocks a level"]
    attention_resolutions: Annotated[list[int], "image sizes at which blocks carry attention"]
    num_heads: Annotated[int, "attention heads, where num_head_channels is empty"] = 4
    num_head_channels: Annotated[int | None, "channels an attention head"] = None
    dropout: Annotated[float, "dropout before the last convolution of a residual block"] = 0.0
    use_scale_shift_norm: Annotated[bool, "time embedding scales and shifts the second norm"] = True
    resblock_updown: Annotated[bool, "resample inside residual blocks, not by strided convolutions"] = True
    new_attention_order: Annotated[bool, "split q, k, v before splitting heads"] = True
    norm_groups: Annotated[int, "groups of every group norm; 32 in all published nets"] = 32


@dataclass(frozen=True)
class DDPMNetwork:
    """The DDIM code base's U-Net."""

    __pydantic_config__: ClassVar = FORBID
    model_channels: Annotated[int, "base width"]
    channel_mult: Annotated[list[int], "width of each level as a multiple of the base"]
    num_res_blocks: Annotated[int, "residual blocks a level"]
    attention_resolutions: Annotated[list[int], "image sizes at which blocks carry attention"]
    dropout: Annotated[float, "dropout inside residual blocks"] = 0.1
    norm_groups: Annotated[int, "groups of every group norm; 32 in all published nets"] = 32


@dataclass(frozen=True)
class Diffusion:
    """The noise process and the reverse process' variance."""

    __pydantic_config__: ClassVar = FORBID
    schedule: Annotated[Literal["cosine", "linear"], "beta schedule"]
    T: Annotated[int, "length of the chain trained on"]
    learn_sigma: Annotated[bool, "the network also outputs the interpolation of the log variance"] = False
    fixed_variance: Annotated[Literal["small", "large"], "beta tilde or beta, where sigma is not learned"] = "small"

    def __post_init__(self) -> None:
        _check(self.T >= 2, f"T is {self.T}; the chain needs 2 steps or more")


@dataclass(frozen=True)
class Training:
    """Optimiser, batches and the choice of timesteps."""

    __pydantic_config__: ClassVar = FORBID
    batch_size: Annotated[int, "images an optimiser update (global)"]
    lr: Annotated[float, "learning rate"]
    micro_batch: Annotated[int | None, "images a backward pass; part of the artifact; default batch_size"] = None
    optimizer: Annotated[Literal["adamw", "adam"], "decoupled or coupled weight decay"] = "adamw"
    lr_warmup: Annotated[int, "updates of linear warm-up from 0"] = 0
    lr_decay: Annotated[Literal["none", "linear", "cosine"], "how the rate falls to 0 at lr_decay_steps"] = "none"
    lr_decay_steps: Annotated[int, "update at which the decay has reached 0"] = 0
    grad_clip: Annotated[float | None, "clip the global gradient norm"] = None
    ema_decay: Annotated[float, "decay of the moving average of the weights"] = 0.9999
    ema_warmup: Annotated[bool, "cap the decay at (1 + step) / (10 + step)"] = False
    timesteps: Annotated[Literal["uniform", "antithetic", "loss-second-moment"], "how t is drawn for each image"] = (
        "uniform"
    )
    loss_reduction: Annotated[Literal["mean", "sum"], "of the squared error over C, H and W"] = "mean"
    flip: Annotated[bool, "mirror each image with probability 1/2"] = True

    def __post_init__(self) -> None:
        _check(self.batch_size >= 1, f"batch_size is {self.batch_size}; use 1 or more")
        size = self.micro_batch or self.batch_size
        _check(self.batch_size % size == 0, f"micro_batch {size} does not divide batch_size {self.batch_size}")
        _check(self.lr_decay == "none" or self.lr_decay_steps > 0, "lr_decay needs lr_decay_steps > 0")


@dataclass(frozen=True)
class ADMFamily:
    """How the ADM models (adm, adm-ip, adm-gp, adm-wd, ddpm-y) are built and trained on a data set."""

    __pydantic_config__: ClassVar = FORBID
    network: ADMNetwork
    diffusion: Diffusion
    training: Training
    clip_denoised: Annotated[bool, "clamp the predicted x0 to [-1, 1] while sampling"] = True


@dataclass(frozen=True)
class DDPMFamily:
    """How the DDIM code base's models (ddim, ddim-ip) are built and trained on a data set."""

    __pydantic_config__: ClassVar = FORBID
    network: DDPMNetwork
    diffusion: Diffusion
    training: Training
    clip_denoised: Annotated[bool, "clamp the predicted x0 to [-1, 1] while sampling"] = False


@dataclass(frozen=True)
class Families:
    """The network families a data set can be trained with."""

    __pydantic_config__: ClassVar = FORBID
    adm: ADMFamily | None = None
    ddpm: DDPMFamily | None = None


@dataclass(frozen=True)
class Strengths:
    """Strengths of the regularisers, chosen for each data set; models ask for them with the word `dataset`."""

    __pydantic_config__: ClassVar = FORBID
    gamma: Annotated[Strength, "input perturbation, Eq. 6: a constant, or values over t"] = 0.1
    gp_weight: Annotated[float, "lambda_GP of the gradient penalty (the paper's value is not published)"] = 1e-4
    weight_decay: Annotated[float, "lambda_WD (the paper's value is not published)"] = 1e-2

    def __post_init__(self) -> None:
        _check_gamma(self.gamma)


@dataclass(frozen=True)
class Sampling:
    """A sample set."""

    __pydantic_config__: ClassVar = FORBID
    num_samples: Annotated[int, "images in a set"]
    batch_size: Annotated[int, "images a network call; part of the artifact"]
    exposure_samples: Annotated[int | None, "images of an exposure-bias set; default num_samples"] = None

    def __post_init__(self) -> None:
        for name in ("num_samples", "batch_size", "exposure_samples"):
            value = getattr(self, name)
            least = 1 if name == "batch_size" else 2
            _check(value is None or value >= least, f"{name} is {value}; use {least} or more")


@dataclass(frozen=True)
class Dataset:
    """One data set: images, features, networks, training, sampling."""

    __pydantic_config__: ClassVar = FORBID
    source: Source
    families: Families
    sampling: Sampling
    checkpoints: Annotated[list[int], "training steps that publish a checkpoint, ascending"]
    final_step: Annotated[dict[str, int], "the checkpoint a table means, by model; `default` for the others"]
    strengths: Strengths = field(default_factory=Strengths)
    features: Annotated[Literal["classifier"], "the network whose activations FID compares"] = "classifier"
    classifier: Classifier = field(default_factory=Classifier)
    compute: Compute = field(default_factory=Compute)

    def __post_init__(self) -> None:
        steps = self.checkpoints
        _check(
            bool(steps) and steps == sorted(set(steps)) and steps[0] > 0,
            f"checkpoints {steps} must be positive, ascending and without repeats",
        )
        _check("default" in self.final_step, "final_step needs a `default`")
        for name, step in self.final_step.items():
            _check(step in steps, f"final_step.{name} is {step}, not one of checkpoints {steps}")

    def last_step(self, model: str) -> int:
        """The training step at which tables read `model`."""
        return self.final_step.get(model, self.final_step["default"])


@dataclass(frozen=True)
class Model:
    """A training objective on a network family. The word `dataset` takes the data set's own strength."""

    __pydantic_config__: ClassVar = FORBID
    family: Annotated[Family, "adm (guided-diffusion's network and training) or ddpm (the DDIM code base's)"]
    gamma: Annotated[Strength | Literal["dataset"], "input perturbation (official flag --input_pertub)"] = 0.0
    target: Annotated[Literal["eps", "eps_prime"], "eps (Alg. 3) or eps' (DDPM-y)"] = "eps"
    gp_weight: Annotated[float | Literal["dataset"], "lambda_GP of the Jacobian penalty"] = 0.0
    weight_decay: Annotated[float | Literal["dataset"], "lambda_WD, handed to the optimiser"] = 0.0

    def __post_init__(self) -> None:
        _check_gamma(self.gamma)
        _check(len(self.borrowed) <= 1, f"takes {self.borrowed} from the data set; one at most")

    @property
    def borrowed(self) -> list[str]:
        """Names of the strengths taken from the data set."""
        return [key for key in ("gamma", "gp_weight", "weight_decay") if getattr(self, key) == "dataset"]


@dataclass(frozen=True)
class Objective:
    """A model's objective with every strength resolved."""

    gamma: Strength
    target: Literal["eps", "eps_prime"]
    gp_weight: float
    weight_decay: float

    @staticmethod
    def resolve(model: Model, strengths: Strengths) -> Objective:
        """Replace the word `dataset` by the data set's strength."""
        values = {
            key: getattr(strengths if key in model.borrowed else model, key)
            for key in ("gamma", "gp_weight", "weight_decay")
        }
        return Objective(target=model.target, **values)


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides the bytes of a training run: a run is this, a data set and a step."""

    family: Family
    network: ADMNetwork | DDPMNetwork
    diffusion: Diffusion
    training: Training
    objective: Objective
    compute: Compute
    image_size: int
    channels: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for a recipe."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> RunSpec:
        """The inverse of `to_json`: a checkpoint's recipe tells how to build its network."""
        network = {"adm": ADMNetwork, "ddpm": DDPMNetwork}[data["family"]]
        parts = {
            "network": network(**data["network"]),
            "diffusion": Diffusion(**data["diffusion"]),
            "training": Training(**data["training"]),
            "objective": Objective(**data["objective"]),
            "compute": Compute(**data["compute"]),
        }
        return RunSpec(**{**data, **parts})


@dataclass(frozen=True)
class Work:
    """How work is saved while it is done. Changes no byte of any artifact."""

    __pydantic_config__: ClassVar = FORBID
    save_every: Annotated[int, "optimiser updates between two saves of a train state in work/"] = 1000
    states_kept: Annotated[int, "newest train states of a run that are kept in work/"] = 2

    def __post_init__(self) -> None:
        _check(self.save_every >= 1, f"save_every is {self.save_every}; use 1 or more")
        _check(self.states_kept >= 1, f"states_kept is {self.states_kept}; use 1 or more")


SAMPLER = re.compile(r"(ancestral)-(\d+)|ddim(\d+(?:\.\d+)?)-((?:uniform|quad|ddim)?\d+)|(exposure)-(\d+)")


@dataclass(frozen=True)
class Sampler:
    """A sampler as it stands in paths: `ancestral-100`, `ddim0.5-quad20`, `exposure-300`.

    ancestral-N: N respaced steps of guided-diffusion's rule. ddim{eta}-{grid}: DDIM with that eta over
    `N` (guided-diffusion's spacing), `ddimN`, `uniformN` or `quadN`. exposure-t: real images diffused to
    t steps, then t reverse steps of the full chain (Table 1).
    """

    kind: Literal["ancestral", "ddim", "exposure"]
    steps: int
    spacing: str
    eta: float = 1.0

    @staticmethod
    def parse(text: str) -> Sampler:
        """Read a sampler's name; ValueError says what a name looks like."""
        match = SAMPLER.fullmatch(text)
        if match is None:
            raise ValueError(
                f"sampler '{text}' is unknown; use ancestral-N, ddimETA-N, ddimETA-uniformN, "
                "ddimETA-quadN or exposure-t, e.g. ancestral-100 or ddim0.5-quad20"
            )
        if match[1]:
            return Sampler("ancestral", int(match[2]), match[2])
        if match[3]:
            if float(match[3]) > 1:
                raise ValueError(f"sampler '{text}' has eta = {match[3]}; use 0..1")
            return Sampler("ddim", int(match[4].lstrip("adfimnoqru")), match[4], float(match[3]))
        return Sampler("exposure", int(match[6]), match[6])

    def label(self) -> str:
        """How a table names it: T' and, for DDIM, eta and the grid."""
        if self.kind == "exposure":
            return f"{self.steps} reverse steps"
        if self.kind == "ancestral":
            return f"T' = {self.steps}"
        grid = self.spacing.rstrip("0123456789")
        return f"eta = {self.eta:g}, T' = {self.steps}" + (f" ({grid})" if grid else "")


METRICS = ("fid", "sfid", "pixel_fd")
Metric = Literal["fid", "sfid", "pixel_fd"]
Axis = Literal["dataset", "model", "step", "sampler", "metric"]


@dataclass(frozen=True)
class Point:
    """One measured point: a checkpoint of a model and a sampler; every seed of the model is measured there."""

    __pydantic_config__: ClassVar = FORBID
    dataset: str
    model: str
    sampler: str
    step: Annotated[int | None, "training step; the data set's final_step for the model if empty"] = None


@dataclass(frozen=True)
class Table:
    """A table: a product of data sets, models, samplers and steps, or an explicit list of points."""

    __pydantic_config__: ClassVar = FORBID
    title: Annotated[str, "what the table shows"]
    metrics: Annotated[list[Metric], "fid, sfid, pixel_fd"]
    rows: Annotated[list[Axis], "axes that make the rows"]
    columns: Annotated[list[Axis], "axes that make the columns"]
    datasets: Annotated[list[str], "data sets of the product"] = field(default_factory=list)
    models: Annotated[list[str], "models of the product"] = field(default_factory=list)
    samplers: Annotated[list[str], "samplers of the product"] = field(default_factory=list)
    steps: Annotated[list[int], "training steps of the product; each model's final step if empty"] = field(
        default_factory=list
    )
    points: Annotated[list[Point], "explicit points instead of a product"] = field(default_factory=list)
    compare: Annotated[dict[str, str], "model: baseline; adds difference rows, paired by seed"] = field(
        default_factory=dict
    )
    paper: Annotated[str | None, "key of ipdiff/paper_values.yaml whose figures stand beside ours"] = None
    note: Annotated[str, "a sentence under the table"] = ""


@dataclass(frozen=True)
class Figure:
    """Lines over training steps or over T', or a grid of sample images."""

    __pydantic_config__: ClassVar = FORBID
    kind: Annotated[Literal["lines", "samples"], "curves of a metric, or images"]
    title: Annotated[str, "what the figure shows"]
    datasets: Annotated[list[str], "data sets: a panel each"]
    models: Annotated[list[str], "models: a line, or a block of images each"]
    samplers: Annotated[list[str], "samplers; over T' they make the x axis"]
    steps: Annotated[list[int], "training steps; each model's final step if empty"] = field(default_factory=list)
    metric: Annotated[Metric, "what the lines show"] = "fid"
    x: Annotated[Literal["step", "sample_steps"], "x axis of lines"] = "sample_steps"
    images: Annotated[int, "images a row of a sample grid"] = 16
    note: Annotated[str, "a sentence under the figure"] = ""


@dataclass(frozen=True)
class Study:
    """A named set of tables and figures over its own data sets."""

    __pydantic_config__: ClassVar = FORBID
    title: Annotated[str, "headline of the report"]
    datasets: Annotated[list[str], "its data sets; a data set belongs to one study only"]
    seeds: Annotated[dict[str, list[int]], "training seeds by model; `default` for the others"]
    tables: Annotated[dict[str, Table], "tables by name"]
    figures: Annotated[dict[str, Figure], "figures by name"] = field(default_factory=dict)
    note: Annotated[str, "opening paragraph of the report"] = ""

    def __post_init__(self) -> None:
        _check("default" in self.seeds, "seeds needs a `default`")

    def seeds_of(self, model: str) -> list[int]:
        """Training seeds of a model in this study."""
        return self.seeds.get(model, self.seeds["default"])
