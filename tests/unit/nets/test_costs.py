"""Weights, arithmetic and memory from shapes alone, against torch on its meta device, which computes nothing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from unit.tiny import RUNS, change

from benchmarks.configurations import CIFAR10, FFHQ128
from ipdiff.device import kernels
from ipdiff.device.recompute import keeping
from ipdiff.device.spec import Precision
from ipdiff.nets import build, costs, layers
from ipdiff.nets.dropout import dropout_masks
from ipdiff.pipeline import config
from ipdiff.spec import ADMNetwork, DDPMNetwork, RunSpec

LSUN64 = change(CIFAR10, network=ADMNetwork(192, [1, 2, 3, 4], 3, [32, 16, 8], num_head_channels=64), image_size=64)
PAPER = {
    "cifar10": CIFAR10,
    "lsun64": change(LSUN64, dropout=0.1),
    "ffhq128": FFHQ128,
    "ddim": change(CIFAR10, family="ddpm", network=DDPMNetwork(128, [1, 2, 2, 2], 2, [16])),
}
"""The paper's networks (ImageNet's is CIFAR-10's, CelebA's is LSUN's)."""
TINY = {name: RUNS[name] for name in ("adm", "ddim")}
OTHERS = {
    "digits": config.load().run_spec("digits", "adm", 0),
    "digits ddim": config.load().run_spec("digits_short", "ddim", 0),
    "heads": change(CIFAR10, num_head_channels=None, num_heads=2, channel_mult=[2, 1, 2], num_res_blocks=1),
    "strided": change(CIFAR10, resblock_updown=False, use_scale_shift_norm=False, dropout=0.0),
    "old order": change(CIFAR10, new_attention_order=False, attention_resolutions=[]),
}
DTYPES: dict[Precision, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class _Gpu(TorchFunctionMode):
    """What a GPU does otherwise than the meta device: autocast, and attention in a fused kernel."""

    def __init__(self, net: layers.UNet, dtype: torch.dtype) -> None:
        super().__init__()
        self.last, self.dtype = net.last_layer, dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d and args[1] is not self.last.weight:
            args = tuple(part.to(self.dtype) if isinstance(part, Tensor) else part for part in args)
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_efficient_attention(*args, None, compute_log_sumexp=True)[0]
        return func(*args, **(kwargs or {}))


class _Storages(TorchDispatchMode):
    """Remembers every storage that an operation gives, without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = func(*args, **(kwargs or {}))
        for part in tree_leaves(given):
            if isinstance(part, Tensor):
                storage = part.untyped_storage()
                self.seen[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return given

    def alive(self) -> int:
        """Bytes of those that something still holds."""
        return sum(size for reference, size in self.seen.values() if not reference.expired())


class _NotLaunched:
    """A kernel that is not run."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *arguments: None


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms go through the GPU's kernels, whose launches do nothing."""
    if not kernels.available():
        pytest.skip("triton is not installed")
    from ipdiff.device.kernels import norm

    monkeypatch.setattr(layers, "_takes_kernels", lambda input: True)
    for name in ("_statistics", "_apply"):
        monkeypatch.setattr(norm, name, _NotLaunched())


def on_meta(spec: RunSpec, batch: int) -> tuple[layers.UNet, Tensor, Tensor]:
    with torch.device("meta"):
        net = build.network(spec).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        x = torch.empty(batch, spec.channels, spec.image_size, spec.image_size)
        return net, x.to(memory_format=torch.channels_last), torch.zeros(batch, dtype=torch.int64)


def kept(spec: RunSpec, dtype: torch.dtype, batch: int, *, everything: bool) -> int:
    """Bytes that the graph of one forward pass holds, weights and output left out, with the image that goes in."""
    net, x, t = on_meta(spec, batch)
    source = lambda ordinal, shape: torch.empty(shape, dtype=torch.bool, device="meta")  # noqa: E731
    storages = _Storages()
    with dropout_masks(net.train(), source), _Gpu(net, dtype), storages, keeping(everything):
        graph = net(x * 1, t).grad_fn
    assert graph is not None
    return storages.alive()


@pytest.mark.parametrize("name", [*PAPER, *OTHERS, *TINY])
def test_weights_and_arithmetic_are_torch_s(name: str) -> None:
    spec = (PAPER | OTHERS | TINY)[name]
    net, x, t = on_meta(spec, 1)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net.eval()(x, t)
    cost = costs.of(spec)
    assert (cost.flops, cost.parameters) == (counter.get_total_flops(), sum(p.numel() for p in net.parameters()))


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("name", [*PAPER, *OTHERS])
def test_memory_of_an_image_is_what_a_graph_keeps(name: str) -> None:
    """The difference of two batches: what is there once is no part of it.

    (Images of a few pixels are left out: attention's kernel rounds its rows up to 32.)
    """
    spec = (PAPER | OTHERS)[name]
    for (precision, dtype), everything in product(DTYPES.items(), (False, True)):
        less, more = (kept(spec, dtype, batch, everything=everything) for batch in (2, 3))
        found = costs.of(spec).bytes_an_image(precision, everything=everything)
        assert found == pytest.approx(more - less, rel=0.002, abs=200), (precision, everything)


@pytest.mark.parametrize(("name", "most"), [("cifar10", 46), ("lsun64", 165), ("ffhq128", 430)])
def test_the_paper_s_networks_fit(name: str, most: int) -> None:
    """MiB an image in bfloat16."""
    assert costs.of(PAPER[name]).bytes_an_image("bfloat16") < most * 2**20


def test_a_family_without_a_formula_is_counted_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    walked = costs.of(CIFAR10)
    monkeypatch.delitem(costs.WALKS, "adm")
    assert costs.of(CIFAR10) == costs.Cost(walked.parameters, walked.flops)


def test_a_low_precision_has_a_copy_of_the_weights() -> None:
    """Weights, gradients, moments and averages of the paper's networks take 1.4, 7 and 13 GiB."""
    for name, gib in (("cifar10", 1.4), ("lsun64", 7.1), ("ffhq128", 13.1)):
        cost = costs.of(PAPER[name])
        assert cost.fixed_bytes("bfloat16") / 2**30 == pytest.approx(gib, abs=0.05)
        assert cost.fixed_bytes("bfloat16") - cost.fixed_bytes("float32") == 2 * cost.parameters
