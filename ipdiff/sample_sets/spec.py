"""Samplers by their names, sizes of sample sets, and statistics of the prediction error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from string import Formatter
from typing import Annotated, ClassVar, get_args

import numpy as np
from numpy.typing import NDArray

from ipdiff.device.spec import Precision
from ipdiff.parameters import FORBID, Range, Record, check
from ipdiff.schedule import FloatArray, IntArray, respace
from ipdiff.spec import Diffusion


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
        """Images of a sampler's set: as many as its name says; exposure sets may be smaller."""
        exposure = self.exposure_samples if sampler.row.from_images else None
        return sampler.images or exposure or self.num_samples


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
class SamplerKind:
    """How samplers of one kind are named and run.

    Attributes:
        name: template of their names in paths: `{steps}` a whole number, `{grid}` a rule of `schedule.respace` (none is
            guided-diffusion's), every other field a number that the function takes as an option.
        label: template of their names in tables; `{grid}` there is ` (rule)` or nothing.
        written: how a message writes such names, without grid.
        method: template of what tables and figures call it where T' stands elsewhere; `name` up to the dash if empty.
        header: of a table's column in which the number of steps alone says which sampler is meant; empty: none can.
        options: what the function takes besides, each a field of `name`, and the numbers it may be.
        from_images: the chain starts from real images diffused to `steps`, and is a part of the full one.
    """

    name: str
    label: str
    written: str
    method: str = ""
    header: str = ""
    options: Mapping[str, Range] = field(default_factory=dict)
    from_images: bool = False

    def match(self, text: str) -> re.Match[str] | None:
        """Read a name: groups are the fields of `name`."""
        fields = {"steps": r"\d+", "grid": "|".join((*GRIDS, ""))}
        parts = (
            re.escape(literal) + (f"(?P<{key}>{fields.get(key, NUMBER)})" if key else "")
            for literal, key, _, _ in Formatter().parse(self.name)
        )
        return re.fullmatch("".join(parts), text)


GRIDS = ("uniform", "quad", "ddim", "logsnr", "karras")
"""Rules of `schedule.respace` that a name may have; none is guided-diffusion's."""
MOST = 80
"""Characters of a sampler's name."""
NUMBER = r"\d+(?:\.\d+)?"
_NAME = re.compile(
    rf"(?P<chain>.+?)(?:-es(?:(?P<k>{NUMBER})t\+)?(?P<b>{NUMBER}))?(?:-(?P<precision>{'|'.join(get_args(Precision))}))?"
    r"(?:-n(?P<images>\d+))?"
)
"""A sampler's name: its chain, and what may stand behind it, in this order."""

SAMPLERS = {
    "ancestral": SamplerKind(
        name="ancestral-{steps}",
        label="T' = {steps}",
        written="ancestral-N",
        header="T'",
    ),
    "ddim": SamplerKind(
        name="ddim{eta}-{grid}{steps}",
        label="eta = {eta}, T' = {steps}{grid}",
        written="ddimETA-N",
        method="DDIM, eta = {eta}{grid}",
        options={"eta": Range(0, 1)},
    ),
    "dpmpp2m": SamplerKind(
        name="dpmpp2m-{grid}{steps}",
        label="DPM-Solver++(2M), T' = {steps}{grid}",
        written="dpmpp2m-N",
        method="DPM-Solver++(2M){grid}",
    ),
    "unipc": SamplerKind(
        name="unipc-{grid}{steps}",
        label="UniPC-2, T' = {steps}{grid}",
        written="unipc-N",
        method="UniPC-2{grid}",
    ),
    "exposure": SamplerKind(
        name="exposure-{steps}",
        label="{steps} reverse steps",
        written="exposure-t",
        header="reverse steps",
        from_images=True,
    ),
}
"""Kinds of samplers by name; a new one is a row here, and one with its function in `ipdiff.samplers.CHAINS`."""


@dataclass(frozen=True)
class EpsScale(Record):
    """Epsilon scaling: in step i of the sampling chain (0 the last) the predicted eps is divided by k i + b.

    Source: arXiv:2308.15321 section 4; published values in `ipdiff/report/paper_values.yaml`.
    """

    k: Annotated[float, Range(0)]
    b: Annotated[float, Range(above=0)]

    def __post_init__(self) -> None:
        super().__post_init__()
        check((self.k, self.b) != (0, 1), "eps is divided by 1; leave the suffix -es out")

    @property
    def name(self) -> str:
        """Its one name: `es1.017`, `es0.0025t+1`."""
        return f"es{plain(self.k)}t+{plain(self.b)}" if self.k else f"es{plain(self.b)}"

    def label(self) -> str:
        """How a table says it."""
        return f"eps / ({plain(self.k)} t + {plain(self.b)})" if self.k else f"eps / {plain(self.b)}"

    def over(self, steps: int) -> NDArray[np.float64]:
        """The divisors of a chain of so many steps, [steps] float64."""
        return np.linspace(self.b, self.b + self.k * (steps - 1), steps)


