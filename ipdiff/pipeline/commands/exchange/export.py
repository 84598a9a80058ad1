"""`ipdiff export`: a checkpoint of this project in the formats of others."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ipdiff.errors import ConfigError, UserError
from ipdiff.pipeline import config, grid
from ipdiff.pipeline.stages import IMPORT
from ipdiff.pipeline.store import artifact
from ipdiff.spec import FAMILIES, RunSpec
from ipdiff.work import recipes
from ipdiff.work.recipes import RECIPE

FORMATS = ("safetensors", "guided-diffusion", "diffusers")
_WEIGHTS = IMPORT.files[0]


def export_checkpoint(
    source: str, form: str, to: Path, say: Callable[[str], None] = lambda line: None, push: str | None = None
) -> Path:
    """Write a run's EMA weights in another format, in one step.

    Args:
        source: a checkpoint's folder or its ema.safetensors, or DATASET/MODEL[/sSEED[/STEP]] (seed 0 and the step that
            tables read where they are left out).
        form: one of `FORMATS`.
        to: a file, or for diffusers a folder; it must not exist.
        say: told, a line each, what the format cannot express of the run, and where it was pushed to.
        push: ORG/NAME of a repository on the Hugging Face Hub that gets the folder, for diffusers.

    Returns:
        `to`.

    Raises:
        UserError: the checkpoint is not here, its network does not map onto the format, `to` exists, or it cannot be
            pushed.
        IntegrityError: the weights, or metrics of them, are not those of their recipe.
    """
    from safetensors.torch import load_file

    from ipdiff.interop import diffusers, schedulers, writing
    from ipdiff.pipeline.commands.exchange import hub, model_card

    if form not in FORMATS:
        raise UserError(f"--format is '{form}'; use {', '.join(FORMATS)}")
    if push is not None and form != "diffusers":
        raise UserError(f"--push goes with --format diffusers, not {form}")
    remote = None if push is None else hub.Hub(push)
    folder = _folder(source)
    weights = folder / _WEIGHTS
    artifact.verify_inputs((str(weights), str(folder / RECIPE)))
    recipe = recipes.read(folder / RECIPE)
    if "run" not in recipe:
        raise UserError(f"{folder / RECIPE}: not the recipe of a run's checkpoint")
    spec, tensors = RunSpec.from_json(recipe["run"]), load_file(weights)
    with _appearing(to) as staged:
        if form == "diffusers":
            staged.mkdir()
            clip = _clips(recipe, spec)
            pipeline, unsaid = diffusers.write(staged, tensors, spec, clip_denoised=clip), schedulers.unsaid(spec, clip)
            for line in unsaid:
                say(line)
            (staged / "README.md").write_text(model_card.text(folder, recipe, spec, pipeline, unsaid, say))
        elif form == "guided-diffusion":
            writing.write_guided_diffusion(staged, tensors, spec)
        else:
            writing.write_safetensors(staged, tensors, spec, _names(recipe))
    if remote is not None:
        say(f"pushed to {remote.push(to)}, private if it was not there: fill in README.md before you publish it")
    return to


def _folder(source: str) -> Path:
    path = Path(source)
    if path.exists():
        return path if path.is_dir() else path.parent
    match = re.fullmatch(r"([^/]+)/([^/]+)(?:/s(\d+)(?:/(\d+))?)?/*", source)
    if match is None:
        raise UserError(f"'{source}' is no folder of a checkpoint here, nor DATASET/MODEL[/sSEED[/STEP]]")
    dataset, model, seed, step = match.groups()
    known = grid.load()
    params = known.studies.owner(dataset)
    params.family(dataset, model)
    step = step or str(params.dataset(dataset).last_step(model))
    verb = "import" if params.model(model).imported else "train"
    cell = known.cell(verb, dataset=dataset, model=model, seed=seed or "0", step=step)
    return Path(cell.directory)


def _names(recipe: dict[str, Any]) -> dict[str, str | int]:
    """Data set, model and step of the checkpoint, by the folder that it was made in."""
    _, dataset, model, _, step = str(recipe["cell"]).split("/")
    return {"dataset": dataset, "model": model, "step": int(step)}


def _clips(recipe: dict[str, Any], spec: RunSpec) -> bool:
    """Whether the project clamps x0 while sampling from the run; as its family's code where it does not know it."""
    parts = str(recipe.get("cell")).split("/")
    try:
        return config.Studies().owner(parts[1]).family(parts[1], parts[2]).clip_denoised
    except (ConfigError, IndexError):
        return FAMILIES[spec.family].clip_denoised


@contextmanager
def _appearing(to: Path) -> Iterator[Path]:
    """A path to write to, beside `to`, that becomes `to` when all is written."""
    if to.exists():
        raise UserError(f"{to} exists; delete it, or name another place")
    if not to.parent.is_dir():
        raise UserError(f"{to.parent} is no directory; make it first")
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{to.name}.", dir=to.parent))
    except OSError as error:
        raise UserError(f"{to}: cannot be written: {error.strerror}") from None
    staged = work / "staged"
    try:
        yield staged
        for path in [staged, *staged.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)  # some writers choose 0600
        staged.rename(to)
    finally:
        shutil.rmtree(work, ignore_errors=True)
