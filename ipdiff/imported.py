"""`ipdiff import`: a checkpoint of another code base as a run of this project.

It lies where a trained checkpoint would, with a recipe that names the file it came from, and is tracked by a .dvc
file under imported/: both engines take it as it is, `dvc push`, `ipdiff pull` and `ipdiff verify` treat it like any
artifact.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipdiff import artifact, config, grid
from ipdiff.config import PARAMS, Params
from ipdiff.errors import ConfigError, IntegrityError, UserError
from ipdiff.grid import Cell
from ipdiff.locks import locked


@dataclass(frozen=True)
class Imported:
    """What an import did."""

    directory: str
    tensors: int
    parameters: int
    format: str
    pointer: Path | None
    """The .dvc file to commit; None where nothing can be recorded."""
    untracked: str | None = None
    """Why that is."""

    def __str__(self) -> str:
        kept = (
            f"commit {self.pointer}; `dvc push` publishes the weights"
            if self.pointer
            else f"nothing keeps track of it: {self.untracked}; then import it again"
        )
        return f"{self.directory}: {self.tensors} tensors, {self.parameters:,} parameters ({self.format}); {kept}"


def import_checkpoint(path: Path, run: str, *, seed: int = 0, step: int | None = None) -> Imported:
    """Check a checkpoint file against the network of a model and publish it as that model's run.

    Args:
        path: see `ipdiff.checkpoint.reading.read`.
        run: DATASET/MODEL; the model has `imported: true` in params.yaml.
        seed: the run's seed; sampling draws its noise by it.
        step: the checkpoint's training step; the one that tables read if None.

    Raises:
        UserError: the file is no checkpoint of this network, the model is not one to import, or other weights are
            there already. Nothing is written then.
    """
    from ipdiff import sync
    from ipdiff.checkpoint import checking, reading

    params = config.load()
    cell = _cell(params, run, seed, step)
    spec = params.run_spec(cell.bindings["dataset"], cell.bindings["model"], seed)
    found = reading.read(path)
    checking.check(found.tensors, spec, str(path), run)
    source = {
        "name": path.name,
        "format": found.format,
        "md5": artifact.file_digest(path),
        "sha256": _sha256(path),
    }
    _refuse_other(cell, source)
    recipe = {
        "cell": cell.directory,
        "stage": cell.stage.verb,
        "source": source,
        "run": spec.to_json(),
        "params": {},
        "inputs": {},
    }
    directory, why = Path(cell.directory), sync.obstacle()
    with locked(artifact.lock_of(directory)), artifact.publishing(directory, cell.stage.files, recipe) as made:
        _save(found.tensors, made.staging / cell.stage.files[0])
    return Imported(
        directory=cell.directory,
        tensors=len(found.tensors),
        parameters=sum(tensor.numel() for tensor in found.tensors.values()),
        format=found.format,
        pointer=sync.track(cell) if why is None else None,
        untracked=why,
    )


def _cell(params: Params, run: str, seed: int, step: int | None) -> Cell:
    dataset, slash, model = run.partition("/")
    if not slash or not model or "/" in model:
        raise UserError(f"--as is '{run}'; write DATASET/MODEL, e.g. cifar10/adm-ip-official")
    settings = params.dataset(dataset)
    if model not in params.models:
        line = f"{model}: {{family: adm, imported: true}}"
        near = config.nearest(model, [name for name, known in params.models.items() if known.imported])
        raise ConfigError(f"model '{model}' is not in {PARAMS}{near or ';'} to import one, add to models: {line}")
    if not params.models[model].imported:
        known = params.models[model]
        raise ConfigError(
            f"model {model} is trained here; give the imported one a key of its own, e.g. add to {PARAMS} models: "
            f"{model}-official: {{family: {known.family}, imported: true}}"
        )
    step = settings.last_step(model) if step is None else step
    return grid.Grid(params).cell("import", dataset=dataset, model=model, seed=str(seed), step=str(step))


def _refuse_other(cell: Cell, source: dict[str, str]) -> None:
    """Leave a checkpoint alone that came from elsewhere: samples may have been drawn from it."""
    path = Path(cell.outputs[-1])
    if not path.exists():
        return
    try:
        there = artifact.read_recipe(path).get("source", {})
    except (UserError, IntegrityError):
        return
    if there.get("sha256") != source["sha256"]:
        name = there.get("name", "a training run here")
        raise UserError(f"{cell.directory} holds the checkpoint of {name}; delete that folder to replace it")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _save(tensors: dict[str, Any], path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    # cloned: EMA weights of fp16 training are views of one flat tensor, which safetensors refuses
    save_file({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}, path)
