"""What decides a training run: its network, diffusion process, training and objective.

Every record is a frozen standard-library dataclass, so the compute core runs where only torch and numpy are installed.
`ipdiff.pipeline.config` reads params.yaml into these same classes (and refuses unknown keys); the text beside each
field is its documentation in config/README.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from ipdiff.device.spec import Compute
from ipdiff.parameters import FORBID, SEED, Range, Record, check
from ipdiff.schedule import FloatArray, make_betas


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
class UNetNetwork(Network):
    """What the U-Nets of both code bases have."""

    channel_mult: Annotated[list[int], "width of each level as a multiple of the base", Range(1)]
    num_res_blocks: Annotated[int, "residual blocks a level", Range(1)]
    attention_resolutions: Annotated[list[int], "image sizes at which blocks carry attention", Range(1)]

    @property
    def widths(self) -> list[int]:
        """Channels of every level."""
        return [self.model_channels * mult for mult in self.channel_mult]

    def attends(self, image_size: int) -> list[bool]:
        """Whether each level's blocks carry attention: level i has images of image_size / 2^i."""
        return [image_size >> level in self.attention_resolutions for level in range(len(self.channel_mult))]

    def check(self, image_size: int) -> None:
        """Raise ValueError where there is no level, or a level has no such image size; see `Network.check`."""
        check(len(self.channel_mult) > 0, "channel_mult is empty; it has one number for each level")
        factor = 2 ** (len(self.channel_mult) - 1)
        fits = image_size >= factor and image_size % factor == 0
        check(fits, f"image_size={image_size} is not divisible by {factor} = 2^(levels - 1)")
        sizes = [image_size >> level for level in range(len(self.channel_mult))]
        absent = [size for size in self.attention_resolutions if size not in sizes]
        check(not absent, f"attention_resolutions has {absent}, but the image sizes of the levels are {sizes}")
        even = self.model_channels % 2 == 0
        check(even, f"model_channels={self.model_channels} is not even; time is embedded in pairs")


@dataclass(frozen=True)
class ADMNetwork(UNetNetwork):
    """The ADM U-Net's architecture (guided-diffusion's UNetModel)."""

    __pydantic_config__: ClassVar = FORBID
    num_heads: Annotated[int, "attention heads, where num_head_channels is empty", Range(1)] = 4
    num_head_channels: Annotated[int | None, "channels an attention head", Range(1)] = None
    dropout: Annotated[float, "dropout before the last convolution of a residual block", Range(0, below=1)] = 0.0
    use_scale_shift_norm: Annotated[bool, "time embedding scales and shifts the second norm"] = True
    resblock_updown: Annotated[bool, "resample inside residual blocks, not by strided convolutions"] = True
    new_attention_order: Annotated[bool, "split q, k, v before splitting heads"] = True
    norm_groups: Annotated[int, "groups of every group norm; 32 in all published nets", Range(1)] = 32

    def check(self, image_size: int) -> None:
        """Raise ValueError where it cannot be built for images of this size."""
        super().check(image_size)
        _check_groups(self.norm_groups, self.widths)
        unit = self.num_head_channels
        name, unit = ("num_heads", self.num_heads) if unit is None else ("num_head_channels", unit)
        for width, attends in zip(self.widths, [*self.attends(image_size)[:-1], True], strict=True):
            check(
                not attends or width % unit == 0,
                f"{name}={unit} does not divide the {width} channels of an attention block",
            )


@dataclass(frozen=True)
class DDPMNetwork(UNetNetwork):
    """The DDIM code base's U-Net."""

    __pydantic_config__: ClassVar = FORBID
    dropout: Annotated[float, "dropout inside residual blocks", Range(0, below=1)] = 0.1
    norm_groups: Annotated[int, "groups of every group norm; 32 in all published nets", Range(1)] = 32

    def check(self, image_size: int) -> None:
        """Raise ValueError where it cannot be built for images of this size."""
        check(self.model_channels >= 4, f"model_channels={self.model_channels} is not an even number >= 4")
        super().check(image_size)
        _check_groups(self.norm_groups, [self.model_channels, *self.widths])  # its first convolution has the base width


def _check_groups(norm_groups: int, widths: Sequence[int]) -> None:
    for width in widths:
        check(width % norm_groups == 0, f"norm_groups={norm_groups} does not divide a layer's {width} channels")


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

    def alphas_cumprod(self) -> FloatArray:
        """Alpha-bar of the train steps, [T] float64."""
        return _alphas_cumprod(self.schedule, self.T)


@lru_cache
def _alphas_cumprod(schedule: str, T: int) -> FloatArray:
    alphas_cumprod: FloatArray = np.cumprod(1 - make_betas(schedule, T), dtype=np.float64)
    return alphas_cumprod


@dataclass(frozen=True)
class Training(Record):
    """Optimiser, batches and the choice of timesteps."""

    __pydantic_config__: ClassVar = FORBID
    batch_size: Annotated[int, "images an optimiser update (global)", Range(1)]
    lr: Annotated[float, "learning rate", Range(above=0)]
    micro_batch: Annotated[
        int | None,
        "images a backward pass, a divisor of batch_size and by default all of it: part of the artifact where "
        "reduction is exact; where it is fast, another word for work.micro_batch",
        Range(1),
    ] = None
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
        "how gradients are added: exact (in a fixed order: the same bytes for any number of processes) or fast (how a "
        "batch is cut among processes and passes is no part of the artifact)",
    ] = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.micro_batch or self.batch_size
        fits = self.reduction == "fast" or self.batch_size % size == 0
        check(fits, f"micro_batch {size} does not divide batch_size {self.batch_size}")
        check(self.lr_decay == "none" or self.lr_decay_steps > 0, "lr_decay needs lr_decay_steps > 0")

    @property
    def deciding(self) -> Training:
        """The same without what decides no byte: with the fast reduction, how a batch is cut."""
        return self if self.reduction == "exact" else replace(self, micro_batch=None)


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
                **{key: value for key, value in asdict(spec.network).items() if key != "dropout"},
            }
            for spec in (self, other)
        )
        if here.get("num_head_channels") is not None:
            here["num_heads"] = there.get("num_heads")  # not used then
        key = next((key for key in here if there.get(key) != here[key]), None)
        return None if key is None else f"its {key} is {there[key]}, not {here[key]}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for a recipe; without `min_snr` where it is not used, as in recipes from before there was one."""
        data = asdict(self)
        if self.objective.min_snr is None:
            del data["objective"]["min_snr"]
        return data

    def metadata(self, **names: str | int) -> dict[str, str]:
        """What a file of the run's weights says of itself, as safetensors' metadata: one key, for two have no order."""
        run = self.to_json()
        return {"ipdiff": json.dumps({**names, "gamma": run["objective"]["gamma"], "run": run}, sort_keys=True)}

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
            "training": Training(**training).deciding,
            "objective": Objective(**objective),
            "compute": Compute(**data["compute"]),
        }
        return RunSpec(**{**data, **parts})
