"""How fast arithmetic is done: by a device that is named, or as one data set's network was measured to run.

A rate is (least, likely, most), in FLOP/s. What nobody measured and nobody named has none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ipdiff.device.spec import Compute
from ipdiff.errors import UserError
from ipdiff.nets import costs
from ipdiff.pipeline.config import Studies
from ipdiff.pipeline.config.naming import suggest
from ipdiff.spec import FAMILIES

Kind = Literal["train", "sample"]
"""What is done: an update (forward and backward), or evaluations."""
Rate = tuple[float, float, float]


@dataclass(frozen=True)
class Device:
    """A GPU as its maker describes it.

    Attributes:
        half: TFLOP/s of dense matrix products in bfloat16 (float16 where it has none), summed in float32.
        single: TFLOP/s in float32, without TF32.
        memory: GB.
        bfloat16: whether it has it.
    """

    half: float
    single: float
    memory: int
    bfloat16: bool = True


DEVICES = {
    "v100": Device(125, 15.7, 16, bfloat16=False),
    "v100-32gb": Device(125, 15.7, 32, bfloat16=False),
    "a100": Device(312, 19.5, 40),
    "a100-80gb": Device(312, 19.5, 80),
    "l40s": Device(362, 91.6, 48),
    "rtx4090": Device(165, 82.6, 24),
    "h100": Device(989, 67, 80),
    "h200": Device(989, 67, 141),
}
"""Published peaks (NVIDIA's data sheets; of V100, A100, H100 and H200 the SXM modules)."""

SHARES: dict[Kind, dict[float, float]] = {
    "train": {18.5e9: 160 / 989, 219e9: 227 / 989, 798e9: 280 / 989},
    "sample": {18.5e9: 221 / 989, 219e9: 308 / 989, 798e9: 327 / 989},
}
"""Of the peak that this code reaches, by the arithmetic of a network's evaluation: CIFAR-10's at batch 128, the one for
64 pixels at batch 32, FFHQ's at batch 16."""
SOURCE = "measured on one H200 with torch 2.11, in bfloat16"


def share(kind: Kind, flops: float) -> float:
    """Of the measured network whose arithmetic is nearest."""
    return SHARES[kind][min(SHARES[kind], key=lambda known: abs(math.log(known / flops)))]


def _is_single(compute: Compute) -> bool:
    """float16 and bfloat16 are equally fast."""
    return compute.precision == "float32"


@dataclass(frozen=True)
class Named:
    """A device by its name, from `DEVICES`: its published peak, times a measured share of another's."""

    name: str

    @staticmethod
    def parse(text: str) -> Named:
        """In capital or small letters; raises UserError where the name is unknown."""
        if (name := text.lower()) not in DEVICES:
            raise UserError(
                f"--device is '{text}'{suggest(name, DEVICES)}; for another, --speed as `ipdiff bench` says"
            )
        return Named(name)

    @property
    def device(self) -> Device:
        """What its maker says of it."""
        return DEVICES[self.name]

    def rate(self, kind: Kind, flops: float, compute: Compute) -> Rate | None:
        """Of work whose one evaluation has so much arithmetic; None on another kind of device."""
        if compute.device != "cuda":
            return None
        peak = 1e12 * (self.device.single if _is_single(compute) else self.device.half)
        known = SHARES[kind].values()
        return peak * min(known), peak * share(kind, flops), peak * max(known)

    def __str__(self) -> str:
        """In words, for a plan."""
        low, high = (
            ", ".join(f"{100 * part:.0f}" for part in sorted(SHARES[kind].values())) for kind in ("train", "sample")
        )
        return (
            f"one {self.name}, {self.device.half:g} TFLOP/s in half precision and {self.device.single:g} in float32 as "
            f"published, at a share of them: {low} % in training, {high} % in sampling, by the size of the network, "
            f"{SOURCE} (float32 and other devices were not measured); the range: at the highest share, at the lowest"
        )


@dataclass(frozen=True)
class Speed:
    """How fast one data set's network is trained and sampled on one device.

    Attributes:
        dataset: the data set it was measured on.
        train: images/s of training.
        sample: image-steps/s of sampling (network evaluations).
    """

    dataset: str
    train: float
    sample: float

    @staticmethod
    def parse(text: str) -> Speed:
        """Read DATASET=TRAIN,SAMPLE, e.g. cifar10=5000,17000; UserError says what it looks like."""
        name, _, numbers = text.partition("=")
        try:
            train, sample = (float(number) for number in numbers.split(","))
            if not (name and 0 < train < math.inf and 0 < sample < math.inf):
                raise ValueError
        except ValueError:
            raise UserError(
                f"--speed is '{text}'; write DATASET=TRAIN,SAMPLE in images/s and image-steps/s, "
                "e.g. --speed cifar10=5000,17000"
            ) from None
        return Speed(name, train, sample)

    def of(self, studies: Studies) -> Measured:
        """With the network that it is the speed of. Raises ConfigError where there is no such data set."""
        params, dataset = studies.owner(self.dataset), studies.dataset(self.dataset)
        family = next(kind for kind in FAMILIES if getattr(dataset.families, kind) is not None)
        model = next(key for key, model in params.models.items() if model.family == family)
        flops = costs.of(params.run_spec(self.dataset, model, 0)).flops
        return Measured(self, flops, {"train": dataset.compute, "sample": dataset.sampling_compute})


@dataclass(frozen=True)
class Measured:
    """A speed, with the arithmetic of its network and what it was computed on."""

    speed: Speed
    flops: float
    computes: dict[Kind, Compute]

    def rate(self, kind: Kind, flops: float, compute: Compute) -> Rate | None:
        """As `Named.rate`; None in a precision or on a device that was not measured."""
        known = self.computes[kind]
        if compute.device != known.device or _is_single(compute) != _is_single(known):
            return None
        here = self.flops * (costs.UPDATE * self.speed.train if kind == "train" else self.speed.sample)
        if compute.device != "cuda":
            return here, here, here
        other = here * share(kind, flops) / share(kind, self.flops)
        return min(here, other), here, max(here, other)

    def __str__(self) -> str:
        """In words, for a plan."""
        return (
            f"one device that trains {self.speed.train:g} images/s and samples {self.speed.sample:g} image-steps/s of "
            f"{self.speed.dataset}; other networks at the same FLOP/s; the range, on a GPU: at more the larger they "
            f"are, as {SOURCE}"
        )
