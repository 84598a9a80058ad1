"""The two published denoising networks, state-dict compatible with their code bases."""

from ipdiff.nets.adm import ADMUNet
from ipdiff.nets.ddpm import DDPMUNet
from ipdiff.nets.inference import prepare_for_sampling
from ipdiff.nets.initial import initialise
from ipdiff.nets.layers import Dropout, dropout_masks, keep_threshold, twice_differentiable

__all__ = [
    "ADMUNet",
    "DDPMUNet",
    "Dropout",
    "dropout_masks",
    "initialise",
    "keep_threshold",
    "prepare_for_sampling",
    "twice_differentiable",
]
