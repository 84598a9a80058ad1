"""Image sizes inside a U-Net: plain arithmetic, for networks and for the check of params.yaml."""

from __future__ import annotations

from collections.abc import Sequence


def level_sizes(
    image_size: int, channel_mult: Sequence[int], num_res_blocks: int, attention_resolutions: Sequence[int]
) -> list[int]:
    """Image size of every level of a U-Net that halves between levels.

    Raises:
        ValueError: there is no level or block, a size is odd before the last level, or attention is asked
            for at a size that does not occur.
    """
    if not channel_mult or min(channel_mult) < 1 or num_res_blocks < 1:
        given = f"channel_mult={tuple(channel_mult)} and num_res_blocks={num_res_blocks}"
        raise ValueError(f"{given} must be one or more, all >= 1")
    factor = 2 ** (len(channel_mult) - 1)
    if image_size < factor or image_size % factor:
        raise ValueError(f"image_size={image_size} is not divisible by {factor} = 2^(levels - 1)")
    sizes = [image_size >> level for level in range(len(channel_mult))]
    absent = [size for size in attention_resolutions if size not in sizes]
    if absent:
        raise ValueError(f"attention_resolutions has {absent}, but the image sizes of the levels are {sizes}")
    return sizes
