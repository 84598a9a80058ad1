"""The params.yaml of a new study: its values, and a comment on each."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from ipdiff.data.readers.survey import Survey
from ipdiff.device.spec import Compute
from ipdiff.metrics.spec import FEATURES, Classifier, TorchScript
from ipdiff.pipeline.commands.study.new import presets
from ipdiff.pipeline.commands.study.new.fit import Choice
from ipdiff.sample_sets.spec import plain

WIDTH = 80
"""Characters a line: DVC keeps such a file's layout when it changes a value."""
BASELINE, PRETRAINED = "adm", "pretrained"
"""Names of the model without input perturbation, and of an imported one that all are trained on from."""
HEAD = """\
# yaml-language-server: $schema=../../params.schema.json
# Written by `ipdiff new`, yours to edit: docs/own-images.md explains the lines,
# config/README.md has all keys. After an edit of models, seeds, T' or tables:
# ipdiff grid --write
"""


@dataclass(frozen=True)
class Draft:
    """What a study's text is made of.

    Attributes:
        name: of the study and of its data set.
        raw: path of the pictures, as both engines spell it.
        size, channels: of the images that are made of them.
        survey: what was found there.
        skip_broken: pass over pictures that cannot be read.
        labelled: whether folders are labels.
        features: a key of `FEATURES`.
        settings: of the feature network, where it has some.
        compute: what networks run on.
        choice: what fits the budget.
        start: training step of the imported checkpoint that models are trained on from, where there is one.
    """

    name: str
    raw: str
    size: int
    channels: int
    survey: Survey
    skip_broken: bool
    labelled: bool
    features: str
    settings: Classifier | TorchScript | None
    compute: Compute
    choice: Choice
    start: int | None

    @property
    def models(self) -> dict[str, float]:
        """Model -> gamma, the baseline first."""
        return {model_of(gamma): gamma for gamma in self.choice.work.gammas}


def model_of(gamma: float) -> str:
    """The name of the model of a strength: adm, adm-ip-g005, adm-ip-g01."""
    return f"{BASELINE}-ip-g{plain(gamma).replace('.', '')}" if gamma else BASELINE


def render(draft: Draft) -> str:
    """The text of its params.yaml."""
    return HEAD + "\n".join(_lines(_values(draft), _comments(draft))) + "\n"


def _values(draft: Draft) -> dict[str, Any]:
    models: dict[str, Any] = {}
    if draft.start is not None:
        models[PRETRAINED] = {"family": "adm", "imported": True}
    for model, gamma in draft.models.items():
        start = {} if draft.start is None else {"start": {"model": PRETRAINED}}
        models[model] = {"family": "adm", **({"gamma": gamma} if gamma else {}), **start}
    return {
        "title": f"Does input perturbation help on {draft.name}?",
        "note": (
            "Networks and training were fitted to a time budget by `ipdiff new`. Compare the models with each other: "
            "they differ in gamma alone. No figure here is comparable with those of other studies, and after a short "
            "training all images are blurred."
        ),
        "seeds": {"default": list(range(draft.choice.work.seeds))},
        "datasets": {draft.name: _dataset(draft)},
        "models": models,
        **_views(draft),
    }


