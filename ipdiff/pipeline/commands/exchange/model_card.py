"""The model card of an exported checkpoint: its recipe, and the metrics that are here and are of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ipdiff import __version__
from ipdiff.interop import card
from ipdiff.metrics.spec import METRICS, label
from ipdiff.pipeline.stages import IMPORT, STAGES
from ipdiff.pipeline.store import artifact
from ipdiff.report.results import with_words
from ipdiff.sample_sets.spec import Sampler
from ipdiff.spec import RunSpec
from ipdiff.work import recipes
from ipdiff.work.recipes import RECIPE

_WEIGHTS = IMPORT.files[0]
_PARTS = ("runs", "dataset", "model", "seed", "step")
"""Of the folder of a run's checkpoint."""


def text(
    folder: Path,
    recipe: dict[str, Any],
    spec: RunSpec,
    pipeline: str,
    unsaid: Sequence[str],
    say: Callable[[str], None],
) -> str:
    """The card of the checkpoint in `folder`; `say` is told of metrics that are left out. See `interop.card.text`.

    Raises:
        IntegrityError: metrics of it are not those of their recipe.
    """
    cell = Path(recipe["cell"])
    names = dict(zip(_PARTS, (*cell.parts, *[""] * len(_PARTS)), strict=False))
    images = next((digest for path, digest in recipe.get("inputs", {}).items() if path.endswith("/images.npy")), "")
    digests = (images, recipe["outputs"][_WEIGHTS], recipe.get("code", ""), __version__)
    rows = list(_measured(folder, cell, recipe["outputs"][_WEIGHTS], say))
    labels = list(dict.fromkeys(label for row in rows for label in row if label not in _ABOUT))
    origin = card.Origin(names["dataset"], names["model"], names["step"], *digests)
    return card.text(spec, origin, pipeline, unsaid, labels, rows)


def _place(path: Path) -> tuple[str, str, int]:
    sampler = Sampler.parse(path.parent.name)
    return sampler.kind, sampler.method, sampler.steps


_ABOUT = ("sampler", "nfe", "n", "reference_n", "features")


def _measured(folder: Path, cell: Path, weights: str, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The metrics beside the checkpoint whose samples were drawn with these weights, a row a sampler."""
    resolved = folder.resolve()
    if resolved.parts[-len(cell.parts) :] != cell.parts:  # copied to somewhere: its project is not known
        return
    root = Path(*resolved.parts[: -len(cell.parts)])
    kinds = {verb: STAGES[verb].directory.partition("/")[0] for verb in ("evaluate", "sample")}
    for path in sorted(root.joinpath(kinds["evaluate"], *cell.parts[1:]).glob("*/metrics.json"), key=_place):
        if Sampler.parse(path.parent.name).row.from_images:
            continue  # no images of the network alone
        drawn = root.joinpath(kinds["sample"], *cell.parts[1:], path.parent.name, RECIPE)
        inputs = recipes.read(drawn)["inputs"] if drawn.is_file() else {}
        if inputs.get(f"{cell.as_posix()}/{_WEIGHTS}") != weights:
            say(f"{path.parent.name}: its metrics are left out, for nothing says that they are of these weights")
            continue
        artifact.verify_inputs((str(path),))
        found = with_words(json.loads(path.read_text()), path)
        features, digest = found["features"], found["features_digest"]
        values = {
            label(name, features, digest): f"{found[name]:.{kind.decimals}f}"
            for name, kind in METRICS.items()
            if name in found
        }
        yield {**{name: found[name] for name in _ABOUT}, **values}
