"""Plain parameter records: what each stage is told, and nothing else.

Every record is a frozen standard-library dataclass, so the compute core runs where only torch and numpy
are installed. `ipdiff.config` reads params.yaml into these same classes (and refuses unknown keys); the
text beside each field is its documentation in config/README.md.
"""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

FORBID: dict[str, Any] = {"extra": "forbid"}
"""Read by pydantic when it meets one of these classes: an unknown key is an error."""

Strength = float | list[float]
"""A regulariser's strength: a constant, or values at equally spaced t from 0 to T-1 (linear in between)."""

Family = Literal["adm", "ddpm"]
Precision = Literal["float32", "bfloat16", "float16"]
Decay = Literal["decoupled", "coupled"]
Quantise = Literal["truncate", "round"]


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class Range:
    """The numbers that a field may hold, finite ones always; it stands in the field's annotation."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    values: tuple[int, ...] = ()

    def holds(self, value: float) -> bool:
        """Whether a number is within; whole numbers without an upper end must fit into 64 bits."""
        if isinstance(value, float) and not math.isfinite(value):
            return False
        if isinstance(value, int) and self.most is None and value >= 2**63:
            return False
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (not self.values or value in self.values)
        )

    def text(self) -> str:
        """In words, e.g. `1 or more`, `0..1`, `more than 0 and less than 1`."""
        if self.values:
            return " or ".join(map(str, self.values))
        if self.least is not None and self.most is not None:
            return f"{self.least}..{'2**64-1' if self.most == 2**64 - 1 else self.most}"
        ends = [
            text.format(end)
            for text, end in (
                ("{} or more", self.least),
                ("more than {}", self.above),
                ("{} or less", self.most),
                ("less than {}", self.below),
            )
            if end is not None
        ]
        return " and ".join(ends)


SEED = Range(0, 2**64 - 1)


class Record:
    """A record whose numbers are all held against the ranges that its annotations state."""

    def __post_init__(self) -> None:
        """Raise ValueError for the first number out of its range."""
        for name, (allowed, optional) in _ranges(type(self)).items():
            held = getattr(self, name)
            for value in _numbers(held):
                digits = str(value)
                number = digits if len(digits) < 30 else f"{digits[:20]}..."
                _check(
                    allowed.holds(value),
                    f"{name} {'is' if held is value else 'has'} {number}; use {allowed.text()}"
                    + (" and less than 2**63" if value >= 2**63 and allowed.most is None else "")
                    + (", or leave it out" if optional else ""),
                )


@cache
def _ranges(kind: type[Record]) -> dict[str, tuple[Range, bool]]:
    """Of a record's fields that have one: the range, and whether the field may be empty."""
    found: dict[str, tuple[Range, bool]] = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        for part in getattr(hint, "__metadata__", ()):
            if isinstance(part, Range):
                found[name] = part, type(None) in typing.get_args(hint.__origin__)
    return found


def _numbers(held: Any) -> Iterator[float]:
    """The numbers of a field: itself, or what its lists and mappings hold."""
    if isinstance(held, int | float) and not isinstance(held, bool):
        yield held
    elif isinstance(held, list | dict):
        for item in held.values() if isinstance(held, dict) else held:
            yield from _numbers(item)


Reader = Literal["digits", "folder", "cifar10", "imagenet32", "lsun", "celeba", "ffhq", "fashion_mnist"]
Preprocessing = Literal["none", "center-crop", "box-crop", "resize", "crop128"]

IMAGES: dict[str, tuple[int | None, int | None]] = {
    "digits": (8, 1),
    "folder": (None, None),
    "cifar10": (32, 3),
    "imagenet32": (32, 3),
    "lsun": (None, 3),
    "celeba": (None, 3),
    "ffhq": (None, 3),
    "fashion_mnist": (28, 1),
}
"""Image size and channels of each reader's data; None where `Source` chooses."""

PREPROCESSINGS: dict[str, tuple[str, ...]] = {
    "folder": ("none", "center-crop"),
    "lsun": ("box-crop",),
    "celeba": ("resize", "crop128", "center-crop"),
}
"""What each reader can make of an image of another size, its default first; ("none",) for the others."""


