"""What a number was made from, by its recipes: metrics <- samples <- checkpoint <- data, and the reference."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ipdiff.data.spec import Source
from ipdiff.errors import UserError
from ipdiff.report.results import Result
from ipdiff.sample_sets.spec import Sampler
from ipdiff.work.recipes import RECIPE

Recipe = Mapping[str, Any]
CHAIN = {"samples": "samples.npz", "checkpoint": "ema.safetensors", "data": "images.npy"}
"""What a number was made from, and the file of each that the recipe of the one before names."""


@dataclass(frozen=True)
class Link:
    """One artifact of a chain: its directory, the file that was used, and the file's md5."""

    directory: str
    file: str
    digest: str


@dataclass(frozen=True)
class Place:
    """What a file's path says it is of, and that path inside the project."""

    dataset: str
    model: str
    seed: int
    step: int
    sampler: str
    source: str


def identify(path: Path, shape: str) -> Place:
    """Read a path of a shape such as `analysis/DATASET/MODEL/sSEED/STEP/errors.csv`; UserError on any other."""
    fields = re.sub("SEED|STEP", r"(\\d+)", re.sub("DATASET|MODEL|SAMPLER", "([^/]+)", shape))
    found = re.search(f"(?:^|/)({fields})$", path.as_posix())
    if found is None:
        raise UserError(f"{path}: expected {shape}")
    source, dataset, model, seed, step, *sampler = found.groups()
    return Place(dataset, model, int(seed), int(step), "".join(sampler), source)


def by_cell(recipes: Iterable[Recipe]) -> dict[str, Recipe]:
    """Recipes by the directory of their artifact."""
    return {str(recipe["cell"]): recipe for recipe in recipes}


def metrics_of(dataset: str, model: str, seed: int, step: int, sampler: str) -> str:
    """The directory of a number's metrics file."""
    return f"metrics/{dataset}/{model}/s{seed}/{step}/{sampler}"


def chain(metrics: Recipe, recipes: Mapping[str, Recipe]) -> dict[str, Link]:
    """What a number was made from: the reference, and samples, checkpoint, data, as far as it was made here.

    Raises:
        UserError: the recipe of one of them was not given, or one names no such file.
    """
    links, recipe = {"reference": _input(metrics, "stats.npz")}, metrics
    for name, file in CHAIN.items():
        if "source" in recipe:  # an imported checkpoint was made from no data here
            break
        links[name] = _input(recipe, file)
        recipe = get(links[name].directory, recipes)
    return links


def _input(recipe: Recipe, file: str) -> Link:
    for path, digest in recipe["inputs"].items():
        directory, _, name = path.rpartition("/")
        if name == file:
            return Link(directory, file, digest)
    raise UserError(f"report: {recipe['cell']}/{RECIPE} names no {file} among its inputs; make that artifact again")


def get(directory: str, recipes: Mapping[str, Recipe]) -> Recipe:
    """The recipe of an artifact; UserError if it was not given."""
    if directory not in recipes:
        raise UserError(f"report: {directory}/{RECIPE} was not given; make that artifact first")
    return recipes[directory]


def attach(found: list[Result], recipes: Iterable[Recipe]) -> list[Result]:
    """Results of one seed that also say what they were made with; as they are where no recipe is given.

    Raises:
        UserError: the recipe of one of the artifacts behind a result was not given.
    """
    known = by_cell(recipes)
    return [replace(one, made_with=(_made_with(one, known),)) for one in found] if known else found


def _made_with(one: Result, recipes: Mapping[str, Recipe]) -> dict[str, Any]:
    """What the paper's figures are held against: see `ipdiff.report.paper.CONDITIONS`."""
    metrics = get(metrics_of(one.dataset, one.model, one.seeds[0], one.step, one.sampler), recipes)
    behind = {name: get(link.directory, recipes) for name, link in chain(metrics, recipes).items()}
    run, drawn, reference = behind["checkpoint"]["run"], behind["samples"]["params"], behind["reference"]
    of = f"datasets.{one.dataset}"
    sampling, compute = drawn.get(f"{of}.sampling", {}), drawn.get(f"{of}.compute", {})
    images = get(_input(reference, CHAIN["data"]).directory, recipes)
    source = Source(**images["params"][f"{of}.source"])
    subset = reference["params"].get(f"{of}.reference.images") is not None
    every = "all images" if source.limit is None else "the first images"
    return {
        **{key: run["objective"][key] for key in ("gamma", "gp_weight", "weight_decay")},
        "batch_size": run["training"]["batch_size"],
        "T": run["diffusion"]["T"],
        "schedule": run["diffusion"]["schedule"],
        "dropout": run["network"]["dropout"],
        "sampling_precision": Sampler.parse(one.sampler).precision
        or sampling.get("precision")
        or compute.get("precision", "float32"),
        "reference_n": one.protocol.reference_n,
        "reference": "random images" if subset else every,
        "preprocessing": source.chosen_preprocessing,
    }
