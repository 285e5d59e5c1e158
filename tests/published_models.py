"""Configurations of published checkpoints without weights; text encoders have their widths and a single layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderRAE,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from small_models import write_clip, write_ddim, write_flow, write_index, write_t5

__all__ = ["PUBLISHED"]


def write_config(folder: Path, kind: Any, **options: Any) -> None:
    """The configuration of a model, which is built without memory for its weights."""
    with torch.device("meta"):
        kind(**options).save_config(folder)


def write_vae(folder: Path, channels: int = 4) -> None:
    write_config(
        folder / "vae",
        AutoencoderKL,
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=channels,
    )


def stable_diffusion(folder: Path, width: int, heads: Any, **options: Any) -> None:
    write_config(
        folder / "unet", UNet2DConditionModel, cross_attention_dim=width, attention_head_dim=heads, **options
    )
    write_vae(folder)
    write_clip(folder, projected=False, width=width)
    write_ddim(folder)
    write_index(folder, "StableDiffusionPipeline")


def sd15(folder: Path) -> None:
    stable_diffusion(folder, 768, 8)


def sd21(folder: Path) -> None:
    stable_diffusion(folder, 1024, [5, 10, 20, 20], use_linear_projection=True)


def sdxl(folder: Path) -> None:
    write_config(
        folder / "unet",
        UNet2DConditionModel,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        attention_head_dim=[5, 10, 20],
        transformer_layers_per_block=[1, 2, 10],
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    write_vae(folder)
    write_ddim(folder)
    write_index(folder, "StableDiffusionXLPipeline", force_zeros_for_empty_prompt=True)


def adm(folder: Path) -> None:
    write_config(
        folder / "unet",
        UNet2DModel,
        out_channels=6,
        block_out_channels=(256, 256, 512, 512, 1024, 1024),
        attention_head_dim=64,
        attn_norm_num_groups=32,
        down_block_types=("ResnetDownsampleBlock2D",) * 3 + ("AttnDownBlock2D",) * 3,
        up_block_types=("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",) * 3,
        resnet_time_scale_shift="scale_shift",
        upsample_type="resnet",
        downsample_type="resnet",
    )
    write_ddim(folder)
    write_index(folder, "DDIMPipeline")


def dit(folder: Path) -> None:
    write_config(folder / "transformer", DiTTransformer2DModel, out_channels=8, sample_size=64)
    write_vae(folder)
    write_ddim(folder)
    write_index(folder, "DiTPipeline")


def pixart(folder: Path) -> None:
    write_config(folder / "transformer", PixArtTransformer2DModel, caption_channels=4096)
    write_vae(folder)
    write_t5(folder, width=4096)
    write_ddim(folder)
    write_index(folder, "PixArtAlphaPipeline")


def sd35(folder: Path) -> None:
    write_config(
        folder / "transformer",
        SD3Transformer2DModel,
        num_layers=24,
        num_attention_heads=24,
        caption_projection_dim=1536,
        pos_embed_max_size=384,
        dual_attention_layers=tuple(range(13)),
        qk_norm="rms_norm",
    )
    write_vae(folder, 16)
    write_clip(folder, width=768)
    write_clip(folder, "_2", width=1280)
    write_flow(folder)
    write_index(folder, "StableDiffusion3Pipeline")


def flux(folder: Path) -> None:
    write_config(folder / "transformer", FluxTransformer2DModel, guidance_embeds=True)
    write_vae(folder, 16)
    write_clip(folder, projected=False, width=768)
    write_t5(folder, "_2", width=4096)
    write_flow(folder)
    write_index(folder, "FluxPipeline")


def rae(folder: Path) -> None:
    write_config(
        folder,
        AutoencoderRAE,
        decoder_hidden_size=1152,
        decoder_num_hidden_layers=28,
        decoder_intermediate_size=4096,
    )


PUBLISHED: dict[str, tuple[Callable[[Path], None], float, int, tuple[int, int]]] = {
    "adm": (adm, 0.55, 8, (1, 512)),
    "dit": (dit, 0.78, 16, (16, 72)),
    "flux": (flux, 11.9, 16, (24, 128)),
    "pixart": (pixart, 0.61, 16, (16, 72)),
    "rae": (rae, 0.54, 14, (16, 72)),
    "sd15": (sd15, 0.86, 16, (8, 80)),
    "sd21": (sd21, 0.87, 16, (10, 64)),
    "sd35": (sd35, 2.2, 16, (24, 64)),
    "sdxl": (sdxl, 2.57, 16, (10, 64)),
}
"""By the choice of `backbone=`: a function that writes the configurations; and of the published model, the number of
parameters in billions, and of the layer that the YAML chooses, the stride, and the heads and their width."""
