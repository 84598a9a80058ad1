"""What training needs of a GPU's memory, and whether a card has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass

from ipdiff.nets import costs
from ipdiff.pipeline.commands.store.verify import bytes_text
from ipdiff.pipeline.config import Studies
from ipdiff.pipeline.grid import Cell
from ipdiff.spec import RunSpec


@dataclass(frozen=True)
class Memory:
    """What a run holds on its GPU while it trains.

    Attributes:
        name: data set and model; of runs that need the same, the first.
        fixed: bytes of weights, gradients, moments and averages.
        image: bytes that the gradient of one image keeps where the rest is made again; 0 where that is not known.
        whole: bytes that it keeps where there is room for all.
        batch: images of an update.
        fixed_pass: images of a pass, where that is part of the artifact; else passes are cut as the memory allows.
    """

    name: str
    fixed: int
    image: int
    whole: int
    batch: int
    fixed_pass: int | None

    @property
    def images(self) -> int:
        """Of a pass, where the memory does not cut it."""
        return self.fixed_pass or self.batch

    @property
    def total(self) -> int:
        """Bytes together, the least that such a pass takes, without workspaces and CUDA itself."""
        return self.fixed + self.image * self.images

    @property
    def least(self) -> int:
        """Bytes without which it cannot be trained: with the smallest pass that there may be."""
        return self.fixed + self.image * (self.fixed_pass or 1)

    def largest(self, memory: int) -> int:
        """Images of a pass that fit into so many bytes."""
        return max(0, memory - self.fixed) // self.image if self.image else 0

    def against(self, card: int | None) -> str:
        """In words; against a card of so many bytes, if there is one."""
        text = f"{bytes_text(self.fixed)} for weights and moments"
        if not self.image:
            return f"{text}; what its images need is not known"
        text += (
            f", {self.image / 2**20:.1f} MiB an image ({self.whole / 2**20:.1f} where nothing has to be made again): "
            f"{bytes_text(self.total)} for {self.images} at a time"
        )
        if card is None:
            return text
        if self.total <= card:
            return f"{text}, of {bytes_text(card)}"
        cut = "" if self.fixed_pass else ", and it is cut so"
        return f"{text}, more than {bytes_text(card)}, which hold {self.largest(card)} at a time{cut}"


def trained(studies: Studies, cells: Iterable[Cell]) -> dict[str, RunSpec]:
    """The runs among these cells that are trained, by data set and model."""
    names = [cell.bindings for cell in cells if cell.stage.verb == "train"]
    return {f"{of['dataset']} {of['model']}": studies.of(of).run_spec(of["dataset"], of["model"], 0) for of in names}


def of_runs(runs: Mapping[str, RunSpec]) -> list[Memory]:
    """Of the runs that train on a GPU, equal ones once, under the first one's name."""
    found: dict[tuple[int | None, ...], Memory] = {}
    for name, spec in runs.items():
        if spec.compute.device != "cuda":
            continue
        cost, precision, training = costs.of(spec), spec.compute.precision, spec.training
        known = not spec.objective.gp_weight  # the penalty's graph is another
        image, whole = (cost.bytes_an_image(precision, everything=all_) if known else 0 for all_ in (False, True))
        cut = None if training.reduction == "fast" else training.micro_batch or training.batch_size
        one = Memory(name, cost.fixed_bytes(precision), image, whole, training.batch_size, cut)
        found.setdefault(astuple(one)[1:], one)
    return list(found.values())
