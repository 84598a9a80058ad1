"""Stage `neighbours`: the data set's images -> their features and distances, for what compares more than moments."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ipdiff.data.images import load_images
from ipdiff.device.spec import Compute
from ipdiff.metrics.features.extractors import Network, Pooled, show
from ipdiff.metrics.scores.overlap import radii
from ipdiff.metrics.sets import rows
from ipdiff.metrics.spec import Reference
from ipdiff.work.shards import Shards


def run(
    reference: Reference, network: Network, compute: Compute, images: Path, out: Path, shards: Shards | None = None
) -> None:
    """Write the pooled features of the real images, and each one's distances to its nearest neighbours.

    Args:
        reference: which of the images.
        network: computes the features.
        compute: device and threads.
        images: images.npy, [N, H, W, C] uint8.
        out: existing directory; gets features.npy ([n, F] float32) and radii.npy
            ([n, NEAREST] float32, squared; see `ipdiff.metrics.scores.overlap.radii`).
        shards: see `ipdiff.metrics.features.extractors.show`; process 0 alone writes.

    Raises:
        UserError: a file is not what it should be, or there are fewer than 2 images.
        IntegrityError: the network's file is another one.
    """
    extractor, pictures = network.open(compute), load_images(images)
    chosen = rows(reference, len(pictures))
    pooled = Pooled(len(pictures) if chosen is None else len(chosen))
    show(extractor, pictures, pooled, rows=chosen, shards=shards)
    if shards is None or shards.first:
        features = pooled.array()
        np.save(out / "features.npy", features)
        np.save(out / "radii.npy", radii(features, compute))
