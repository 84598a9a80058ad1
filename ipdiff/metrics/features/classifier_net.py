"""The small CNN whose activations are the features of FID and sFID where Inception makes no sense."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ipdiff.data.formats import filekind
from ipdiff.data.images import to_network
from ipdiff.device.compute import configure
from ipdiff.device.spec import Compute
from ipdiff.errors import UserError, brief
from ipdiff.metrics.spec import Classifier
from ipdiff.rng import Purpose, normals, permutation
from ipdiff.training.adam import Adam
from ipdiff.work import progress

MAP_SIZE = 16
"""Largest side of the spatial map (the ADM evaluator's is 17): larger images are averaged down to it."""


class FeatureNet(nn.Module):
    """Three 3x3 convolutions and two linear layers.

    conv(width), average to at most 16x16, conv(2 width) [its map is the spatial feature], average by 2,
    conv(2 width), linear(features) [the pooled feature], linear(classes); a ReLU after each but the last.
    """

    def __init__(self, spec: Classifier, image_size: int, channels: int, classes: int) -> None:
        super().__init__()
        self.image_size, self.channels, self.classes = image_size, channels, classes
        self.spatial_channels = spec.spatial_channels
        self.shrink = math.ceil(image_size / MAP_SIZE)
        side = image_size // self.shrink // 2
        if side < 1 or not 1 <= spec.spatial_channels <= 2 * spec.width:
            raise UserError(
                f"the classifier needs image_size >= 2 and spatial_channels in 1..2*width; got "
                f"image_size {image_size}, spatial_channels {spec.spatial_channels}, width {spec.width}"
            )
        self.conv1 = nn.Conv2d(channels, spec.width, 3, padding=1)
        self.conv2 = nn.Conv2d(spec.width, 2 * spec.width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * spec.width, 2 * spec.width, 3, padding=1)
        self.pool = nn.Linear(2 * spec.width * side * side, spec.features)
        self.head = nn.Linear(spec.features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class logits: x [N, C, H, W] float32 in [-1, 1] -> [N, classes]."""
        return self.head(self._activations(x)[0])

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features [N, F] and spatial features [N, spatial_channels * h * w], both at least 0.

        The spatial ones are the first channels of an inner map, as the ADM evaluator takes the first seven
        of Inception's mixed_6/conv.

        Source: guided-diffusion evaluations/evaluator.py.
        """
        pool, spatial = self._activations(x)
        return pool, spatial[:, : self.spatial_channels].flatten(1)

    def _activations(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Penultimate activations [N, F] and the second convolution's map [N, 2 width, h, w]."""
        x = F.relu(self.conv1(x))
        if self.shrink > 1:
            x = F.avg_pool2d(x, self.shrink)
        spatial = F.relu(self.conv2(x))
        x = F.relu(self.conv3(F.avg_pool2d(spatial, 2)))
        return F.relu(self.pool(x.flatten(1))), spatial


def initialise(net: FeatureNet, seed: int) -> None:
    """Set biases to 0 and weights to normals of variance 2 / fan-in, from the CLASSIFIER_INIT stream."""
    with torch.no_grad():
        for lane, parameter in enumerate(net.parameters()):
            if parameter.ndim == 1:
                parameter.zero_()
                continue
            draw = normals(seed, Purpose.CLASSIFIER_INIT, [0], tuple(parameter.shape), lane=lane)[0]
            parameter.copy_(torch.from_numpy(draw * np.float32(math.sqrt(2 / parameter[0].numel()))))


def train(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    rows: NDArray[np.int64],
    spec: Classifier,
    compute: Compute,
) -> FeatureNet:
    """Train a net on some rows of a labelled data set.

    Args:
        images: [N, H, W, C] uint8, H = W.
        labels: [N] int64, 0..K-1.
        rows: [n] int64, the rows to train on; every epoch visits them in an order of its own.
        spec: the net and its optimisation.
        compute: device and threads.

    Returns:
        The trained net, in eval mode.
    """
    device = configure(compute)
    net = FeatureNet(spec, images.shape[1], images.shape[3], int(labels.max()) + 1)
    initialise(net, spec.seed)
    net.to(device)
    optimizer = Adam(net.parameters(), weight_decay=0.01, decoupled=True)
    progress.begin("updates", spec.steps)
    for step in range(spec.steps):
        batch = np.sort(rows[_places(spec, step, len(rows))])
        x, y = to_network(images[batch]).to(device), torch.from_numpy(labels[batch]).to(device)
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(spec.lr * 0.5 * (1 + math.cos(math.pi * step / spec.steps)))
        progress.tell(step + 1)
    return net.eval()


def _places(spec: Classifier, step: int, n: int) -> NDArray[np.int64]:
    """Places of update `step` in the endless row of shuffled epochs: [batch_size] int64, 0..n-1."""
    place = np.arange(step * spec.batch_size, (step + 1) * spec.batch_size)
    epochs = range(int(place[0]) // n, int(place[-1]) // n + 1)
    order = np.concatenate([permutation(spec.seed, Purpose.CLASSIFIER_ORDER, n, epoch=e) for e in epochs])
    return order[place - epochs[0] * n]


@torch.no_grad()
def accuracy(net: FeatureNet, images: NDArray[np.uint8], labels: NDArray[np.int64], batch_size: int = 500) -> float:
    """Share of images that the net puts into the right class, 0..1; images and labels as for `train`."""
    device = net.head.weight.device
    hits = 0
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        guess = net(to_network(images[part]).to(device)).argmax(1).cpu().numpy()
        hits += int((guess == labels[part]).sum())
    return hits / len(images)


def save(net: FeatureNet, path: Path) -> None:
    """Write the net as safetensors; the image size is its only metadata."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    save_file(tensors, path, metadata={"image_size": str(net.image_size)})


def load(path: Path, spec: Classifier) -> FeatureNet:
    """Rebuild a net from its file, in eval mode on the CPU; channels and classes follow from the shapes.

    Raises:
        UserError: the file is unreadable, or was trained with another `spec`.
    """
    kind = filekind.look(path)
    if kind.name != "safetensors":
        raise UserError(f"{path}: is {kind.words}; expected a classifier.safetensors of the pipeline")
    try:
        with safe_open(path, framework="pt") as file:
            size = int(file.metadata()["image_size"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        net = FeatureNet(spec, size, tensors["conv1.weight"].shape[1], tensors["head.weight"].shape[0])
        net.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise UserError(
            f"{path}: not a classifier of these settings (width {spec.width}, features {spec.features}): {brief(error)}"
        ) from error
    return net.eval()