@dataclass(frozen=True, kw_only=True)
class Download(Record):
    """How a published file is got. Changes no byte of any artifact."""

    __pydantic_config__: ClassVar = FORBID
    size: Annotated[int | None, "its size in bytes", Range(1)] = None
    url: Annotated[str | None, "where it may be downloaded from without asking anybody"] = None
    how: Annotated[str, "a sentence that says how to get it, where there is no url"] = ""


@dataclass(frozen=True, kw_only=True)
class Archive(Download):
    """A published file: its name, its digest, and how it is got."""

    file: Annotated[str, "its name in raw/"]
    sha256: Annotated[str | None, "digest of its bytes; not checked if empty"] = None


@dataclass(frozen=True)
class Source(Record):
    """Where a data set comes from and what its images are."""

    __pydantic_config__: ClassVar = FORBID
    reader: Annotated[Reader, "which reader of `ipdiff.data` opens the raw data"]
    image_size: Annotated[int, "height and width in pixels", Range(1)]
    channels: Annotated[int, "1 (grey) or 3 (RGB)", Range(values=(1, 3))]
    raw: Annotated[str | None, "path of the raw archive or directory, an input of both engines"] = None
    limit: Annotated[int | None, "use only the first so many images; all if empty", Range(2)] = None
    archives: Annotated[
        dict[str, str | None],
        "instead of `raw`: published files by name, each with its sha256 (unknown if empty); `downloads` says how "
        "they are got",
    ] = field(default_factory=dict)
    preprocessing: Annotated[
        Preprocessing | None,
        "what is made of images of another size; the reader's first choice if empty",
    ] = None
    num_images: Annotated[int | None, "how many images the raw data must hold; not checked if empty", Range(1)] = None
    modes: Annotated[
        Literal["refuse", "convert"],
        "reader folder, images that are not grey or RGB as `channels` says: refuse them (all are counted, the first "
        "named), or convert them: transparency on white, palette, grey and CMYK to RGB, colour to grey, 16 bits to 8",
    ] = "refuse"
    skip_broken: Annotated[
        bool, "reader folder: pass over images that cannot be read, and name them in the recipe, not refuse them"
    ] = False
    labels: Annotated[
        Literal["folders", "none"],
        "reader folder: the folders that images lie in are their labels, or images have none",
    ] = "folders"

    def __post_init__(self) -> None:
        super().__post_init__()
        size, channels = IMAGES[self.reader]
        _check(size in (None, self.image_size), f"image_size is {self.image_size}; images of {self.reader} have {size}")
        _check(
            channels in (None, self.channels), f"channels is {self.channels}; images of {self.reader} have {channels}"
        )
        _check(
            self.preprocessing in (None, *self._choices),
            f"preprocessing is {self.preprocessing}; reader {self.reader} has {', '.join(self._choices)}",
        )
        for key, default in (("modes", "refuse"), ("skip_broken", False), ("labels", "folders")):
            _check(
                self.reader == "folder" or getattr(self, key) == default,
                f"{key} is {getattr(self, key)}; reader {self.reader} takes its images as they are published",
            )
        if self.reader == "digits":
            _check(self.raw is None and not self.archives, "reader digits needs no `raw` and no `archives`")
        else:
            _check(
                (self.raw is None) == bool(self.archives),
                f"reader {self.reader} needs one of `raw` (the path of its archive or directory) and `archives`",
            )
        for file, digest in self.archives.items():
            _check(
                bool(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", file)),
                f"archives has '{file}'; use the plain name of a file, without a directory",
            )
            _check(
                digest is None or bool(re.fullmatch("[0-9a-f]{64}", digest)),
                f"archives.{file} is '{digest}'; use a sha256: 64 hexadecimal digits in lower case",
            )

    @property
    def _choices(self) -> tuple[str, ...]:
        return PREPROCESSINGS.get(self.reader, ("none",))

    @property
    def chosen_preprocessing(self) -> str:
        """`preprocessing`, or the reader's first choice."""
        return self.preprocessing or self._choices[0]

    @property
    def expected_images(self) -> int | None:
        """How many images there will be, where that is known before they are read."""
        return min((number for number in (self.limit, self.num_images) if number is not None), default=None)


@dataclass(frozen=True)
class Classifier(Record):
    """A small CNN trained on the labelled data, whose activations are the features of FID and sFID."""

    __pydantic_config__: ClassVar = FORBID
    width: Annotated[int, "channels of the first convolution; the second has twice as many", Range(1)] = 32
    features: Annotated[int, "width of the penultimate layer: the dimension of the FID features", Range(1)] = 64
    spatial_channels: Annotated[int, "channels of the second convolution's map that sFID uses", Range(1)] = 7
    steps: Annotated[int, "optimiser updates", Range(1)] = 300
    batch_size: Annotated[int, "images an update", Range(1)] = 128
    lr: Annotated[float, "AdamW learning rate, decayed to 0 by a cosine", Range(above=0)] = 2e-3
    seed: Annotated[int, "seed of its initialisation and data order", SEED] = 0
    holdout: Annotated[float, "share of the images kept out to measure its accuracy", Range(0, 0.5)] = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        most = 2 * self.width
        _check(
            self.spatial_channels <= most,
            f"spatial_channels is {self.spatial_channels}; the second convolution has {most} (2 * width)",
        )


INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""The published inception-2015-12-05.pt: only its figures may stand beside the paper's."""


@dataclass(frozen=True)
class Inception(Record):
    """Where the file of the Inception network is whose activations are compared."""

    __pydantic_config__: ClassVar = FORBID
    sha256: Annotated[str, "of the file; names the network in the cells' parameters"] = INCEPTION_SHA256
    file: Annotated[str, "its name in raw/ or in the directory $IPDIFF_RAW"] = "inception-2015-12-05.pt"
    url: Annotated[str, "where it is downloaded from if it is in neither"] = (
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
    )
    raw: Annotated[str | None, "instead: path of a network that the engines watch; `sha256` is then not asked"] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(
            re.fullmatch("[0-9a-f]{64}", self.sha256) is not None,
            f"sha256 is '{self.sha256}'; use 64 digits 0-9a-f",
        )


@dataclass(frozen=True)
class Reference(Record):
    """The real images that samples are compared with."""

    __pydantic_config__: ClassVar = FORBID
    images: Annotated[int | None, "a random subset of so many; all if empty", Range(2)] = None
    seed: Annotated[int, "seed of that subset", SEED] = 0
    neighbours: Annotated[bool, "also measure precision and recall: distances of all images to each other"] = False


@dataclass(frozen=True)
class Compute(Record):
    """What the numbers are computed on; part of every artifact computed by a network."""

    __pydantic_config__: ClassVar = FORBID
    device: Annotated[Literal["cpu", "cuda"], "cpu or cuda"] = "cpu"
    threads: Annotated[
        int, "intra-op threads on the CPU; sums differ in the last bit between 1 and 2", Range(1, 1024)
    ] = 1
    precision: Annotated[
        Precision,
        "of a U-Net's convolutions and attention, in training, in `analyse`, and where `sampling.precision` is empty "
        "in sampling; weights, norms and losses are float32",
    ] = "float32"
    compile: Annotated[bool, "compile the U-Net with torch.compile (GPUs; off until tests/gpu has passed there)"] = (
        False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(
            self.precision != "float16" or self.device == "cuda",
            f"precision is float16 with device {self.device}; float16 needs cuda, use bfloat16 or float32",
        )
        _check(
            not self.compile or self.device == "cuda",
            "compile is true with device cpu, where it does not pay; leave it out",
        )


@dataclass(frozen=True)
class ADMNetwork(Record):
    """The ADM U-Net's architecture (guided-diffusion's UNetModel)."""

    __pydantic_config__: ClassVar = FORBID
    model_channels: Annotated[int, "base width", Range(1)]
    channel_mult: Annotated[list[int], "width of each level as a multiple of the base", Range(1)]
    num_res_blocks: Annotated[int, "residual blocks a level", Range(1)]
    attention_resolutions: Annotated[list[int], "image sizes at which blocks carry attention", Range(1)]
    num_heads: Annotated[int, "attention heads, where num_head_channels is empty", Range(1)] = 4
    num_head_channels: Annotated[int | None, "channels an attention head", Range(1)] = None
    dropout: Annotated[float, "dropout before the last convolution of a residual block", Range(0, below=1)] = 0.0
    use_scale_shift_norm: Annotated[bool, "time embedding scales and shifts the second norm"] = True
    resblock_updown: Annotated[bool, "resample inside residual blocks, not by strided convolutions"] = True
    new_attention_order: Annotated[bool, "split q, k, v before splitting heads"] = True
    norm_groups: Annotated[int, "groups of every group norm; 32 in all published nets", Range(1)] = 32


@dataclass(frozen=True)
class DDPMNetwork(Record):
    """The DDIM code base's U-Net."""

    __pydantic_config__: ClassVar = FORBID
    model_channels: Annotated[int, "base width", Range(1)]
    channel_mult: Annotated[list[int], "width of each level as a multiple of the base", Range(1)]
    num_res_blocks: Annotated[int, "residual blocks a level", Range(1)]
    attention_resolutions: Annotated[list[int], "image sizes at which blocks carry attention", Range(1)]
    dropout: Annotated[float, "dropout inside residual blocks", Range(0, below=1)] = 0.1
    norm_groups: Annotated[int, "groups of every group norm; 32 in all published nets", Range(1)] = 32


@dataclass(frozen=True)
class Diffusion(Record):
    """The noise process and the reverse process' variance."""

    __pydantic_config__: ClassVar = FORBID
    schedule: Annotated[Literal["cosine", "linear"], "beta schedule"]
    T: Annotated[int, "length of the chain trained on", Range(2)]
    learn_sigma: Annotated[bool, "the network also outputs the interpolation of the log variance"] = False
    fixed_variance: Annotated[Literal["small", "large"], "beta tilde or beta, where sigma is not learned"] = "small"


@dataclass(frozen=True)
class Training(Record):
    """Optimiser, batches and the choice of timesteps."""

    __pydantic_config__: ClassVar = FORBID
    batch_size: Annotated[int, "images an optimiser update (global)", Range(1)]
    lr: Annotated[float, "learning rate", Range(above=0)]
    micro_batch: Annotated[int | None, "images a backward pass; part of the artifact; default batch_size", Range(1)] = (
        None
    )
    lr_warmup: Annotated[int, "updates of linear warm-up from 0", Range(0)] = 0
    lr_decay: Annotated[Literal["none", "linear", "cosine"], "how the rate falls to 0 at lr_decay_steps"] = "none"
    lr_decay_steps: Annotated[int, "update at which the decay has reached 0", Range(0)] = 0
    grad_clip: Annotated[float | None, "clip the global gradient norm", Range(above=0)] = None
    ema_decay: Annotated[float, "decay of the moving average of the weights", Range(0, below=1)] = 0.9999
    ema_warmup: Annotated[bool, "cap the decay at (1 + step) / (10 + step)"] = False
    timesteps: Annotated[Literal["uniform", "antithetic", "loss-second-moment"], "how t is drawn for each image"] = (
        "uniform"
    )
    loss_reduction: Annotated[
        Literal["mean", "sum"], "of the squared error and the gradient penalty over C, H and W"
    ] = "mean"
    flip: Annotated[bool, "mirror each image with probability 1/2"] = True
    reduction: Annotated[
        Literal["exact", "fast"],
        "how several processes add gradients: exact (same bytes for any number of processes) or fast (all_reduce)",
    ] = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.micro_batch or self.batch_size
        _check(self.batch_size % size == 0, f"micro_batch {size} does not divide batch_size {self.batch_size}")
        _check(self.lr_decay == "none" or self.lr_decay_steps > 0, "lr_decay needs lr_decay_steps > 0")


@dataclass(frozen=True)
class ADMFamily(Record):
    """How the ADM models (adm, adm-ip, adm-gp, adm-wd, ddpm-y) are built and trained on a data set."""

    __pydantic_config__: ClassVar = FORBID
    network: ADMNetwork
    diffusion: Diffusion
    training: Training
    clip_denoised: Annotated[bool, "clamp the predicted x0 to [-1, 1] while sampling"] = True
    quantise: Annotated[Quantise, "how samples become whole grey levels; guided-diffusion truncates"] = "truncate"


@dataclass(frozen=True)
class DDPMFamily(Record):
    """How the DDIM code base's models (ddim, ddim-ip) are built and trained on a data set."""

    __pydantic_config__: ClassVar = FORBID
    network: DDPMNetwork
    diffusion: Diffusion
    training: Training
    clip_denoised: Annotated[bool, "clamp the predicted x0 to [-1, 1] while sampling"] = False
    quantise: Annotated[Quantise, "how samples become whole grey levels; the DDIM code rounds"] = "round"


@dataclass(frozen=True)
class Families(Record):
    """The network families a data set can be trained with."""

    __pydantic_config__: ClassVar = FORBID
    adm: ADMFamily | None = None
    ddpm: DDPMFamily | None = None


@dataclass(frozen=True)
class Strengths(Record):
    """Strengths of the regularisers, chosen for each data set; models ask for them with the word `dataset`."""

    __pydantic_config__: ClassVar = FORBID
    gamma: Annotated[Strength, "input perturbation, Eq. 6: a constant, or values over t", Range(0)] = 0.1
    gp_weight: Annotated[
        float,
        "lambda_GP of the gradient penalty, reduced like the squared error: acts as extra input noise of this variance "
        "(the paper's value is not published)",
        Range(0),
    ] = 3e-3
    weight_decay: Annotated[float, "lambda_WD (the paper's value is not published)", Range(0)] = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.gamma != [], "gamma is an empty list; use 0 or more, or a list of such values")


@dataclass(frozen=True)
class Sampling(Record):
    """A sample set."""

    __pydantic_config__: ClassVar = FORBID
    num_samples: Annotated[int, "images in a set", Range(2)]
    batch_size: Annotated[int, "images a network call; part of the artifact", Range(1)]
    exposure_samples: Annotated[int | None, "images of an exposure-bias set; default num_samples", Range(2)] = None
    precision: Annotated[
        Precision | None, "of a U-Net's convolutions and attention in sampling; `compute.precision` if empty"
    ] = None

    def count(self, sampler: Sampler) -> int:
        """Images of a sampler's set: exposure sets may be smaller."""
        exposure = self.exposure_samples if sampler.kind == "exposure" else None
        return self.num_samples if exposure is None else exposure


@dataclass(frozen=True)
class Analysis(Record):
    """Statistics of the prediction error e_t = predicted x0 - x0 (section 5 of the paper)."""

    __pydantic_config__: ClassVar = FORBID
    images: Annotated[
        int, "images whose error is taken at each t; all if there are fewer (official code: 100 batches)", Range(2)
    ]
    batch_size: Annotated[int, "images a network call; part of the artifact", Range(1)]
    timesteps: Annotated[int, "how many t, evenly spaced from 0 (official code: 100 of 1000)", Range(1)] = 100
    normality_samples: Annotated[
        int, "errors of one pixel that are tested (paper: 50, official code: 100)", Range(3)
    ] = 50
    alpha: Annotated[float, "normality is rejected where Shapiro-Wilk's p is below this", Range(above=0, below=1)] = (
        0.05
    )


@dataclass(frozen=True)
class Dataset(Record):
    """One data set: images, features, networks, training, sampling."""

    __pydantic_config__: ClassVar = FORBID
    source: Source
    families: Families
    sampling: Sampling
    checkpoints: Annotated[list[int], "training steps that publish a checkpoint, ascending", Range(1)]
    final_step: Annotated[dict[str, int], "the checkpoint a table means, by model; `default` for the others", Range(1)]
    strengths: Strengths = field(default_factory=Strengths)
    features: Annotated[
        Literal["classifier", "inception"], "the network whose activations are compared; the paper's is inception"
    ] = "classifier"
    classifier: Classifier = field(default_factory=Classifier)
    inception: Inception = field(default_factory=Inception)
    reference: Reference = field(default_factory=Reference)
    compute: Compute = field(default_factory=Compute)
    analysis: Annotated[Analysis | None, "prediction-error statistics; needed by figures of kind errors"] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.checkpoints
        _check(
            bool(steps) and steps == sorted(set(steps)),
            f"checkpoints {steps} must be one or more, ascending and without repeats",
        )
        known, asked = self.source.expected_images, self.reference.images
        _check(
            known is None or asked is None or asked <= known,
            f"reference.images is {asked}, more than the {known} images",
        )
        _check(
            self.features != "classifier" or self.source.image_size >= 2,
            "features is classifier, which needs source.image_size of 2 or more",
        )
        _check("default" in self.final_step, "final_step needs a `default`")
        last = self.final_step["default"]
        _check(last in steps, f"final_step.default is {last}, not one of checkpoints {steps}")
        _check(
            self.sampling.precision != "float16" or self.compute.device == "cuda",
            f"sampling.precision is float16 with device {self.compute.device}; float16 needs cuda, use bfloat16 or "
            "float32",
        )

    @property
    def sampling_compute(self) -> Compute:
        """What samples are drawn on: `compute`, in the precision of `sampling`."""
        return replace(self.compute, precision=self.sampling.precision or self.compute.precision)

    def last_step(self, model: str) -> int:
        """The training step at which tables read `model`."""
        return self.final_step.get(model, self.final_step["default"])


@dataclass(frozen=True)
class Model(Record):
    """A training objective on a network family. The word `dataset` takes the data set's own strength."""

    __pydantic_config__: ClassVar = FORBID
    family: Annotated[Family, "adm (guided-diffusion's network and training) or ddpm (the DDIM code base's)"]
    gamma: Annotated[Strength | Literal["dataset"], "input perturbation (official flag --input_pertub)", Range(0)] = 0.0
    target: Annotated[Literal["eps", "eps_prime"], "eps (Alg. 3) or eps' (DDPM-y)"] = "eps"
    gp_weight: Annotated[float | Literal["dataset"], "lambda_GP of the gradient penalty", Range(0)] = 0.0
    weight_decay: Annotated[float | Literal["dataset"], "lambda_WD, handed to the optimiser", Range(0)] = 0.0
    decay: Annotated[
        Decay,
        "of the weights beside the gradient (AdamW, the official code), or coupled: weight_decay times the weights is "
        "added to the gradient that Adam sees, after clipping, as an L2 term of the loss would be",
    ] = "decoupled"
    imported: Annotated[bool, "its checkpoints come from `ipdiff import`; nothing trains it"] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.gamma != [], "gamma is an empty list; use 0 or more, or a list of such values")
        _check(len(self.borrowed) <= 1, f"takes {self.borrowed} from the data set; one at most")

    @property
    def borrowed(self) -> list[str]:
        """Names of the strengths taken from the data set."""
        return [key for key in ("gamma", "gp_weight", "weight_decay") if getattr(self, key) == "dataset"]


