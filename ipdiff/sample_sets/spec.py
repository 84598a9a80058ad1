"""Samplers by their names, sizes of sample sets, and statistics of the prediction error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from string import Formatter
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from ipdiff.device.spec import Precision
from ipdiff.parameters import FORBID, Range, Record, check
from ipdiff.schedule import respace


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
        exposure = self.exposure_samples if sampler.row.from_images else None
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
class SamplerKind:
    """How samplers of one kind are named and run.

    Attributes:
        name: template of their names in paths: `{steps}` a whole number, `{grid}` a rule of `schedule.respace` (none is
            guided-diffusion's), every other field a number that the function takes as an option.
        label: template of their names in tables; `{grid}` there is ` (rule)` or nothing.
        written: how a message writes such names.
        header: of a table's column in which the number of steps alone says which sampler is meant; empty: none can.
        options: what the function takes besides, each a field of `name`, and the numbers it may be.
        from_images: the chain starts from real images diffused to `steps`, and is a part of the full one.
    """

    name: str
    label: str
    written: str
    header: str = ""
    options: Mapping[str, Range] = field(default_factory=dict)
    from_images: bool = False

    def match(self, text: str) -> re.Match[str] | None:
        """Read a name: groups are the fields of `name`."""
        fields = {"steps": r"\d+", "grid": "uniform|quad|ddim|"}
        parts = (
            re.escape(literal) + (f"(?P<{key}>{fields.get(key, NUMBER)})" if key else "")
            for literal, key, _, _ in Formatter().parse(self.name)
        )
        return re.fullmatch("".join(parts), text)


NUMBER = r"\d+(?:\.\d+)?"

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
        written="ddimETA-N, ddimETA-uniformN, ddimETA-quadN",
        options={"eta": Range(0, 1)},
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
class Sampler(Record):
    """A sampler as it stands in paths: `ancestral-100`, `ddim0.5-quad20`, `exposure-300`.

    Attributes:
        kind: a key of `SAMPLERS`.
        steps: of the chain: the paper's T'.
        grid: which steps of the full chain are kept, by rule; see `schedule.respace`.
        options: what the chain's function takes besides, by name.
    """

    kind: str
    steps: Annotated[int, Range(1)]
    grid: str = ""
    options: tuple[tuple[str, float], ...] = ()

    @staticmethod
    def parse(text: str) -> Sampler:
        """Read a sampler's name.

        Raises:
            ValueError: no such name, an option out of range, or a second way to write the same sampler.
        """
        for kind, row in SAMPLERS.items():
            if match := row.match(text):
                found = match.groupdict()
                options = tuple((key, float(found[key])) for key in row.options)
                try:
                    for key, value in options:
                        allowed = row.options[key]
                        check(allowed.holds(value), f"{key} is {value:g}; use {allowed.text()}")
                    return Sampler(kind, int(found["steps"]), found.get("grid", ""), options)
                except ValueError as error:
                    raise ValueError(f"sampler '{text}': {error}") from None
        ways = ", ".join(row.written for row in SAMPLERS.values())
        raise ValueError(f"sampler '{text}' is unknown; use {ways}, e.g. ancestral-100 or ddim0.5-quad20")

    @property
    def row(self) -> SamplerKind:
        """What there is to know of its kind."""
        return SAMPLERS[self.kind]

    @property
    def name(self) -> str:
        """Its one name: numbers without superfluous zeros."""
        plain = {key: format(Decimal(repr(value)).normalize(), "f") for key, value in self.options}
        return self.row.name.format(steps=self.steps, grid=self.grid, **plain)

    @property
    def spacing(self) -> str:
        """The rule for `schedule.respace`."""
        return f"{self.grid}{self.steps}"

    @property
    def eta(self) -> float | None:
        """DDIM's share of noise; None for samplers that have none."""
        return dict(self.options).get("eta")

    def label(self) -> str:
        """How a table names it: T' and, for DDIM, eta and the grid."""
        grid = f" ({self.grid})" if self.grid else ""
        numbers = {key: f"{value:g}" for key, value in self.options}
        return self.row.label.format(steps=self.steps, grid=grid, **numbers)


def kept(sampler: Sampler, T: int, of: str = "") -> NDArray[np.int64]:
    """The timesteps of a chain of T steps that a sampler's own chain keeps, ascending.

    Raises:
        ValueError: more steps than T, or a grid that this chain does not have; `of` says whose chain it is.
    """
    if sampler.steps > T:
        raise ValueError(f"sampler {sampler.name} asks for T' = {sampler.steps}, more than T = {T}{of}; use 1..{T}")
    return np.arange(T) if sampler.row.from_images else respace(T, sampler.spacing)


def nfe(sampler: Sampler, T: int) -> int:
    """Network evaluations an image."""
    return sampler.steps if sampler.row.from_images else len(kept(sampler, T))