def _dataset(draft: Draft) -> dict[str, Any]:
    choice, survey = draft.choice, draft.survey
    source: dict[str, Any] = {"reader": "folder", "raw": draft.raw, "image_size": draft.size}
    source |= {"channels": draft.channels, "num_images": survey.usable}
    source["preprocessing"] = "none" if survey.fits(draft.size) else "center-crop"
    if survey.mixed or draft.channels != survey.channels:
        source["modes"] = "convert"
    if draft.skip_broken:
        source["skip_broken"] = True
    source["labels"] = "folders" if draft.labelled else "none"
    features: dict[str, Any] = {"features": draft.features}
    if draft.settings is not None:
        features[draft.features] = asdict(draft.settings)
    elif FEATURES[draft.features].file == "published":
        features[draft.features] = {"sha256": _published_digest()}
    training = asdict(presets.training(choice.preset, choice.updates, draft.compute.device))
    batch = _batch(draft)
    return {
        "source": source,
        **features,
        "reference": {"neighbours": False},
        "compute": {key: value for key, value in asdict(draft.compute).items() if key != "compile"},
        "families": {
            "adm": {
                "network": {key: value for key, value in asdict(choice.preset.network).items() if key != "num_heads"},
                "diffusion": {key: value for key, value in asdict(presets.diffusion()).items() if "fixed" not in key},
                "training": {key: value for key, value in training.items() if value is not None},
                "clip_denoised": True,
                "quantise": "truncate",
            }
        },
        "sampling": {"num_samples": choice.samples, "batch_size": batch},
        "analysis": {"images": choice.drift_images, "batch_size": min(batch, choice.drift_images)},
        "checkpoints": [choice.updates],
        "final_step": {
            "default": choice.updates,
            **({} if draft.start is None else {PRETRAINED: draft.start}),
        },
    }


def _batch(draft: Draft) -> int:
    from ipdiff.pipeline.commands.study.new.speeds import sample_batch

    return min(sample_batch(draft.size, draft.compute.device), draft.choice.samples)


def _published_digest() -> str:
    from ipdiff.metrics.spec import INCEPTION_SHA256

    return INCEPTION_SHA256


def _views(draft: Draft) -> dict[str, Any]:
    kind, models = FEATURES[draft.features], list(draft.models)
    shown = {"datasets": [draft.name], "models": models}
    samplers = [f"ancestral-{steps}" for steps in draft.choice.steps]
    metrics = ["fid", *(["sfid"] if kind.spatial else []), *(["pixel_fd"] if draft.features != "pixels" else [])]
    lines = {
        f"{metric}_over_steps": {
            "kind": "lines",
            "title": f"{label} over T'",
            **shown,
            "samplers": samplers,
            **({} if metric == "fid" else {"metric": metric}),
            "x": "sample_steps",
        }
        for metric, label in (("fid", kind.labels.get("fid", "FID")), ("sfid", "sFID"))
        if metric in metrics
    }
    return {
        "tables": {
            "gamma": {
                "title": "Distances over T' by strength of the perturbation",
                **shown,
                "samplers": samplers,
                "metrics": metrics,
                "rows": ["sampler", "model"],
                "columns": ["metric"],
                "compare": {model: BASELINE for model in models if model != BASELINE},
            }
        },
        "figures": {
            **lines,
            "samples": {
                "kind": "samples",
                "title": "Images drawn from the same noise",
                **shown,
                "samplers": [samplers[0], samplers[-1]],
                "images": 12,
            },
            "drift": {
                "kind": "drift",
                "title": "How far sampling strays from what training saw",
                **shown,
                "samplers": [f"ancestral-{draft.choice.drift_steps}"],
                "seeds": [0],
            },
        },
    }


