"""Stage `halves`: two disjoint halves of the real images, which say how low FID is where nothing but chance differs.

FID falls with N, so it says how far a model has come only beside the FID of as many real images. Both are taken against
the same half of the reference images: of the other half, and of as many samples.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ipdiff.data.arrays import load_npz, save_npz
from ipdiff.data.images import load_images
from ipdiff.device.spec import Compute
from ipdiff.errors import UserError
from ipdiff.metrics.features.extractors import Network, show
from ipdiff.metrics.features.pixels import Features
from ipdiff.metrics.scores.frechet import Moments, frechet_distance
from ipdiff.metrics.sets import rows
from ipdiff.metrics.spec import Reference, rounded
from ipdiff.rng import Purpose, permutation
from ipdiff.work.shards import Shards


class Part:
    """Observes features and keeps the moments of the pooled ones of some images, by their place among those shown."""

    def __init__(self, part: range) -> None:
        """`part`: the places, in steps of 1."""
        self.part, self._seen = part, 0
        self._moments: Moments | None = None

    def __call__(self, features: Features) -> None:
        """Add what is of the part in a batch."""
        pool = features["pool"]
        start, stop = (min(max(at - self._seen, 0), len(pool)) for at in (self.part.start, self.part.stop))
        self._moments = self._moments or Moments(pool.shape[1])
        self._moments.update(pool[start:stop])
        self._seen += len(pool)

    @property
    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean [F] and covariance [F, F] of the part, float64. Raises ValueError before its last image."""
        if self._moments is None or self._moments.n < len(self.part):
            raise ValueError(f"images {self.part.start}..{self.part.stop - 1} have not all been shown")
        return self._moments.mu, self._moments.cov


def run(
    reference: Reference,
    network: Network,
    compute: Compute,
    images: Path,
    out: Path,
    shards: Shards | None = None,
    *,
    count: int,
) -> None:
    """Write the statistics of a half of the reference images, and the FID of the other half against it.

    The halves are drawn at random and hold `count` images each; fewer, where there are not twice as many. Below 4
    reference images they hold one or none, and nothing is measured.

    Args:
        reference: which of the images.
        network: computes the features.
        compute: device and threads.
        images: images.npy, [N, H, W, C] uint8.
        out: existing directory; gets halves.npz: n [] int64, images of a half; features [], text; and for n >= 2 mu [F]
            and sigma [F, F] of one half's pooled features and fid [] of the other half against it, float64.
        shards: see `ipdiff.metrics.features.extractors.show`; process 0 alone writes.
        count: images of the sample sets that will be held against the half, 2 or more.

    Raises:
        UserError: a file is not what it should be.
        IntegrityError: the network's file is another one.
    """
    extractor, pictures = network.open(compute), load_images(images)
    first, second = halves(reference, len(pictures), count)
    found = {"n": np.array(len(first), np.int64), "features": np.array(f"{extractor.name} {extractor.digest}")}
    other, half = Part(range(len(first))), Part(range(len(first), 2 * len(first)))
    if len(first) > 1:
        show(extractor, pictures, other, half, rows=np.concatenate([first, second]), shards=shards)
    if shards is not None and not shards.first:
        return
    if len(first) > 1:
        (mu, sigma), distance = half.moments, frechet_distance(*other.moments, *half.moments)
        found |= {"mu": mu, "sigma": sigma, "fid": np.array(distance)}
    save_npz(out / "halves.npz", **found)


def halves(reference: Reference, n: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of two disjoint sets of equally many of the reference images among `n`, each ascending: int64.

    Each holds `count`, or half of the reference images where that is fewer.
    """
    chosen = rows(reference, n)
    chosen = np.arange(n) if chosen is None else chosen
    size = min(count, len(chosen) // 2)
    order = permutation(0, Purpose.REFERENCE_SUBSET, len(chosen))
    return np.sort(chosen[order[:size]]), np.sort(chosen[order[size : 2 * size]])


class Half:
    """A half of the real images, as the stage `halves` published it; observes as many samples' features."""

    def __init__(self, path: Path, features: str, n: int) -> None:
        """Read a file.

        Args:
            path: halves.npz.
            features: name and digest of those of the samples.
            n: how many samples there are.

        Raises:
            UserError: it is no such file, of other features, or of more images than there are samples.
        """
        self._statistics = load_npz(path)
        if missing := {"n", "features"} - self._statistics.keys():
            raise UserError(f"{path}: not written by the stage `halves`: no {', '.join(sorted(missing))}")
        self.n, theirs = int(self._statistics["n"]), str(self._statistics["features"])
        if theirs != features:
            raise UserError(f"{path}: halves of the features {theirs}; the samples would be measured with {features}")
        if self.n > n:
            raise UserError(f"{path}: halves of {self.n} images, but there are {n} samples; make it for as many")
        self.samples = Part(range(self.n))

    def values(self) -> dict[str, float]:
        """What metrics.json says of it; nothing where it holds fewer than 2 images.

        Returns:
            half_n: images of a half, and samples that are compared with it: the first of the set; half_fid: FID of
            these samples against the half; half_fid_real: FID of the other half against it.
        """
        if self.n < 2:
            return {}
        found = frechet_distance(*self.samples.moments, self._statistics["mu"], self._statistics["sigma"])
        real = float(self._statistics["fid"])
        return {"half_n": self.n, "half_fid": rounded(found), "half_fid_real": rounded(real)}
