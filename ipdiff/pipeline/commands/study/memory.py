"""What training needs of a GPU's memory, and whether a card has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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
        image: bytes that the gradient of one image keeps; 0 where that is not known.
        batch: images of a forward pass.
    """

    name: str
    fixed: int
    image: int
    batch: int

    @property
    def total(self) -> int:
        """Bytes together, without workspaces and CUDA itself."""
        return self.fixed + self.image * self.batch

    def largest(self, memory: int) -> int:
        """Images of a forward pass that fit into so many bytes."""
        return max(0, memory - self.fixed) // self.image if self.image else 0

    def against(self, card: int | None) -> str:
        """In words; against a card of so many bytes, if there is one."""
        text = f"{bytes_text(self.fixed)} for weights and moments"
        if not self.image:
            return f"{text}; what its images need is not known"
        text += f", {self.image / 2**20:.1f} MiB an image: {bytes_text(self.total)} at batch {self.batch}"
        if card is None:
            return text
        if self.total <= card:
            return f"{text}, of {bytes_text(card)}"
        return f"{text}, more than {bytes_text(card)}, which hold {self.largest(card)} images at a time"


def trained(studies: Studies, cells: Iterable[Cell]) -> dict[str, RunSpec]:
    """The runs among these cells that are trained, by data set and model."""
    names = [cell.bindings for cell in cells if cell.stage.verb == "train"]
    return {f"{of['dataset']} {of['model']}": studies.of(of).run_spec(of["dataset"], of["model"], 0) for of in names}


def of_runs(runs: Mapping[str, RunSpec]) -> list[Memory]:
    """Of the runs that train on a GPU, equal ones once, under the first one's name."""
    found: dict[tuple[int, int, int], Memory] = {}
    for name, spec in runs.items():
        if spec.compute.device == "cuda":
            cost, precision = costs.of(spec), spec.compute.precision
            batch = spec.training.micro_batch or spec.training.batch_size
            image = 0 if spec.objective.gp_weight else cost.bytes_an_image(precision)  # the penalty's graph is another
            numbers = cost.fixed_bytes(precision), image, batch
            found.setdefault(numbers, Memory(name, *numbers))
    return list(found.values())
