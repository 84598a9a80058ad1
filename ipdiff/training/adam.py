"""Adam and AdamW through torch's functional interface.

The first update of a class of `torch.optim` imports the machinery of torch.compile, which takes longer than the rest
of a stage's start; the functions behind the classes do not need it. The arithmetic, and so the bytes, are theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam

BETAS = (0.9, 0.999)
EPS = 1e-8


class Adam:
    """PyTorch's betas and eps, one weight decay for all parameters.

    Attributes:
        moments: by a parameter's place, from its first update on: step [], exp_avg and exp_avg_sq of its shape.
    """

    def __init__(
        self, params: Iterable[Tensor], *, weight_decay: float, decoupled: bool, fused: bool | None = None
    ) -> None:
        """Start without moments: they are made by the first update.

        Args:
            params: floating-point leaves, of any shapes.
            weight_decay: at least 0.
            decoupled: AdamW's decay of the weights instead of Adam's of the gradient.
            fused: one kernel for all; None: as torch.optim chooses by the device.
        """
        self.moments: dict[int, dict[str, Tensor]] = {}
        self._params = list(params)
        self._weight_decay, self._decoupled, self._fused = weight_decay, decoupled, fused

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self._params:
            p.grad = None

    @torch.no_grad()
    def step(self, lr: float | Tensor, *, skip: Tensor | None = None) -> None:
        """Update every parameter that has a gradient.

        Args:
            lr: learning rate, at least 0; on a GPU also a float32 scalar there, which is not waited for.
            skip: float32 scalar on the parameters' device: 1 leaves everything as it is, 0 updates. Fused only.
        """
        places = [i for i, p in enumerate(self._params) if p.grad is not None]
        self.moments |= {i: self._begin(self._params[i]) for i in places if i not in self.moments}
        states = [self.moments[i] for i in places]
        adam(
            [self._params[i] for i in places],
            [grad for i in places if (grad := self._params[i].grad) is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=self._fused,
            found_inf=skip,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=lr,
            weight_decay=self._weight_decay,
            eps=EPS,
            maximize=False,
            decoupled_weight_decay=self._decoupled,
        )

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        """Moments before the first update, laid out in memory like their parameter."""
        return {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device if self._fused else "cpu"),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }

    def load(self, moments: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Go on from what `moments` held; the tensors are taken over, on their parameters' devices."""
        self.moments = {}
        for i, state in moments.items():
            device = self._params[i].device
            step = state["step"].to(device=device if self._fused else "cpu", dtype=torch.float32)
            self.moments[i] = {key: value.to(device) for key, value in state.items()} | {"step": step}
