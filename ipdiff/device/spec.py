"""What numbers are computed on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from ipdiff.parameters import FORBID, Range, Record, check

Precision = Literal["float32", "bfloat16", "float16"]


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
    compile: Annotated[
        bool,
        "compile the U-Net with torch.compile (GPUs; on an H200 its gradients missed bounds, benchmarks/README.md)",
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.precision != "float16" or self.device == "cuda",
            f"precision is float16 with device {self.device}; float16 needs cuda, use bfloat16 or float32",
        )
        check(
            not self.compile or self.device == "cuda",
            "compile is true with device cpu, where it does not pay; leave it out",
        )