@dataclass(frozen=True)
class Objective(Record):
    """A model's objective with every strength resolved."""

    gamma: Annotated[Strength, Range(0)]
    target: Literal["eps", "eps_prime"]
    gp_weight: Annotated[float, Range(0)]
    weight_decay: Annotated[float, Range(0)]
    decay: Decay = "decoupled"

    @staticmethod
    def resolve(model: Model, strengths: Strengths) -> Objective:
        """Replace the word `dataset` by the data set's strength."""
        values = {
            key: getattr(strengths if key in model.borrowed else model, key)
            for key in ("gamma", "gp_weight", "weight_decay")
        }
        return Objective(target=model.target, decay=model.decay, **values)


@dataclass(frozen=True)
class RunSpec(Record):
    """Everything that decides the bytes of a training run: a run is this, a data set and a step."""

    family: Family
    network: ADMNetwork | DDPMNetwork
    diffusion: Diffusion
    training: Training
    objective: Objective
    compute: Compute
    image_size: Annotated[int, Range(1)]
    channels: Annotated[int, Range(values=(1, 3))]
    seed: Annotated[int, SEED]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for a recipe."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> RunSpec:
        """The inverse of `to_json`: a checkpoint's recipe tells how to build its network."""
        network = {"adm": ADMNetwork, "ddpm": DDPMNetwork}[data["family"]]
        training, objective = dict(data["training"]), dict(data["objective"])
        if (optimizer := training.pop("optimizer", None)) is not None:  # of an import from before `decay`
            objective["decay"] = {"adam": "coupled", "adamw": "decoupled"}[optimizer]
        parts = {
            "network": network(**data["network"]),
            "diffusion": Diffusion(**data["diffusion"]),
            "training": Training(**training),
            "objective": Objective(**objective),
            "compute": Compute(**data["compute"]),
        }
        return RunSpec(**{**data, **parts})


