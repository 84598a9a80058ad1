"""Our networks as diffusers' `UNet2DModel`, written without diffusers.

Both families map: what differs between the code bases (names, the fused q, k and v of ADM, where a level resamples)
is a matter of names and of the configuration. The tests hold outputs of both against each other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from ipdiff.errors import UserError
from ipdiff.interop import schedulers
from ipdiff.interop.schedulers import WRITTEN_FOR
from ipdiff.spec import ADMNetwork, DDPMNetwork, RunSpec

PIPELINES = {"DDPMScheduler": "DDPMPipeline", "DDIMScheduler": "DDIMPipeline"}


def write(folder: Path, tensors: Mapping[str, Tensor], spec: RunSpec, *, clip_denoised: bool) -> str:
    """Write a folder that `UNet2DModel`, the scheduler and the pipeline of diffusers load by `from_pretrained`.

    Args:
        folder: an empty directory.
        tensors: the network's weights, by our names.
        spec: the run.
        clip_denoised: clamp the predicted x0 while sampling.

    Returns:
        The pipeline's class.

    Raises:
        UserError: the architecture has no equal in `UNet2DModel`; the line says why.
    """
    unet, scheduler = unet_config(spec), schedulers.config(spec, clip_denoised)
    renamed = rename(tensors, spec)
    kind = scheduler["_class_name"]
    index = {
        "_class_name": PIPELINES[kind],
        "_diffusers_version": WRITTEN_FOR,
        "scheduler": ["diffusers", kind],
        "unet": ["diffusers", "UNet2DModel"],
    }
    save_file(renamed, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    for name, config in (("config", unet), ("scheduler_config", scheduler), ("model_index", index)):
        (folder / f"{name}.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return PIPELINES[kind]


# Configuration


def unet_config(spec: RunSpec) -> dict[str, Any]:
    """The arguments of `UNet2DModel` that make the run's network.

    Raises:
        UserError: there are none.
    """
    net = spec.network
    if not isinstance(net, ADMNetwork | DDPMNetwork):
        raise UserError(f"format diffusers is for families adm and ddpm, not {spec.family}; use safetensors")
    if net.channel_mult[0] != 1:
        raise UserError(
            f"channel_mult starts with {net.channel_mult[0]}: a UNet2DModel embeds time in the width of its first "
            "level, so only 1 maps; use safetensors"
        )
    attends, widths = net.attends(spec.image_size), net.widths
    resample = isinstance(net, ADMNetwork) and net.resblock_updown
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if resample else ("DownBlock2D", "UpBlock2D")
    common = {
        "_class_name": "UNet2DModel",
        "_diffusers_version": WRITTEN_FOR,
        "act_fn": "silu",
        "block_out_channels": widths,
        "center_input_sample": False,
        "down_block_types": ["AttnDownBlock2D" if attend else plain[0] for attend in attends],
        "downsample_type": "resnet" if resample else "conv",
        "dropout": net.dropout,
        "in_channels": spec.channels,
        "layers_per_block": net.num_res_blocks,
        "mid_block_scale_factor": 1,
        "norm_num_groups": net.norm_groups,
        "attn_norm_num_groups": net.norm_groups,
        "out_channels": spec.channels * (2 if spec.diffusion.learn_sigma else 1),
        "sample_size": spec.image_size,
        "time_embedding_type": "positional",
        "up_block_types": ["AttnUpBlock2D" if attend else plain[1] for attend in reversed(attends)],
        "upsample_type": "resnet" if resample else "conv",
    }
    return common | (_adm_config(net, widths, attends) if isinstance(net, ADMNetwork) else _DDPM_CONFIG)


def _adm_config(net: ADMNetwork, widths: list[int], attends: list[bool]) -> dict[str, Any]:
    attending = {width for width, attend in zip(widths, attends, strict=True) if attend} | {widths[-1]}
    if net.num_head_channels is None and len(attending) > 1:
        raise UserError(
            f"num_heads is {net.num_heads} at the widths {sorted(attending)}: a UNet2DModel has one width of a head, "
            "so only num_head_channels maps; use safetensors"
        )
    return {
        "attention_head_dim": net.num_head_channels or widths[-1] // net.num_heads,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift" if net.use_scale_shift_norm else "default",
    }


_DDPM_CONFIG = {
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "resnet_time_scale_shift": "default",
}


# Names


def rename(tensors: Mapping[str, Tensor], spec: RunSpec) -> dict[str, Tensor]:
    """The weights by the names of `UNet2DModel`, in its shapes, of a run that `unet_config` has arguments for."""
    net = cast(ADMNetwork | DDPMNetwork, spec.network)
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        path, _, kind = name.rpartition(".")
        place = _adm_place(path, net) if isinstance(net, ADMNetwork) else _ddpm_place(path, len(net.channel_mult))
        linear = re.search(r"(qkv|to_(q|k|v|out\.0))$", place) and kind == "weight"
        whole = tensor.flatten(1) if linear else tensor  # a 1x1 convolution in the code bases
        if isinstance(net, ADMNetwork) and place.endswith("qkv"):
            stem, parts = place.removesuffix("qkv"), _cut(whole, net)
            renamed |= {f"{stem}to_{letter}.{kind}": part for letter, part in zip("qkv", parts, strict=True)}
        else:
            renamed[f"{place}.{kind}"] = whole
    return renamed


_TIME = {"0": "time_embedding.linear_1", "1": "time_embedding.linear_2"}
_OUT = {"norm_out": "conv_norm_out", "conv_out": "conv_out", "conv_in": "conv_in"}
_DDPM_PARTS = {
    "temb_proj": "time_emb_proj",
    "nin_shortcut": "conv_shortcut",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
_ADM_PARTS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def _ddpm_place(path: str, levels: int) -> str:
    """The DDIM code's names: down.L, mid and up.L, the last of which diffusers counts from the smallest image."""
    head, *rest = path.split(".")
    if head == "temb":
        return _TIME[rest[1]]
    if head in _OUT:
        return _OUT[head]
    if head == "mid":
        block, number = rest[0].split("_")
        place = f"mid_block.{_ddpm_list(block)}.{int(number) - 1}"
        return f"{place}.{_DDPM_PARTS.get(rest[1], rest[1])}"
    level = int(rest[0]) if head == "down" else levels - 1 - int(rest[0])
    if rest[1] in ("downsample", "upsample"):
        return f"{head}_blocks.{level}.{rest[1]}rs.0.conv"
    return f"{head}_blocks.{level}.{_ddpm_list(rest[1])}.{rest[2]}.{_DDPM_PARTS.get(rest[3], rest[3])}"


