"""Stage `reference`: the data set's images -> the statistics that samples are compared with."""

from __future__ import annotations

from pathlib import Path

from ipdiff.data.arrays import save_npz
from ipdiff.data.images import load_images
from ipdiff.device.spec import Compute
from ipdiff.metrics.features.extractors import Network, Statistics, show
from ipdiff.metrics.sets import rows
from ipdiff.metrics.spec import Reference
from ipdiff.work.shards import Shards


def run(
    reference: Reference, network: Network, compute: Compute, images: Path, out: Path, shards: Shards | None = None
) -> None:
    """Write the reference statistics of a data set.

    Args:
        reference: which of the images.
        network: computes the features.
        compute: device and threads.
        images: images.npy, [N, H, W, C] uint8.
        out: existing directory; gets stats.npz (see `ipdiff.metrics.features.extractors.Statistics.arrays`).
        shards: see `ipdiff.metrics.features.extractors.show`; process 0 alone writes.

    Raises:
        UserError: a file is not what it should be, or there are fewer than 2 images.
        IntegrityError: the network's file is another one.
    """
    extractor, pictures, found = network.open(compute), load_images(images), Statistics()
    show(extractor, pictures, found, rows=rows(reference, len(pictures)), shards=shards)
    if shards is None or shards.first:
        save_npz(out / "stats.npz", **found.arrays(extractor, pictures.shape[1:]))
