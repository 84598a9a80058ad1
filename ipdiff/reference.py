"""Stage `reference`: the data set's images -> the statistics that samples are compared with."""

from __future__ import annotations

from pathlib import Path

from ipdiff.data.arrays import save_npz
from ipdiff.data.images import load_images
from ipdiff.metrics.features import ClassifierFeatures, statistics
from ipdiff.spec import Classifier, Compute


def run(spec: Classifier, compute: Compute, images: Path, classifier: Path, out: Path) -> None:
    """Write the reference statistics of a data set.

    Args:
        spec: how the feature network was built.
        compute: device and threads.
        images: images.npy, [N, H, W, C] uint8.
        classifier: classifier.safetensors.
        out: existing directory; gets stats.npz (see `ipdiff.metrics.features.statistics`).

    Raises:
        UserError: a file is not what it should be, or there are fewer than 2 images.
    """
    extractor = ClassifierFeatures(classifier, spec, compute)
    save_npz(out / "stats.npz", **statistics(extractor, load_images(images)))
