"""Networks for a study of one's own, by image size: the paper's, and three narrower ones derived from it.

Source: the paper's Table 9 and the official commands for CIFAR-10 (32), CelebA (64) and FFHQ (128). For 16 pixels it is
the 32-pixel network without its last level.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ipdiff.device.spec import Compute
from ipdiff.spec import ADMNetwork, Diffusion, Objective, RunSpec, Training

T = 1000
"""Length of the chain trained on: the paper's."""


@dataclass(frozen=True)
class Preset:
    """A network, and how it is trained.

    Attributes:
        name: tiny, small, medium or full.
        network: its architecture.
        batch: images an update.
        lr: learning rate.
        worth: updates from which it is worth its time: with fewer a narrower one gives better images.
        most: updates beyond which a wider network is the better use of time; the paper's for the full one.
    """

    name: str
    network: ADMNetwork
    batch: int
    lr: float
    worth: int
    most: int


def _full(channel_mult: list[int], attention: list[int], width: int, head: int, dropout: float) -> ADMNetwork:
    return ADMNetwork(
        model_channels=width,
        channel_mult=channel_mult,
        num_res_blocks=3,
        attention_resolutions=attention,
        num_head_channels=head,
        dropout=dropout,
    )


_FULL = {
    16: (_full([1, 2, 2], [8], 128, 32, 0.3), 128, 500_000),
    32: (_full([1, 2, 2, 2], [16, 8], 128, 32, 0.3), 128, 500_000),
    64: (_full([1, 2, 3, 4], [32, 16, 8], 192, 64, 0.1), 256, 480_000),
    128: (_full([1, 1, 2, 3, 4], [32, 16, 8], 256, 64, 0.1), 128, 420_000),
}
"""Image size -> the full network, its batch and its updates without input perturbation (Table 4)."""
SIZES = tuple(_FULL)
"""Image sizes that there are networks for, in pixels."""


def of_size(size: int) -> list[Preset]:
    """The networks for images of one of SIZES, narrowest first."""
    full, batch, most = _FULL[size]
    low = [side for side in full.attention_resolutions if side <= 8]
    tiny = replace(
        full, model_channels=16, num_res_blocks=1, attention_resolutions=[], num_head_channels=16, norm_groups=8
    )
    small = replace(tiny, model_channels=32, attention_resolutions=low, num_head_channels=32)
    medium = replace(full, model_channels=64, num_res_blocks=2, num_head_channels=32, dropout=0.1)
    return [
        Preset("tiny", replace(tiny, dropout=0.0), batch=32, lr=2e-3, worth=0, most=20_000),
        Preset("small", replace(small, dropout=0.0), batch=64, lr=1e-3, worth=1_500, most=50_000),
        Preset("medium", medium, batch=64, lr=3e-4, worth=10_000, most=200_000),
        Preset("full", full, batch=batch, lr=1e-4, worth=50_000, most=most),
    ]


def diffusion() -> Diffusion:
    """The paper's noise process."""
    return Diffusion(schedule="cosine", T=T, learn_sigma=True)


def training(preset: Preset, updates: int, device: str) -> Training:
    """How a network is trained for so many updates.

    As the paper, but that short runs need a shorter memory of the weights, a warm-up and a decay: with the paper's
    moving average (0.9999) a run of 1,000 updates would publish little but its random start.
    """
    full = preset.name == "full"
    return Training(
        batch_size=preset.batch,
        lr=preset.lr,
        lr_warmup=0 if full else min(200, updates // 10),
        lr_decay="none" if full else "cosine",
        lr_decay_steps=0 if full else updates,
        timesteps="loss-second-moment",
        grad_clip=None if full else 1.0,
        ema_decay=min(0.9999, round(1 - 3 / max(updates, 10), 6)),
        ema_warmup=not full,
        flip=True,
        reduction="exact" if device == "cpu" else "fast",
    )


def run_spec(preset: Preset, channels: int, size: int, updates: int, compute: Compute, gamma: float = 0.0) -> RunSpec:
    """A run of a preset, as the study's params.yaml will describe it."""
    return RunSpec(
        family="adm",
        network=preset.network,
        diffusion=diffusion(),
        training=training(preset, updates, compute.device),
        objective=Objective(gamma=gamma, target="eps", gp_weight=0.0, weight_decay=0.0),
        compute=compute,
        image_size=size,
        channels=channels,
        seed=0,
    )