@dataclass(frozen=True)
class Work(Record):
    """How work is saved while it is done. Changes no byte of any artifact."""

    __pydantic_config__: ClassVar = FORBID
    save_every: Annotated[int, "optimiser updates after which a train state is saved in work/", Range(1)] = 5000
    save_seconds: Annotated[float, "seconds after which one is saved, if that is sooner", Range(0)] = 300.0
    states_kept: Annotated[
        int,
        "newest train states of a run that are kept in work/, and newest versions of it (parameters, code)",
        Range(1),
    ] = 2


SAMPLER = re.compile(r"(ancestral)-(\d+)|ddim(\d+(?:\.\d+)?)-((?:uniform|quad|ddim)?\d+)|(exposure)-(\d+)")


@dataclass(frozen=True)
class Sampler(Record):
    """A sampler as it stands in paths: `ancestral-100`, `ddim0.5-quad20`, `exposure-300`.

    ancestral-N: N respaced steps of guided-diffusion's rule. ddim{eta}-{grid}: DDIM with that eta over
    `N` (guided-diffusion's spacing), `ddimN`, `uniformN` or `quadN`. exposure-t: real images diffused to
    t steps, then t reverse steps of the full chain (Table 1).
    """

    kind: Literal["ancestral", "ddim", "exposure"]
    steps: Annotated[int, Range(1)]
    spacing: str
    eta: Annotated[float, Range(0, 1)] = 1.0

    @staticmethod
    def parse(text: str) -> Sampler:
        """Read a sampler's name; ValueError says what a name looks like."""
        match = SAMPLER.fullmatch(text)
        if match is None:
            raise ValueError(
                f"sampler '{text}' is unknown; use ancestral-N, ddimETA-N, ddimETA-uniformN, "
                "ddimETA-quadN or exposure-t, e.g. ancestral-100 or ddim0.5-quad20"
            )
        try:
            if match[1]:
                return Sampler("ancestral", int(match[2]), match[2])
            if match[3]:
                return Sampler("ddim", int(match[4].lstrip("adfimnoqru")), match[4], float(match[3]))
            return Sampler("exposure", int(match[6]), match[6])
        except ValueError as error:
            raise ValueError(f"sampler '{text}': {error}") from None

    def label(self) -> str:
        """How a table names it: T' and, for DDIM, eta and the grid."""
        if self.kind == "exposure":
            return f"{self.steps} reverse steps"
        if self.kind == "ancestral":
            return f"T' = {self.steps}"
        grid = self.spacing.rstrip("0123456789")
        return f"eta = {self.eta:g}, T' = {self.steps}" + (f" ({grid})" if grid else "")


