"""Random numbers on a device without a kernel are numpy's, wherever their coordinates lie."""

from __future__ import annotations

import numpy as np
import torch

from ipdiff import rng
from ipdiff.device import kernels
from ipdiff.device.program import Program
from ipdiff.device.streams import Draws, KernelDraws, draws_on
from ipdiff.rng import Purpose

CPU = torch.device("cpu")


def test_images_and_step_may_be_tensors_of_the_device():
    draws = draws_on(CPU)
    index, step = torch.tensor([3, 2**40]), torch.tensor([9])
    drawn = draws.normals(5, Purpose.XI, index, (3, 7), step=step)
    assert drawn.dtype == torch.float32
    assert np.array_equal(drawn.numpy(), rng.normals(5, Purpose.XI, [3, 2**40], (3, 7), step=9))
    step += 1
    masks = draws.keep_mask(5, index, (3, 7), 9999, step=step, lane=2)
    assert masks.dtype == torch.bool
    assert np.array_equal(masks.numpy(), rng.keep_mask(5, [3, 2**40], (3, 7), 9999, step=10, lane=2))


def test_a_gpu_draws_by_its_kernel_where_there_is_one(monkeypatch):
    gpu = torch.device("cuda")
    assert type(draws_on(CPU)) is Draws
    for there, kind in ((True, KernelDraws), (False, Draws)):
        monkeypatch.setattr(kernels, "available", lambda there=there: there)
        assert type(draws_on(gpu)) is kind


def test_nothing_is_captured_where_the_host_draws(monkeypatch):
    """A captured program would repeat the first numbers for ever."""
    monkeypatch.setattr(kernels, "available", lambda: False)
    ran = []
    Program(lambda: ran.append(0), torch.device("cuda"), "a step").prepare()
    assert ran == []