@dataclass(frozen=True)
class Sampler(Record):
    """A sampler as it stands in paths: `ancestral-100`, `ddim0.5-quad20`, `exposure-300`, `unipc-20-es1.01`.

    Attributes:
        kind: a key of `SAMPLERS`.
        steps: of the chain: the paper's T'.
        grid: which steps of the full chain are kept, by rule; see `schedule.respace`.
        options: what the chain's function takes besides, by name.
        eps_scale: what the predicted eps is divided by; None leaves it as it is.
        precision: of the network, where it is not the data set's (`Dataset.sampling_compute`).
        images: of the set, where they are not the data set's (`Sampling.count`).
    """

    kind: str
    steps: Annotated[int, Range(1)]
    grid: str = ""
    options: tuple[tuple[str, float], ...] = ()
    eps_scale: EpsScale | None = None
    precision: Precision | None = None
    images: Annotated[int | None, Range(2)] = None

    @staticmethod
    def parse(text: str) -> Sampler:
        """Read a sampler's name.

        Raises:
            ValueError: no such name, an option out of range, or a second way to write the same sampler.
        """
        if len(text) > MOST:
            raise ValueError(f"sampler {text[:40]!r}... has {len(text)} characters; use at most {MOST}")
        said = parts.groupdict() if (parts := _NAME.fullmatch(text)) else {"chain": text}
        for kind, row in SAMPLERS.items():
            if match := row.match(said["chain"]):
                found = match.groupdict() | said
                options = tuple((key, float(found[key])) for key in row.options)
                try:
                    for key, value in options:
                        allowed = row.options[key]
                        check(allowed.holds(value), f"{key} is {value:g}; use {allowed.text()}")
                    scale = EpsScale(float(found["k"] or 0), float(found["b"])) if found["b"] else None
                    images = int(found["images"]) if found["images"] else None
                    precision = next((one for one in get_args(Precision) if one == found["precision"]), None)
                    steps, grid = int(found["steps"]), found.get("grid", "")
                    return Sampler(kind, steps, grid, options, scale, precision, images)
                except ValueError as error:
                    raise ValueError(f"sampler {text!r}: {error}") from None
        ways = ", ".join(row.written for row in SAMPLERS.values())
        raise ValueError(
            f"sampler {text!r} is unknown; use {ways}, e.g. ancestral-100 or ddim0.5-quad20 "
            f"(grids: {', '.join(GRIDS)}), and behind it -esB or -esKt+B, a precision, -nIMAGES"
        )

    @property
    def row(self) -> SamplerKind:
        """What there is to know of its kind."""
        return SAMPLERS[self.kind]

    @property
    def name(self) -> str:
        """Its one name: numbers without superfluous zeros."""
        numbers = {key: plain(value) for key, value in self.options}
        chain = self.row.name.format(steps=self.steps, grid=self.grid, **numbers)
        scale = self.eps_scale.name if self.eps_scale else ""
        images = f"n{self.images}" if self.images else ""
        return "-".join(filter(None, (chain, scale, self.precision, images)))

    @property
    def bare(self) -> bool:
        """Whether nothing stands behind its chain: no scaling, no precision and no size of its own."""
        return self == replace(self, eps_scale=None, precision=None, images=None)

    @property
    def method(self) -> str:
        """How it is named where T' stands elsewhere: `ancestral`, `DDIM, eta = 0 (quad), eps / 1.01`."""
        return self._said(self.row.method or self.row.name.partition("-")[0])

    def label(self) -> str:
        """How a table names it: T' and, for DDIM, eta and the grid."""
        return self._said(self.row.label)

    def _said(self, template: str) -> str:
        grid = f" ({self.grid})" if self.grid else ""
        numbers = {key: f"{value:g}" for key, value in self.options}
        text = template.format(steps=self.steps, grid=grid, **numbers)
        scale = self.eps_scale.label() if self.eps_scale else ""
        images = f"N = {self.images:,}" if self.images else ""
        return ", ".join(filter(None, (text, scale, self.precision, images)))


def plain(value: float) -> str:
    """A number without exponent and superfluous zeros."""
    return format(Decimal(repr(value)).normalize(), "f")


def kept(sampler: Sampler, process: Diffusion, of: str = "") -> IntArray:
    """See `kept_of`."""
    return kept_of(sampler, process.alphas_cumprod(), of)


def kept_of(sampler: Sampler, alphas_cumprod: FloatArray, of: str = "") -> IntArray:
    """The timesteps of a chain, given by alpha-bar of its T steps, that a sampler's own chain keeps, ascending.

    Raises:
        ValueError: more steps than T, or a grid that this chain does not have; `of` says whose chain it is.
    """
    T = len(alphas_cumprod)
    if sampler.steps > T:
        raise ValueError(f"sampler {sampler.name} asks for T' = {sampler.steps}, more than T = {T}{of}; use 1..{T}")
    if sampler.row.from_images:
        return np.arange(T)
    return respace(T, f"{sampler.grid}{sampler.steps}", alphas_cumprod)


def nfe(sampler: Sampler, process: Diffusion) -> int:
    """Network evaluations an image."""
    return sampler.steps if sampler.row.from_images else len(kept(sampler, process))