METRICS = ("fid", "sfid", "pixel_fd", "inception_score", "precision", "recall")
Metric = Literal["fid", "sfid", "pixel_fd", "inception_score", "precision", "recall"]
HIGHER_IS_BETTER = ("inception_score", "precision", "recall")
Axis = Literal["dataset", "model", "step", "sampler", "metric"]


@dataclass(frozen=True)
class Point(Record):
    """One measured point: a checkpoint of a model and a sampler; every seed of the model is measured there."""

    __pydantic_config__: ClassVar = FORBID
    dataset: str
    model: str
    sampler: str
    step: Annotated[int | None, "training step; the data set's final_step for the model if empty", Range(1)] = None


def wanted(steps: list[int], until: Mapping[str, int], model: str) -> list[int]:
    """The training steps of a view that it shows for a model."""
    return [step for step in steps if step <= until.get(model, step)]


@dataclass(frozen=True)
class Table(Record):
    """A table: a product of data sets, models, samplers and steps, or an explicit list of points."""

    __pydantic_config__: ClassVar = FORBID
    title: Annotated[str, "what the table shows"]
    metrics: Annotated[
        list[Metric],
        "what is shown; inception_score needs `features: inception`, precision and recall `reference.neighbours: true`",
    ]
    rows: Annotated[list[Axis], "axes that make the rows"]
    columns: Annotated[list[Axis], "axes that make the columns"]
    datasets: Annotated[list[str], "data sets of the product"] = field(default_factory=list)
    models: Annotated[list[str], "models of the product"] = field(default_factory=list)
    samplers: Annotated[list[str], "samplers of the product"] = field(default_factory=list)
    steps: Annotated[list[int], "training steps of the product; each model's final step if empty", Range(1)] = field(
        default_factory=list
    )
    until: Annotated[
        dict[str, int], "model: its last training step, where the product's steps go further", Range(1)
    ] = field(default_factory=dict)
    points: Annotated[list[Point], "explicit points instead of a product"] = field(default_factory=list)
    compare: Annotated[dict[str, str], "model: baseline; adds difference rows, paired by seed"] = field(
        default_factory=dict
    )
    paper: Annotated[str | None, "key of ipdiff/paper_values.yaml whose figures stand beside ours"] = None
    note: Annotated[str, "a sentence under the table"] = ""


