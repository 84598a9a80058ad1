"""Stage `classifier`: labelled images -> the feature network and its held-out accuracy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ipdiff.data.images import load_images
from ipdiff.data.npy import load_npy
from ipdiff.device.spec import Compute
from ipdiff.errors import UserError
from ipdiff.metrics.features.classifier_net import accuracy, save, train
from ipdiff.metrics.spec import Classifier
from ipdiff.rng import Purpose, permutation


def run(spec: Classifier, compute: Compute, images: Path, labels: Path, out: Path) -> None:
    """Train the feature network.

    A random share of the images (`spec.holdout`) is kept out to measure the accuracy; the published net is
    the one that was measured, trained on the rest only (it is not trained again on all images).

    Args:
        spec: the net and its optimisation.
        compute: device and threads.
        images: images.npy, [N, H, W, C] uint8.
        labels: labels.npy, [N] int64.
        out: existing directory; gets classifier.safetensors and accuracy.json
            ({"accuracy": 0..1 or null without a hold-out, "classes": K, "holdout": images kept out}).

    Raises:
        UserError: a file is not what it should be, or the data set has no labels.
    """
    pictures = load_images(images)
    classes = _load_labels(labels, len(pictures))
    order = permutation(spec.seed, Purpose.SUBSET, len(pictures))
    held = round(spec.holdout * len(pictures))
    kept_out, rest = np.sort(order[:held]), order[held:]
    net = train(pictures, classes, rest, spec, compute)
    measured = round(accuracy(net, pictures[kept_out], classes[kept_out]), 6) if held else None
    save(net, out / "classifier.safetensors")
    report = {"accuracy": measured, "classes": net.classes, "holdout": held}
    (out / "accuracy.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")


def _load_labels(path: Path, n: int) -> NDArray[np.int64]:
    """Labels [n] int64, 0..K-1 with K >= 2. Raises UserError for anything else."""
    labels = load_npy(path, mmap=False)
    if labels.dtype != np.int64 or labels.shape != (n,):
        raise UserError(f"{path}: expected labels int64 [{n}], found {labels.dtype} {list(labels.shape)}")
    if (labels < 0).any():
        raise UserError(f"{path}: data set has no labels: features 'classifier' need them")
    if len(np.unique(labels)) < 2:
        raise UserError(f"{path}: all images have one label: features 'classifier' need two classes or more")
    return labels
