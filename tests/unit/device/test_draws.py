"""Random numbers made on a device are numpy's: equal integers, and on the CPU equal normals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ipdiff import rng
from ipdiff.device.streams import DeviceDraws, HostDraws, draws_on
from ipdiff.rng import Purpose

CPU = torch.device("cpu")
DEVICE = DeviceDraws(CPU)


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1, 2**63 + 11, 2**64 - 1])
@pytest.mark.parametrize(("index", "step", "lane"), [(range(3), 0, 0), ([2**62, 5], 2**63 + 3, 2), ([9], 12, 35)])
def test_words_are_philox(seed, index, step, lane):
    for count in (1, 4, 30):
        raw = DEVICE.words(seed, Purpose.XI, index, count, step=step, lane=lane)
        expected = rng.words(seed, Purpose.XI, index, count, step=step, lane=lane)
        assert np.array_equal(raw.contiguous().numpy().view(np.uint64), expected)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 5, 5), (1,)])
def test_normals_have_equal_bits_on_the_cpu(shape):
    expected = rng.normals(5, Purpose.EPS, range(40, 60), shape, step=3)
    drawn = DEVICE.normals(5, Purpose.EPS, range(40, 60), shape, step=3)
    assert drawn.dtype == torch.float32
    assert np.array_equal(drawn.numpy(), expected)


def test_images_and_step_may_be_tensors_of_the_device():
    index, step = torch.tensor([3, 2**40]), torch.tensor([9])
    drawn = DEVICE.normals(5, Purpose.XI, index, (3, 7), step=step)
    assert np.array_equal(drawn.numpy(), rng.normals(5, Purpose.XI, [3, 2**40], (3, 7), step=9))
    step += 1
    masks = DEVICE.keep_mask(5, index, (3, 7), 9999, step=step, lane=2)
    assert np.array_equal(masks.numpy(), rng.keep_mask(5, [3, 2**40], (3, 7), 9999, step=10, lane=2))


def test_extreme_words_have_equal_normals():
    raw = np.array([[0, 0, 1, 2**64 - 1], [2**64 - 1, 2**63, 2**64 - 2**11, 2**62]], dtype=np.uint64)
    from ipdiff.device import streams

    found = streams.normals(torch.from_numpy(raw.view(np.int64)))
    assert np.array_equal(found.numpy(), rng.box_muller(raw))


def test_masks_are_equal():
    for shape, lane in (((4, 4, 8), 0), ((3, 3, 5), 7)):
        expected = rng.keep_mask(1, range(6), shape, 19661, step=4, lane=lane)
        found = DEVICE.keep_mask(1, range(6), shape, 19661, step=4, lane=lane)
        assert found.dtype == torch.bool
        assert np.array_equal(found.numpy(), expected)


def test_the_cpu_takes_numpy_s():
    assert isinstance(draws_on(CPU), HostDraws)
    with pytest.raises(ValueError, match="use 0 <= seed"):
        DEVICE.normals(-1, Purpose.EPS, range(2), (4,))
