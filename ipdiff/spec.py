"""What decides a training run: its network, diffusion process, training and objective.

Every record is a frozen standard-library dataclass, so the compute core runs where only torch and numpy are installed.
`ipdiff.pipeline.config` reads params.yaml into these same classes (and refuses unknown keys); the text beside each
field is its documentation in config/README.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from ipdiff.device.spec import Compute
from ipdiff.parameters import FORBID, SEED, Range, Record, check


@dataclass(frozen=True)
class Ramp(Record):
    """A strength that changes over training: the same at a step, however often the run was stopped before."""

    __pydantic_config__: ClassVar = FORBID
    start: Annotated[float, "strength up to step `after`", Range(0)]
    end: Annotated[float, "strength from step `until` on", Range(0)]
    until: Annotated[int, "optimiser updates after which `end` is reached", Range(1)]
    after: Annotated[int, "optimiser updates with `start`, before it begins to change", Range(0)] = 0
    shape: Annotated[Literal["linear", "cosine"], "in between: a straight line, or half a cosine"] = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.after < self.until, f"after is {self.after}, not less than until, {self.until}")

    def at(self, step: int) -> float:
        """The strength at update `step` (0-based)."""
        done = min(1.0, max(0.0, (step - self.after) / (self.until - self.after)))
        share = done if self.shape == "linear" else 0.5 * (1.0 - math.cos(math.pi * done))
        return (1.0 - share) * self.start + share * self.end


Strength = float | list[float] | Ramp
"""A strength: a constant, values at equally spaced t from 0 to T-1 (linear in between), or one that changes."""

Decay = Literal["decoupled", "coupled"]


OBJECTIVES = {
    "eps": "the noise eps (Alg. 3)",
    "eps_prime": "eps', the noise of the perturbed input, scaled to unit variance (DDPM-y)",
    "v": "the velocity v = sqrt(alpha-bar) eps - sqrt(1 - alpha-bar) x0",
}
"""What a network may be trained to say; a new one is a row here, and one with its functions in `diffusion.TARGETS`."""

if TYPE_CHECKING:
    Target = str
else:
    Target = Literal[tuple(OBJECTIVES)]


@dataclass(frozen=True)
class Network(Record):
    """What every network's record has; one with a field `dropout`, above 0, is trained with keyed masks."""

    model_channels: Annotated[int, "base width", Range(1)]

    def check(self, image_size: int) -> None:
        """Raise ValueError where it cannot be built for images of this size."""


@dataclass(frozen=True)
class ADMNetwork(Network):
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

    def check(self, image_size: int) -> None:
        """Raise ValueError where it cannot be built for images of this size."""
        sizes = level_sizes(image_size, self.channel_mult, self.num_res_blocks, self.attention_resolutions)
        unit = self.num_head_channels
        heads = ("num_heads", self.num_heads) if unit is None else ("num_head_channels", unit)
        attended = [size in self.attention_resolutions for size in sizes]
        check_widths(self.model_channels, self.channel_mult, self.norm_groups, heads, attended)


@dataclass(frozen=True)
class DDPMNetwork(Network):
    """The DDIM code base's U-Net."""

    __pydantic_config__: ClassVar = FORBID
    model_channels: Annotated[int, "base width", Range(1)]
    channel_mult: Annotated[list[int], "width of each level as a multiple of the base", Range(1)]
    num_res_blocks: Annotated[int, "residual blocks a level", Range(1)]
    attention_resolutions: Annotated[list[int], "image sizes at which blocks carry attention", Range(1)]
    dropout: Annotated[float, "dropout inside residual blocks", Range(0, below=1)] = 0.1
    norm_groups: Annotated[int, "groups of every group norm; 32 in all published nets", Range(1)] = 32

    def check(self, image_size: int) -> None:
        """Raise ValueError where it cannot be built for images of this size."""
        sizes = level_sizes(image_size, self.channel_mult, self.num_res_blocks, self.attention_resolutions)
        if self.model_channels < 4:
            raise ValueError(f"model_channels={self.model_channels} is not an even number >= 4")
        mult = [1, *self.channel_mult]  # its first convolution has the base width, a level of its own to the norms
        attended = [False, *(size in self.attention_resolutions for size in sizes)]
        check_widths(self.model_channels, mult, self.norm_groups, None, attended)


@dataclass(frozen=True)
class FamilyKind:
    """A kind of network: how it is described, and what builds it.

    Attributes:
        network: the record of its architecture.
        build: the class, called as (image_size, in_channels=, out_channels=, **network): module:class.
        clip_denoised: whether its code base clamps x0 while sampling.
    """

    network: type[Network]
    build: str
    clip_denoised: bool = True


FAMILIES = {
    "adm": FamilyKind(ADMNetwork, "ipdiff.nets.adm:ADMUNet"),
    "ddpm": FamilyKind(DDPMNetwork, "ipdiff.nets.ddpm:DDPMUNet", clip_denoised=False),
}
"""Kinds of networks by name: a row and a record here, and the class."""

