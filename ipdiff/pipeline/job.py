"""What a stage is given: a cell about to be made, its parameters and verified inputs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipdiff.errors import IntegrityError, UserError
from ipdiff.metrics.spec import FEATURES
from ipdiff.pipeline import config, grid, selfcheck
from ipdiff.pipeline.config.spec import Dataset
from ipdiff.pipeline.grid import Cell
from ipdiff.pipeline.stages import IMPORT, STAGES, START
from ipdiff.pipeline.store.artifact import Publication
from ipdiff.pipeline.store.code_digests import code_digest
from ipdiff.sample_sets.spec import Analysis
from ipdiff.spec import RunSpec
from ipdiff.work import launch, recipes
from ipdiff.work.files import md5
from ipdiff.work.recipes import RECIPE
from ipdiff.work.shards import Shards
from ipdiff.work.train_states import States

if TYPE_CHECKING:
    from ipdiff.metrics.features.extractors import Network
    from ipdiff.training.segment import Setup

WORK = Path("work")


class Job:
    """A cell about to be made: what its stage's `run` needs, from params.yaml and its inputs."""

    def __init__(self, params: config.Params, cell: Cell, inputs: dict[str, str]) -> None:
        """`inputs`: verified paths and digests."""
        self.params, self.cell, self.inputs = params, cell, inputs
        self.names = cell.bindings

    def begun(self) -> dict[str, Any]:
        """What the cell's recipe says beforehand."""
        cell = self.cell
        return {
            "cell": cell.directory,
            "stage": cell.stage.verb,
            "command": cell.command,
            "code": cell.code,
            "params": self.params.values(cell.params),
            "inputs": self.inputs,
        }

    @property
    def dataset(self) -> Dataset:
        """The cell's data set."""
        return self.params.dataset(self.names["dataset"])

    @property
    def analysis(self) -> Analysis:
        """What the cell's data set says of analyses."""
        if (settings := self.dataset.analysis) is None:
            raise UserError(f"datasets.{self.names['dataset']}.analysis is missing")
        return settings

    def path(self, name: str) -> Path:
        """The input file of this name."""
        return self.paths(name)[0]

    def paths(self, name: str) -> list[Path]:
        """All input files of this name."""
        return [Path(path) for path in self.inputs if path.endswith(f"/{name}")]

    def recipe(self) -> dict[str, Any]:
        """The recipe among the inputs."""
        return recipes.read(self.path(RECIPE))

    def recipes(self) -> list[dict[str, Any]]:
        """All recipes among the inputs."""
        return [recipes.read(path) for path in self.paths(RECIPE)]

    def network(self) -> Network:
        """The data set's feature network."""
        from ipdiff.metrics.features import inception_file
        from ipdiff.metrics.features.extractors import Network

        name, settings = self.dataset.features, self.dataset.feature_settings
        file = FEATURES[name].file
        made = self.path(STAGES[name].files[0]) if file == "stage" else None
        return Network(name, inception_file.obtain(settings) if file == "published" else made, settings)

    @property
    def about(self) -> dict[str, str | int]:
        """The cell's wildcards, as its results name them."""
        wildcards = self.cell.stage.wildcards
        return {name: int(self.names[name]) if name in ("seed", "step") else self.names[name] for name in wildcards}

    @property
    def start(self) -> Path | None:
        """The weights that the run is trained on from, if it is."""
        return Path(START.format(**self.names), IMPORT.files[0]) if "start_model" in self.names else None

    def setup(self, spec: RunSpec) -> Setup:
        """What a run is trained with here.

        Raises:
            UserError: it is to be trained on from the weights of another network.
        """
        from ipdiff.training.segment import Setup

        if self.start is not None:
            there = RunSpec.from_json(recipes.read(self.start.with_name(RECIPE))["run"])
            if wrong := spec.unlike(there):
                raise UserError(f"{self.start} is of another network than params.yaml has now: {wrong}; make it again")
        selfcheck.trust(spec.family, spec.compute)
        work, asked = self.params.work, self.params.family(self.names["dataset"], self.names["model"]).training
        if work.micro_batch is None and asked.reduction == "fast":
            work = dataclasses.replace(work, micro_batch=asked.micro_batch)
        names = {name: self.names[name] for name in ("dataset", "model")}
        return Setup(spec, self.path("images.npy"), self.states(spec), work, self.start, *launch.place(), names)

    def run_spec(self) -> RunSpec:
        """The training run of the cell's names."""
        names = self.names
        return self.params.run_spec(names["dataset"], names["model"], int(names["seed"]))

    def checkpoint_spec(self) -> RunSpec:
        """The run of the checkpoint among the inputs, by its recipe.

        Raises:
            UserError: it was imported for another network or noise process than params.yaml has now: no engine makes
                it anew, as it does with a trained one.
        """
        recipe = self.recipe()
        recorded = RunSpec.from_json(recipe["run"])
        if recipe["stage"] == IMPORT.verb:
            now = self.run_spec()
            changed = [key for key in ("family", "network", "diffusion") if getattr(recorded, key) != getattr(now, key)]
            if changed:
                where = f"datasets.{self.names['dataset']}.families.{now.family}.{changed[0]}"
                raise UserError(f"{recipe['cell']} was imported with another {where}; delete that folder, import again")
        return recorded

    def states(self, spec: RunSpec) -> States:
        """The run's train states: their directory's name is the digest of all that decides the run's bytes."""
        names, train = self.names, STAGES["train"]
        code = code_digest(train.module, grid.rows_of(self.params, names), train.runs)
        start = [] if self.start is None else [self.inputs[str(self.start)]]
        name = _digest(spec.to_json(), self.inputs[str(self.path("images.npy"))], code, *start)
        run = WORK / "states" / names["dataset"] / names["model"] / f"s{names['seed']}"
        return States(run / name, self.params.work.states_kept)

    def checkpoint_states(self) -> set[str]:
        """Digests of the states that the run's checkpoints name, as far as they are here."""
        train = STAGES["train"]
        found = set[str]()
        for path in Path().glob(train.outputs[-1].format(**{**self.names, "step": "*"})):
            try:
                found.add(str(recipes.read(path).get("state")))
            except IntegrityError:  # its reader will say so
                continue
        return found

    def shards(self) -> Shards:
        """Where finished parts of the cell are saved until it is published."""
        name = _digest(self.inputs, self.params.values(self.cell.params), self.cell.code)
        return Shards(WORK / self.cell.directory / name, *launch.place())

    def shared(self, made: Publication) -> Shards:
        """`shards`, of which those of other versions are removed now, and these when the cell is published."""
        shards = self.shards()
        if shards.first:
            shards.drop_others()
            made.afterwards = shards.drop
        return shards


def _digest(*deciding: Any) -> str:
    return md5(json.dumps(deciding, sort_keys=True).encode())
