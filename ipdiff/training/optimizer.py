"""What happens between a gradient and the next weights: sums, learning rate, optimiser, EMA."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ipdiff.spec import Objective, Training
from ipdiff.training.adam import Adam


def tree_sum(count: int, leaf: Callable[[int], list[Tensor]], first: int = 0, *, halves: bool = True) -> list[Tensor]:
    """Sum leaf(first) .. leaf(first + count - 1) in a fixed order: `halves` while they are equal, then in turn.

    A power-of-two number of processes, each with an equal share of the leaves, can compute a subtree each
    and arrive at the same bits (design: exact data-parallel training). In turn, two leaves are kept at once.
    """
    if count == 1:
        return leaf(first)
    if halves and count % 2 == 0:
        total = tree_sum(count // 2, leaf, first)
        _add_(total, tree_sum(count // 2, leaf, first + count // 2))
        return total
    total = leaf(first)
    for i in range(first + 1, first + count):
        _add_(total, leaf(i))
    return total


def of_parts(
    parts: Sequence[range], gradients: Callable[[range], tuple[Tensor, list[Tensor]]], *, halves: bool
) -> tuple[Tensor, list[Tensor]]:
    """Losses [n] of all parts of a batch, one part after another, and the sum of their gradients (see `tree_sum`)."""
    losses: list[Tensor] = []

    def leaf(number: int) -> list[Tensor]:
        found, grads = gradients(parts[number])
        losses.append(found)
        return grads

    grads = tree_sum(len(parts), leaf, halves=halves)
    return torch.cat(losses), grads


def _add_(total: list[Tensor], other: list[Tensor]) -> None:
    torch._foreach_add_(total, other)  # type: ignore[attr-defined]


def learning_rate(spec: Training, step: int) -> float:
    """Rate of update `step` (0-based): linear warm-up, then constant or a decay to 0 at lr_decay_steps."""
    rate = spec.lr * min(1.0, (step + 1) / spec.lr_warmup) if spec.lr_warmup else spec.lr
    if spec.lr_decay == "none":
        return rate
    done = min(1.0, step / spec.lr_decay_steps)
    return rate * (1.0 - done if spec.lr_decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * done)))


def make_optimizer(net: nn.Module, objective: Objective) -> Adam:
    """Adam with the objective's weight decay (decoupled: AdamW), PyTorch's betas and eps, fused."""
    decay, decoupled = objective.weight_decay, objective.decay == "decoupled"
    return Adam(net.parameters(), weight_decay=decay, decoupled=decoupled, fused=True)


@dataclass
class LossScale:
    """The loss scale of float16 training, as its base-2 logarithm: it belongs to the train state.

    Source: guided-diffusion guided_diffusion/fp16_util.py@22e0df8 (MixedPrecisionTrainer).
    """

    log2: float = 20.0
    growth: float = 0.001

    @property
    def factor(self) -> float:
        """What the loss is multiplied by."""
        return 2.0**self.log2

    def after(self, done: bool) -> float:
        """Its logarithm after an update that was done, or skipped because its gradient was not finite."""
        return self.log2 + (self.growth if done else -1.0)


def ema_decay(spec: Training, step: int) -> float:
    """Decay used after update `step` (0-based)."""
    return min(spec.ema_decay, (1 + step) / (10 + step)) if spec.ema_warmup else spec.ema_decay


@torch.no_grad()
def ema_update(ema: Sequence[Tensor], params: Sequence[Tensor], decay: float) -> None:
    """Ema <- decay * ema + (1 - decay) * params, in place."""
    torch._foreach_lerp_(list(ema), list(params), 1.0 - decay)  # type: ignore[attr-defined]
