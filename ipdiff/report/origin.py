"""What a number was made from, by its recipes: metrics <- samples <- checkpoint <- data, and the reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ipdiff.data.spec import Source
from ipdiff.errors import UserError
from ipdiff.report.results import Record
from ipdiff.work.recipes import RECIPE

Recipe = Mapping[str, Any]
CHAIN = (("samples", "samples.npz"), ("checkpoint", "ema.safetensors"), ("data", "images.npy"))
"""What a number was made from, each found in the recipe of the one before."""
REFERENCE = "stats.npz"


@dataclass(frozen=True)
class Link:
    """One artifact of a chain: its directory, the file that was used, and the file's md5."""

    directory: str
    file: str
    digest: str


def by_cell(recipes: Iterable[Recipe]) -> dict[str, Recipe]:
    """Recipes by the directory of their artifact."""
    return {str(recipe["cell"]): recipe for recipe in recipes}


def metrics_of(dataset: str, model: str, seed: int, step: int, sampler: str) -> str:
    """The directory of a number's metrics file."""
    return f"metrics/{dataset}/{model}/s{seed}/{step}/{sampler}"


def chain(recipe: Recipe, recipes: Mapping[str, Recipe]) -> dict[str, Link]:
    """What a number was made from: samples, checkpoint, data, as far as it was made here.

    Raises:
        UserError: the recipe of one of them was not given.
    """
    links: dict[str, Link] = {}
    for name, file in CHAIN:
        found = source_of(recipe, file)
        if found is None:  # an imported checkpoint was made from no data here
            break
        links[name] = found
        recipe = get(found.directory, recipes)
    return links


def source_of(recipe: Recipe, file: str) -> Link | None:
    """The input of this file name; None if there is none."""
    for path, digest in recipe["inputs"].items():
        directory, _, name = path.rpartition("/")
        if name == file:
            return Link(directory, file, digest)
    return None


def get(directory: str, recipes: Mapping[str, Recipe]) -> Recipe:
    """The recipe of an artifact; UserError if it was not given."""
    if directory not in recipes:
        raise UserError(f"report: {directory}/{RECIPE} was not given; make that artifact first")
    return recipes[directory]


def attach(records: Iterable[Record], recipes: Iterable[Recipe]) -> list[Record]:
    """Records that also say what they were made with.

    Raises:
        UserError: the recipe of one of the artifacts behind a record was not given.
    """
    known = by_cell(recipes)
    return [replace(record, made_with=_made_with(record, known)) for record in records]


def _made_with(record: Record, recipes: Mapping[str, Recipe]) -> dict[str, Any]:
    """What the paper's figures are held against: see `ipdiff.report.paper.CONDITIONS`."""
    at = metrics_of(record.dataset, record.model, record.seed, record.step, record.sampler)
    metrics = get(at, recipes)
    samples = _maker(metrics, "samples.npz", recipes)
    run, drawn = _maker(samples, "ema.safetensors", recipes)["run"], samples["params"]
    of = f"datasets.{record.dataset}"
    sampling, compute = drawn.get(f"{of}.sampling", {}), drawn.get(f"{of}.compute", {})
    return {
        **{key: run["objective"][key] for key in ("gamma", "gp_weight", "weight_decay")},
        "batch_size": run["training"]["batch_size"],
        "T": run["diffusion"]["T"],
        "schedule": run["diffusion"]["schedule"],
        "dropout": run["network"]["dropout"],
        "sampling_precision": sampling.get("precision") or compute.get("precision", "float32"),
        "reference_n": record.protocol.reference_n,
        **_reference(metrics, of, recipes),
    }


def _reference(metrics: Recipe, of: str, recipes: Mapping[str, Recipe]) -> dict[str, str]:
    """Which images of the data set the reference holds, and what was made of them."""
    reference = _maker(metrics, REFERENCE, recipes)
    source = Source(**_maker(reference, "images.npy", recipes)["params"][f"{of}.source"])
    kind = "all images" if source.limit is None else "the first images"
    subset = reference["params"].get(f"{of}.reference.images") is not None
    return {"reference": "random images" if subset else kind, "preprocessing": source.chosen_preprocessing}


def _maker(recipe: Recipe, file: str, recipes: Mapping[str, Recipe]) -> Recipe:
    """The recipe of the artifact that an input of this file name belongs to."""
    found = source_of(recipe, file)
    if found is None:
        raise UserError(f"report: {recipe['cell']}/{RECIPE} names no {file} among its inputs; make that artifact again")
    return get(found.directory, recipes)