@dataclass(frozen=True)
class Figure(Record):
    """Lines over training steps or over T', a grid of sample images, or the prediction error over t."""

    __pydantic_config__: ClassVar = FORBID
    kind: Annotated[Literal["lines", "samples", "errors"], "curves of a metric, images, or prediction errors"]
    title: Annotated[str, "what the figure shows"]
    datasets: Annotated[list[str], "data sets: a panel each"]
    models: Annotated[list[str], "models: a line, or a block of images each"]
    samplers: Annotated[list[str], "samplers; over T' they make the x axis; none for prediction errors"] = field(
        default_factory=list
    )
    steps: Annotated[list[int], "training steps; each model's final step if empty", Range(1)] = field(
        default_factory=list
    )
    until: Annotated[dict[str, int], "model: its last training step, where `steps` go further", Range(1)] = field(
        default_factory=dict
    )
    metric: Annotated[Metric, "what the lines show"] = "fid"
    x: Annotated[Literal["step", "sample_steps"], "x axis of lines"] = "sample_steps"
    images: Annotated[int, "images a row of a sample grid", Range(1)] = 16
    paper: Annotated[
        str | None, "key of ipdiff/paper_values.yaml whose curves stand beside lines over training steps"
    ] = None
    note: Annotated[str, "a sentence under the figure"] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(
            self.paper is None or (self.kind, self.x) == ("lines", "step"),
            f"paper is {self.paper}, but the paper's curves are over training steps; use kind: lines and x: step",
        )


@dataclass(frozen=True)
class Study(Record):
    """A named set of tables and figures over its own data sets."""

    __pydantic_config__: ClassVar = FORBID
    title: Annotated[str, "headline of the report"]
    datasets: Annotated[list[str], "its data sets; a data set belongs to one study only"]
    seeds: Annotated[dict[str, list[int]], "training seeds by model; `default` for the others", SEED]
    tables: Annotated[dict[str, Table], "tables by name"]
    figures: Annotated[dict[str, Figure], "figures by name"] = field(default_factory=dict)
    note: Annotated[str, "opening paragraph of the report"] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("default" in self.seeds, "seeds needs a `default`")

    def seeds_of(self, model: str) -> list[int]:
        """Training seeds of a model in this study."""
        return self.seeds.get(model, self.seeds["default"])
