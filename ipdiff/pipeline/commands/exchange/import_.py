"""`ipdiff import`: a checkpoint of another code base as a run of this project.

It lies where a trained checkpoint would, with a recipe that names the file it came from, and is tracked by a .dvc
file under imported/: both engines take it as it is, `dvc push`, `ipdiff pull` and `ipdiff verify` treat it like any
artifact.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipdiff.errors import ConfigError, IntegrityError, UserError
from ipdiff.pipeline import config, grid
from ipdiff.pipeline.config import Params, Studies
from ipdiff.pipeline.grid import Cell
from ipdiff.pipeline.store import artifact
from ipdiff.work import recipes
from ipdiff.work.locks import locked


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
    unread: str = ""
    """What to write so that tables read this step, where they read another."""

    def __str__(self) -> str:
        kept = (
            f"commit {self.pointer}; `dvc push` publishes the weights"
            if self.pointer
            else f"nothing keeps track of it: {self.untracked}; then import it again"
        )
        found = f"{self.tensors} tensors, {self.parameters:,} parameters ({self.format})"
        return f"{self.directory}: {found}; {kept}{self.unread}"


def import_checkpoint(path: Path, run: str, *, seed: int = 0, step: int | None = None) -> Imported:
    """Check a checkpoint file against the network of a model and publish it as that model's run.

    Args:
        path: see `ipdiff.interop.reading.read`.
        run: DATASET/MODEL; the model has `imported: true` in params.yaml.
        seed: the run's seed; sampling draws its noise by it.
        step: the checkpoint's training step; if None the one that the file or its name tells, or else the one that the
            data set's `final_step` has for this model itself.

    Raises:
        UserError: the file is no checkpoint of this network, its step is not known, the model is not one to import, or
            other weights are there already. Nothing is written then.
    """
    from ipdiff.interop import checking, reading
    from ipdiff.pipeline.engines import sync

    known = grid.load()
    dataset, model = _names(known.studies, run)
    params = known.studies.owner(dataset)
    spec = params.run_spec(dataset, model, seed)
    found = reading.read(path)
    checking.check(found.tensors, spec, str(path), run)
    settings = params.dataset(dataset)
    if step is None and (step := found.step or named_step(path.name) or settings.final_step.get(model)) is None:
        raise UserError(
            f"{path}: its name does not say the training step, as ema_0.9999_460000.pt and model460000.pt do; give it "
            f"with --step N (tables read step {settings.last_step(model)} of {model})"
        )
    cell = known.cell("import", dataset=dataset, model=model, seed=str(seed), step=str(step))
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
        metadata = spec.metadata(dataset=dataset, model=model, step=step)
        _save(found.tensors, made.staging / cell.stage.files[0], metadata)
    return Imported(
        directory=cell.directory,
        tensors=len(found.tensors),
        parameters=sum(tensor.numel() for tensor in found.tensors.values()),
        format=found.format,
        pointer=sync.track(cell) if why is None else None,
        untracked=why,
        unread=_unread(params, dataset, model, step),
    )


_STEP_IN_NAME = re.compile(
    r"(?:^|[_-])(?:ema_\d*\.?\d+_(\d+)|model(\d{6,})|(?:ckpt_|model-)(\d+))(?:\.(?:pt|pth|ckpt|bin|safetensors))?$"
)
"""guided-diffusion's ema_RATE_STEP.pt and modelSTEP.pt (six digits or more), the DDIM code's ckpt_STEP.pth, and
model-STEP.ckpt of the checkpoints converted for it."""


def named_step(name: str) -> int | None:
    """The training step in a checkpoint's file name; None where there is none."""
    match = _STEP_IN_NAME.search(name)
    return int(next(filter(None, match.groups()))) if match else None


def _unread(params: Params, dataset: str, model: str, step: int) -> str:
    read = params.dataset(dataset).last_step(model)
    key = f"datasets.{dataset}.final_step.{model}: {step}"
    return (
        "" if read == step else f"; tables read step {read} of it, unless they name one: write {key} in {params.path}"
    )


def _names(studies: Studies, run: str) -> tuple[str, str]:
    """Data set and model of DATASET/MODEL, one to import."""
    dataset, slash, model = run.partition("/")
    if not slash or not model or "/" in model:
        raise UserError(f"--as is '{run}'; write DATASET/MODEL, e.g. cifar10/adm-ip-official")
    params = studies.owner(dataset)
    if model not in params.models:
        line = f"{model}: {{family: adm, imported: true}}"
        near = config.nearest(model, [name for name, known in params.models.items() if known.imported])
        raise ConfigError(f"model '{model}' is not in {params.path}{near or ';'} to import one, add to models: {line}")
    if not params.models[model].imported:
        known = params.models[model]
        raise ConfigError(
            f"model {model} is trained here; give the imported one a key of its own, e.g. add to {params.path} models: "
            f"{model}-official: {{family: {known.family}, imported: true}}"
        )
    return dataset, model


def _refuse_other(cell: Cell, source: dict[str, str]) -> None:
    """Leave a checkpoint alone that came from elsewhere: samples may have been drawn from it."""
    path = Path(cell.outputs[-1])
    if not path.exists():
        return
    try:
        there = recipes.read(path).get("source", {})
    except (UserError, IntegrityError):
        return
    if there.get("sha256") != source["sha256"]:
        name = there.get("name", "a training run here")
        raise UserError(f"{cell.directory} holds the checkpoint of {name}; delete that folder to replace it")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _save(tensors: dict[str, Any], path: Path, metadata: dict[str, str]) -> None:
    import torch
    from safetensors.torch import save_file

    # cloned: EMA weights of fp16 training are views of one flat tensor, which safetensors refuses
    whole = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    save_file(whole, path, metadata)