def _ddpm_list(block: str) -> str:
    return "resnets" if block == "block" else "attentions"


def _adm_place(path: str, net: ADMNetwork) -> str:
    """guided-diffusion's names: blocks counted through all levels, layers by their place in a block."""
    head, *rest = path.split(".")
    if head == "time_embed":
        return _TIME["0" if rest[0] == "0" else "1"]
    if head == "out":
        return "conv_norm_out" if rest[0] == "0" else "conv_out"
    if path == "input_blocks.0.0":
        return "conv_in"
    inner = ".".join(rest[1:] if head == "middle_block" else rest[2:])
    attends = inner.partition(".")[0] in ("norm", "qkv", "proj_out")
    part = {"norm": "group_norm", "qkv": "qkv", "proj_out": "to_out.0"}[inner] if attends else inner
    part = _ADM_PARTS.get(part, part)
    if head == "middle_block":
        return f"mid_block.{'attentions.0' if attends else f'resnets.{int(rest[0]) // 2}'}.{part}"
    block, layer = int(rest[0]), int(rest[1])
    each = net.num_res_blocks + 1
    if head == "input_blocks":  # block 0 is the first convolution; each level ends with its halving
        level, index = divmod(block - 1, each)
        resamples, side = index == net.num_res_blocks, "down"
    else:
        level, index = divmod(block, each)
        resamples, side = layer > 0 and not attends, "up"
    if resamples:
        return f"{side}_blocks.{level}.{side}samplers.0.{'conv' if part in ('op', 'conv') else part}"
    return f"{side}_blocks.{level}.{'attentions' if attends else 'resnets'}.{index}.{part}"


def _cut(whole: Tensor, net: ADMNetwork) -> list[Tensor]:
    """q, k and v of one [3C,...] tensor, rows in the order of heads: UNet2DModel has a layer for each."""
    if net.new_attention_order:
        parts = whole.chunk(3)
    else:  # every head has its own q, k and v
        width = net.num_head_channels
        heads = net.num_heads if width is None else len(whole) // 3 // width
        parts = [part.flatten(0, 1) for part in whole.unflatten(0, (heads, 3, -1)).unbind(1)]
    return [torch.clone(part, memory_format=torch.contiguous_format) for part in parts]