def _comments(draft: Draft) -> dict[str, str]:
    """Key -> what stands above it; `*` stands for any name."""
    choice, survey = draft.choice, draft.survey
    full = presets.of_size(draft.size)[-1]
    network = f"The preset {choice.preset.name}. The paper's has model_channels {full.network.model_channels}"
    network += f", {full.network.num_res_blocks} blocks, attention at {full.network.attention_resolutions}."
    about_features = {
        "classifier": "What FID compares: activations of a small CNN trained on the labels.",
        "inception": "What FID compares: activations of Inception, as in the paper.",
        "torchscript": "What FD compares: the outputs of your own network.",
        "pixels": "What FD compares: the pixels. Labels, Inception or a network of your own say more.",
    }
    known = {
        "seeds": "Each model is trained once with each seed: differences must exceed their spread.",
        "datasets.*.source": "The pictures, and what is made of them.",
        "datasets.*.source.raw": "A directory, .zip or .tar.gz; both engines watch every file.",
        "datasets.*.source.image_size": "Pixels a side.",
        "datasets.*.source.channels": "3: colour, 1: grey.",
        "datasets.*.source.num_images": "Another number is refused; change it when pictures come or go.",
        "datasets.*.source.preprocessing": (
            "All have that size already."
            if survey.fits(draft.size)
            else "The shorter side is brought to image_size, then the centre is cut out."
        ),
        "datasets.*.source.modes": (
            "Transparency is put on white; grey, palette and CMYK become RGB."
            if draft.channels == 3
            else "Transparency is put on white; 16 bits and 1 bit become 8."
        ),
        "datasets.*.source.skip_broken": f"{len(survey.broken)} cannot be read: passed over, named in the recipe.",
        "datasets.*.source.labels": (
            f"Folders are labels: {len(survey.labels)} of them." if draft.labelled else "Pictures have no labels."
        ),
        "datasets.*.features": about_features[draft.features],
        "datasets.*.classifier": "The small CNN and its training; its accuracy is in features/.",
        "datasets.*.torchscript": "What is made of images for it: change these where it was trained otherwise.",
        "datasets.*.inception": "The published file's digest.",
        "datasets.*.reference": "Distances are to all pictures. true: precision and recall as well.",
        "datasets.*.compute": "Where networks run; threads of each job, for the CPU.",
        "datasets.*.families.adm.network": network,
        "datasets.*.families.adm.diffusion": "The paper's: cosine, T = 1000, learnt variance.",
        "datasets.*.families.adm.training": "Fitted to the budget; batch and learning rate go with the network.",
        "datasets.*.families.adm.training.lr_decay_steps": "Where lr reaches 0: the last checkpoint.",
        "datasets.*.families.adm.training.ema_decay": "The paper's 0.9999 is for 100,000 updates and more.",
        "datasets.*.families.adm.training.flip": "false where left and right differ: digits, text.",
        "datasets.*.families.adm.clip_denoised": "As the paper's code: x0 is kept in [-1, 1] while sampling.",
        "datasets.*.sampling": "Images of each set. More make distances smaller: compare at equal numbers.",
        "datasets.*.analysis": "Images whose sampling chains the figure `drift` follows.",
        "datasets.*.checkpoints": "Updates of every run. A later one can be added: runs go on from here.",
        "datasets.*.final_step": "The checkpoint that tables read.",
        "models": "The baseline, and one model for each gamma; nothing else differs.",
        f"models.{PRETRAINED}": f"Its checkpoint comes by `ipdiff import FILE --as {draft.name}/{PRETRAINED}`.",
        "tables.gamma.samplers": "T': network calls for an image. Few steps are where the paper gains most.",
        "tables.gamma.compare": "Adds the difference to the baseline, paired by seed.",
        "figures.drift": "Exposure bias measured without features: the chain against diffused pictures.",
    }
    return {key.replace("datasets.*", f"datasets.{draft.name}"): text for key, text in known.items()}


def _lines(values: Mapping[str, Any], comments: Mapping[str, str], path: str = "") -> Iterator[str]:
    """YAML in block style, each key below its comment."""
    depth = path.count(".") if path else 0
    indent = "  " * depth
    for key, value in values.items():
        if not path and key in ("seeds", "datasets", "models", "tables", "figures"):
            yield ""
        if text := comments.get(path + key):
            yield from textwrap.wrap(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _lines(value, comments, f"{path}{key}.")
        elif isinstance(value, list) and value:
            yield f"{indent}{key}:"
            yield from (f"{indent}- {_scalar(item)}" for item in value)
        elif key == "note":
            yield f"{indent}{key}: >-"
            yield from textwrap.wrap(str(value), WIDTH, initial_indent=f"{indent}  ", subsequent_indent=f"{indent}  ")
        else:
            yield f"{indent}{key}: {_scalar(value)}"


def _scalar(value: Any) -> str:
    text = yaml.safe_dump(value, width=10**6, allow_unicode=True, default_flow_style=True)
    return text.removesuffix("\n").removesuffix("\n...")
