"""Samplers by their names, sizes of sample sets, and statistics of the prediction error."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from ipdiff.device.spec import Precision
from ipdiff.parameters import FORBID, Range, Record


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
