"""Adam and AdamW through torch's functional interface.

The first update of a class of `torch.optim` imports the machinery of torch.compile, which takes longer than the rest
of a stage's start; the functions behind the classes do not need it. The arithmetic, and so the bytes, are theirs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

BETAS = (0.9, 0.999)
EPS = 1e-8


class Adam:
    """One group of parameters, PyTorch's betas and eps; the part of an optimiser's interface that is used here.

    Attributes:
        param_groups: one group, whose `lr` may be changed between updates.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        weight_decay: float,
        decoupled: bool,
        fused: bool | None = None,
    ) -> None:
        """Start without moments: they are made by the first update.

        Args:
            params: floating-point leaves, of any shapes.
            lr: learning rate, at least 0.
            weight_decay: at least 0.
            decoupled: AdamW's decay of the weights instead of Adam's of the gradient.
            fused: one kernel for all; None: as torch.optim chooses by the device.
        """
        self.param_groups: list[dict[str, Any]] = [
            {"params": list(params), "lr": lr, "weight_decay": weight_decay, "decoupled_weight_decay": decoupled}
        ]
        self._fused = fused
        self._state: dict[int, dict[str, Tensor]] = {}

    @property
    def _params(self) -> list[Tensor]:
        return self.param_groups[0]["params"]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients (or zero them)."""
        for p in self._params:
            if set_to_none:
                p.grad = None
            elif p.grad is not None:
                p.grad.zero_()

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        places = [i for i, p in enumerate(self._params) if p.grad is not None]
        self._state |= {i: self._begin(self._params[i]) for i in places if i not in self._state}
        states = [self._state[i] for i in places]
        group = self.param_groups[0]
        adam(
            [self._params[i] for i in places],
            [grad for i in places if (grad := self._params[i].grad) is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=self._fused,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=EPS,
            maximize=False,
            decoupled_weight_decay=group["decoupled_weight_decay"],
        )

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        """Moments before the first update, laid out in memory like their parameter."""
        return {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device if self._fused else "cpu"),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }

    def state_dict(self) -> dict[str, Any]:
        """The moments under `state`, by the parameter's place: step [], exp_avg and exp_avg_sq of its shape."""
        return {"state": {i: dict(state) for i, state in self._state.items()}}

    def load_state_dict(self, found: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave; the tensors are taken over, on their parameters' devices."""
        self._state = {}
        for i, state in found["state"].items():
            device = self._params[i].device
            step = state["step"].to(device=device if self._fused else "cpu", dtype=torch.float32)
            self._state[i] = {key: value.to(device) for key, value in state.items()} | {"step": step}
