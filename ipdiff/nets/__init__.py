"""The two published denoising networks, state-dict compatible with their code bases."""

from ipdiff.nets.adm import ADMUNet
from ipdiff.nets.ddpm import DDPMUNet
from ipdiff.nets.layers import dropout_masks, initialise, keep_threshold, twice_differentiable

__all__ = ["ADMUNet", "DDPMUNet", "dropout_masks", "initialise", "keep_threshold", "twice_differentiable"]