if TYPE_CHECKING:
    Family = str
else:
    Family = Literal[tuple(FAMILIES)]


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
        check(self.batch_size % size == 0, f"micro_batch {size} does not divide batch_size {self.batch_size}")
        check(self.lr_decay == "none" or self.lr_decay_steps > 0, "lr_decay needs lr_decay_steps > 0")


@dataclass(frozen=True)
class Objective(Record):
    """A model's objective with every strength resolved."""

    gamma: Annotated[Strength, Range(0)]
    target: Target
    gp_weight: Annotated[float, Range(0)]
    weight_decay: Annotated[float, Range(0)]
    decay: Decay = "decoupled"
    min_snr: Annotated[float | None, Range(above=0)] = None


@dataclass(frozen=True)
class RunSpec(Record):
    """Everything that decides the bytes of a training run: a run is this, a data set and a step."""

    family: Family
    network: Network
    diffusion: Diffusion
    training: Training
    objective: Objective
    compute: Compute
    image_size: Annotated[int, Range(1)]
    channels: Annotated[int, Range(values=(1, 3))]
    seed: Annotated[int, SEED]

    def unlike(self, other: RunSpec) -> str | None:
        """How the other's network differs, for a message; None where one's weights fit the other."""
        here, there = (
            {
                **{key: getattr(spec, key) for key in ("family", "image_size", "channels")},
                "learn_sigma": spec.diffusion.learn_sigma,
                **asdict(spec.network),
            }
            for spec in (self, other)
        )
        key = next((key for key in here if there.get(key) != here[key]), None)
        return None if key is None else f"its {key} is {there[key]}, not {here[key]}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for a recipe; without `min_snr` where it is not used, as in recipes from before there was one."""
        data = asdict(self)
        if self.objective.min_snr is None:
            del data["objective"]["min_snr"]
        return data

    @staticmethod
    def from_json(data: dict[str, Any]) -> RunSpec:
        """The inverse of `to_json`: a checkpoint's recipe tells how to build its network."""
        network = FAMILIES[data["family"]].network
        training, objective = dict(data["training"]), dict(data["objective"])
        if (optimizer := training.pop("optimizer", None)) is not None:  # of an import from before `decay`
            objective["decay"] = {"adam": "coupled", "adamw": "decoupled"}[optimizer]
        if isinstance(objective["gamma"], dict):
            objective["gamma"] = Ramp(**objective["gamma"])
        parts = {
            "network": network(**data["network"]),
            "diffusion": Diffusion(**data["diffusion"]),
            "training": Training(**training),
            "objective": Objective(**objective),
            "compute": Compute(**data["compute"]),
        }
        return RunSpec(**{**data, **parts})


def level_sizes(
    image_size: int, channel_mult: Sequence[int], num_res_blocks: int, attention_resolutions: Sequence[int]
) -> list[int]:
    """Image size of every level of a U-Net that halves between levels.

    Raises:
        ValueError: there is no level or block, a size is odd before the last level, or attention is asked
            for at a size that does not occur.
    """
    if not channel_mult or min(channel_mult) < 1 or num_res_blocks < 1:
        given = f"channel_mult={tuple(channel_mult)} and num_res_blocks={num_res_blocks}"
        raise ValueError(f"{given} must be one or more, all >= 1")
    factor = 2 ** (len(channel_mult) - 1)
    if image_size < factor or image_size % factor:
        raise ValueError(f"image_size={image_size} is not divisible by {factor} = 2^(levels - 1)")
    sizes = [image_size >> level for level in range(len(channel_mult))]
    absent = [size for size in attention_resolutions if size not in sizes]
    if absent:
        raise ValueError(f"attention_resolutions has {absent}, but the image sizes of the levels are {sizes}")
    return sizes


def check_widths(
    model_channels: int,
    channel_mult: Sequence[int],
    norm_groups: int,
    heads: tuple[str, int] | None,
    attended: Sequence[bool],
) -> None:
    """Refuse a U-Net whose channels its time embedding, group norms or attention cannot divide.

    Args:
        model_channels: base width; the first convolution's and the time embedding's.
        channel_mult: width of each level as a multiple of the base.
        norm_groups: groups of every norm.
        heads: what must divide the channels of an attention block, by name; None for a single head.
        attended: which levels carry attention; the middle block, as wide as the last level, always does.

    Raises:
        ValueError: it says which number does not fit.
    """
    if model_channels % 2:
        raise ValueError(f"model_channels={model_channels} is not even; time is embedded in pairs")
    widths = [model_channels * mult for mult in channel_mult]
    for width in widths:
        if width % norm_groups:
            raise ValueError(f"norm_groups={norm_groups} does not divide a layer's {width} channels")
    if heads is None:
        return
    name, unit = heads
    for width, attends in zip(widths, [*attended[:-1], True], strict=True):
        if attends and width % unit:
            raise ValueError(f"{name}={unit} does not divide the {width} channels of an attention block")
