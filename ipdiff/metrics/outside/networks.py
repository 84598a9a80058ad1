"""Which network a user means by `features`: a name, a file, its settings, or a function."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import cast

from ipdiff.device.spec import Compute
from ipdiff.errors import UserError, brief
from ipdiff.metrics.features.extractors import Extractor, Network
from ipdiff.metrics.features.inception_file import obtain
from ipdiff.metrics.outside import cache
from ipdiff.metrics.outside.function import Function, FunctionFeatures
from ipdiff.metrics.spec import FEATURES, Classifier, Inception, TorchScript
from ipdiff.work import recipes
from ipdiff.work.recipes import RECIPE

AnyFeatures = str | os.PathLike[str] | TorchScript | Extractor | Function
"""See `fid`."""


def opened(features: AnyFeatures, compute: Compute) -> Extractor:
    """What computes these features. Raises UserError or IntegrityError as `network_of` and the network's file do."""
    if isinstance(features, str | os.PathLike | TorchScript) or not callable(features):
        return network_of(features).open(compute)
    if all(hasattr(features, name) for name in ("name", "digest", "batch_size")):
        return cast(Extractor, features)
    return FunctionFeatures(cast(Function, features), compute)


def network_of(features: object) -> Network:
    """The network that `features` or `--features` names.

    Args:
        features: one of `FEATURES` by name; the path of a classifier.safetensors with its recipe beside it, of a .json
            with the settings of a `TorchScript` network, or of an Inception network's file, which is opened because
            it was named; or those settings.

    Raises:
        UserError: there is no such file, or it does not say how the network was built.
    """
    if isinstance(features, TorchScript):
        return Network("torchscript", None, features)
    if isinstance(features, os.PathLike):
        features = os.fspath(features)
    if not isinstance(features, str):
        raise UserError(
            f"features is {brief(repr(features))}; use inception, a network's path, a TorchScript record or a function"
        )
    named = [name for name, kind in FEATURES.items() if kind.file in ("published", "none")]
    if features in named:
        published = Inception() if FEATURES[features].file == "published" else None
        return Network(features, published and obtain(published, cache.folder()), published)
    path = Path(features)
    if not path.is_file():
        shown = brief(repr(str(features)))
        raise UserError(f"features {shown}: no such file; use {' or '.join(named)}, or a path of a network")
    if path.suffix == ".json":
        return network_of(_settings(path))
    if path.suffix != ".safetensors":
        return Network("inception", path, Inception(raw=str(path)))  # whichever it is: its digest goes into its name
    params = recipes.read(path.parent / RECIPE).get("params", {})
    found = [value for key, value in params.items() if key.endswith(".classifier")]
    if not found:
        raise UserError(f"{path.parent / RECIPE}: not the recipe of a classifier")
    try:
        return Network("classifier", path, Classifier(**found[0]))
    except TypeError as error:
        raise UserError(f"{path.parent / RECIPE}: not the recipe of a classifier: {brief(error)}") from None


def _settings(path: Path) -> TorchScript:
    """The settings of a network in a JSON file: an object with all the keys of `TorchScript`."""
    kinds = {"path": str, "sha256": str, "image_size": int, "resize": str, "mean": list, "std": list, "width": int}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.keys() != kinds.keys():
            raise ValueError(f"expected an object with the keys {', '.join(kinds)}")
        for key, kind in kinds.items():
            value = found[key]
            if type(value) is not kind or (kind is list and not {type(item) for item in value} <= {int, float}):
                raise ValueError(f"{key} is {brief(value, 40)}; expected {_WORDS[kind]}")
        return TorchScript(**found)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: no settings of a TorchScript network: {brief(error, 160)}") from None


_WORDS = {str: "a text", int: "a whole number", list: "three numbers"}
