"""The one function pair between images at rest (uint8 NHWC) and in networks (float32 NCHW in [-1, 1])."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ipdiff.data.npy import load_npy
from ipdiff.errors import UserError, brief

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ipdiff.data.spec import Quantise

SHARE_FOR_IMAGES = 0.2
"""Of a GPU's free memory, for a data set that stays there."""


def to_network(images: NDArray[np.uint8] | Tensor) -> Tensor:
    """Scale images for a network: u / 127.5 - 1.

    Args:
        images: [N, H, W, C] uint8.

    Returns:
        [N, C, H, W] float32 in [-1, 1], contiguous, on the images' device.

    Source: guided-diffusion guided_diffusion/image_datasets.py.
    """
    import torch

    tensor = images if isinstance(images, torch.Tensor) else torch.from_numpy(np.array(images))
    return (tensor.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1).contiguous()


class Reader:
    """Gives images by their indices, for a network on some device.

    Attributes:
        resident: [N, H, W, C] uint8 on the device, where a GPU has room for the whole set: batches then never cross
            the bus; else None, and batches are on the host.
    """

    def __init__(self, images: NDArray[np.uint8], device: torch.device) -> None:
        """Put the set on the GPU now, or keep `images`, [N, H, W, C] uint8."""
        import torch

        self.images = images
        self.resident = torch.from_numpy(np.array(images)).to(device) if fits(images, device) else None

    def __call__(self, indices: NDArray[np.int64]) -> NDArray[np.uint8] | Tensor:
        """[n] int64 -> [n, H, W, C] uint8."""
        import torch

        if self.resident is None:
            return self.images[indices]
        return self.resident[torch.from_numpy(indices).to(self.resident.device)]


def fits(images: NDArray[np.uint8], device: torch.device) -> bool:
    """Whether the device is a GPU with room for the whole set."""
    import torch

    return device.type == "cuda" and images.nbytes <= torch.cuda.mem_get_info(device)[0] * SHARE_FOR_IMAGES


def to_uint8(x: Tensor, quantise: Quantise = "truncate") -> NDArray[np.uint8]:
    """Turn a network's images into images at rest, as the code base does that they are compared with: FID sees it.

    Args:
        x: [N, C, H, W] float, any range.
        quantise: "truncate" (guided-diffusion): trunc(clamp((x + 1) * 127.5, 0, 255)), where a float just below an
            integer loses one grey level, so that `to_uint8(to_network(u))` may be u - 1; "round" (the DDIM code, whose
            images torchvision saves): trunc(min(255 * clamp((x + 1) / 2, 0, 1) + 0.5, 255)).

    Returns:
        [N, H, W, C] uint8.

    Source: guided-diffusion scripts/image_sample.py@22e0df8; ermongroup/ddim runners/diffusion.py and
        datasets/__init__.py@e8df66c with torchvision.utils.save_image.
    """
    import torch

    x = x.detach()
    if quantise == "round":
        grey = (((x + 1) / 2).clamp(0, 1) * 255 + 0.5).clamp(max=255)
    else:
        grey = ((x + 1) * 127.5).clamp(0, 255)
    return grey.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


CHANNELS = (1, 3)
"""Numbers of channels that images may have: grey, or red, green and blue."""


def load_images(path: Path) -> NDArray[np.uint8]:
    """Open an images.npy as a read-only memory map: [N, H, W, C] uint8.

    Raises:
        UserError: the file is missing, is no npy file, or holds anything but uint8 NHWC images.
    """
    images = load_npy(path)
    check_images(images.shape, images.dtype, path)
    return images


def check_images(shape: tuple[int, ...], dtype: np.dtype[Any], where: Path | str) -> None:
    """Raise a UserError that names `where` unless an array of this shape and dtype holds images: uint8 NHWC."""
    found = f"{brief(dtype, 30)} {brief(list(shape), 60)}"
    expected = f"{where}: expected images uint8 [N, H, W, C], found {found}"
    if dtype != np.uint8:
        floats = "; floats in [-1, 1] become ((x + 1) * 127.5).clip(0, 255).astype(np.uint8)"
        raise UserError(expected + floats * (dtype.kind == "f"))
    if len(shape) != 4:
        raise UserError(expected + "; grey images need one axis more: images[..., None]" * (len(shape) == 3))
    if shape[3] not in CHANNELS and shape[1] in CHANNELS:
        raise UserError(f"{expected}; the channels stand last: images.transpose(0, 2, 3, 1)")
    if shape[3] not in CHANNELS:
        raise UserError(f"{where}: images have {shape[3]} channels; expected 1 or 3: [N, H, W, C], found {found}")
    if 0 in shape[1:]:
        raise UserError(f"{expected}, which have no pixels")
