"""The model card of an exported network: what it was made of, measured and not, and what its owner has to fill in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from ipdiff.spec import OBJECTIVES, RunSpec

FILL_IN = "fill-in"
"""What stands where only the owner of data and weights can say what is true."""


@dataclass(frozen=True)
class Origin:
    """Which run it is of.

    Attributes:
        dataset: its name.
        model: its name.
        step: optimiser updates.
        images: md5 of the data set's images; empty where nothing says it (an imported checkpoint).
        weights: md5 of the weights that were exported.
        code: digest of the code that made them; empty where nothing says it.
        version: of this package.
    """

    dataset: str
    model: str
    step: str
    images: str
    weights: str
    code: str
    version: str


def text(
    spec: RunSpec,
    origin: Origin,
    pipeline: str,
    unsaid: Iterable[str],
    labels: Sequence[str],
    measured: Iterable[Mapping[str, Any]],
) -> str:
    """The card as Markdown with the Hub's YAML head.

    Args:
        spec: the run.
        origin: its names and digests.
        pipeline: class of diffusers that loads the folder.
        unsaid: what the scheduler's files cannot say of the run's sampling, see `schedulers.unsaid`.
        labels: of the columns of metrics.
        measured: an evaluation each: sampler, nfe, n, reference_n, features, and a text by label.
    """
    steps = f"num_inference_steps={min(spec.diffusion.T, 100)}"
    lines = [
        "---",
        "library_name: diffusers",
        "pipeline_tag: unconditional-image-generation",
        "tags: [diffusers, unconditional-image-generation, input-perturbation, arxiv:2301.11706]",
        f"license: other  # {FILL_IN}: that of the weights, which that of the images may decide",
        f"license_name: {FILL_IN}",
        f"license_link: {FILL_IN}",
        "---",
        "",
        f"# {origin.dataset}, {origin.model}",
        "",
        f"Unconditional images of {spec.image_size}x{spec.image_size} pixels, "
        f"{'grey' if spec.channels == 1 else 'RGB'}. {_objective(spec)}",
        "",
        "```python",
        f"from diffusers import {pipeline}",
        "",
        f'images = {pipeline}.from_pretrained("this folder or its name on the Hub")({steps}).images',
        "```",
        "",
        *(f"The scheduler's files cannot say all: {line}.\n" for line in unsaid),
        "## What it was made of",
        "",
        *_table(["", ""], _facts(spec, origin)),
        "",
        "## What was measured",
        "",
        *_metrics(labels, list(measured)),
        "",
        "## To fill in",
        "",
        f"Everything that says `{FILL_IN}`: the licence of the weights, the images and their licence, what the network",
        "is meant for and what it is not. Nothing here was checked by anybody but the program that wrote it.",
        "",
        f"- images: {FILL_IN}",
        f"- intended use and limits: {FILL_IN}",
        "",
    ]
    return "\n".join(lines)


def _objective(spec: RunSpec) -> str:
    objective = spec.objective
    says = f"The network predicts {OBJECTIVES[objective.target]}."
    if objective.gamma == 0:
        return f"{says} It was trained without input perturbation."
    return f"{says} It was trained with input perturbation (arXiv:2301.11706 Eq. 6)."


def _facts(spec: RunSpec, origin: Origin) -> list[list[str]]:
    diffusion, training = spec.diffusion, spec.training
    sigma = "learned" if diffusion.learn_sigma else f"fixed, {diffusion.fixed_variance}"
    return [
        ["data set", f"{origin.dataset}, images md5 {origin.images or 'unknown'}"],
        ["network", f"{spec.family}, {_said(spec.network)}"],
        ["noise", f"{diffusion.schedule} schedule, T = {diffusion.T}, variance {sigma}"],
        ["input perturbation gamma", f"{_said(spec.objective.gamma)}"],
        ["training", f"{origin.step} updates of {training.batch_size} images, lr {training.lr}, seed {spec.seed}"],
        ["weights", f"EMA, decay {training.ema_decay}; md5 {origin.weights} of the run's file"],
        ["made by", f"ipdiff {origin.version}" + (f", code {origin.code}" if origin.code else "")],
    ]


def _said(value: Any) -> str:
    """A number, a list of them, or a record's fields that are set."""
    if not is_dataclass(value):
        return str(value)
    held = {field.name: getattr(value, field.name) for field in fields(value)}
    return ", ".join(f"{name} {content}" for name, content in held.items() if content is not None)


def _metrics(labels: Sequence[str], measured: list[Mapping[str, Any]]) -> list[str]:
    if not measured:
        return ["Nothing, of these weights."]
    head = ["sampler", "network calls", "N", "N of the reference", "features", *labels]
    rows = [
        [str(one[key]) for key in ("sampler", "nfe", "n", "reference_n", "features")]
        + [str(one.get(label, "")) for label in labels]
        for one in measured
    ]
    return [
        *_table(head, rows),
        "",
        "By the samplers of ipdiff, which are those of diffusers where the scheduler's steps are the same. Figures of",
        "other features or another N cannot be compared with these.",
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines]
