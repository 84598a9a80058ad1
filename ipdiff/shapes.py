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


def check_widths(
    model_channels: int,
    channel_mult: Sequence[int],
    norm_groups: int,
    heads: tuple[str, int] | None,
    attended: Sequence[bool],
) -> None:
    """Refuse a U-Net whose channels its time embedding, group norms or attention cannot divide.

    Args:
        model_channels: base width; the first convolution's and the time embedding's.
        channel_mult: width of each level as a multiple of the base.
        norm_groups: groups of every norm.
        heads: what must divide the channels of an attention block, by name; None for a single head.
        attended: which levels carry attention; the middle block, as wide as the last level, always does.

    Raises:
        ValueError: it says which number does not fit.
    """
    if model_channels % 2:
        raise ValueError(f"model_channels={model_channels} is not even; time is embedded in pairs")
    widths = [model_channels * mult for mult in channel_mult]
    for width in widths:
        if width % norm_groups:
            raise ValueError(f"norm_groups={norm_groups} does not divide a layer's {width} channels")
    if heads is None:
        return
    name, unit = heads
    for width, attends in zip(widths, [*attended[:-1], True], strict=True):
        if attends and width % unit:
            raise ValueError(f"{name}={unit} does not divide the {width} channels of an attention block")
