"""Small random checkpoints of every family of diffusion models, of the real classes and in diffusers' layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderRAE,
    DDIMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from pretraining.text import build_tokenizer

__all__ = ["CHECKPOINTS", "write_checkpoint_of"]

WIDTH = 16


def write_index(folder: Path, pipeline: str, **values: Any) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, **values}))


def write_vae(folder: Path, channels: int = 4, **options: Any) -> None:
    """An autoencoder of stride 8."""
    AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        **({"scaling_factor": 0.5} | options),
    ).save_pretrained(folder / "vae")


def write_clip(folder: Path, suffix: str = "", *, projected: bool = True, width: int = WIDTH) -> None:
    tokenizer = build_tokenizer(["a photo of a dog"])
    tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        eos_token_id=tokenizer.eos_token_id,
    )
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    kind(config).save_pretrained(folder / f"text_encoder{suffix}")


def write_t5(folder: Path, suffix: str = "", width: int = WIDTH) -> None:
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "photo": 4, "of": 5, "dog": 6}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    ).save_pretrained(folder / f"tokenizer{suffix}")
    T5EncoderModel(
        T5Config(
            vocab_size=7,
            d_model=width,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    ).save_pretrained(folder / f"text_encoder{suffix}")


def write_ddim(folder: Path) -> None:
    DDIMScheduler(beta_start=0.0001, beta_end=0.02, clip_sample=False).save_pretrained(folder / "scheduler")


def write_flow(folder: Path) -> None:
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")


def small_sdxl(folder: Path) -> None:
    UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32, 32),
        layers_per_block=2,
        norm_num_groups=8,
        attention_head_dim=[2, 4, 4],
        transformer_layers_per_block=[1, 2, 2],
        cross_attention_dim=2 * WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    ).save_pretrained(folder / "unet")
    write_vae(folder, force_upcast=True)
    write_clip(folder, projected=False)
    write_clip(folder, "_2")
    write_ddim(folder)
    write_index(folder, "StableDiffusionXLPipeline", force_zeros_for_empty_prompt=True)


def small_adm(folder: Path, **options: Any) -> None:
    UNet2DModel(
        sample_size=32,
        out_channels=6,
        block_out_channels=(8, 8, 8, 16, 16, 16),
        layers_per_block=2,
        norm_num_groups=4,
        attn_norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("ResnetDownsampleBlock2D",) * 3 + ("AttnDownBlock2D",) * 3,
        up_block_types=("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",) * 3,
        resnet_time_scale_shift="scale_shift",
        upsample_type="resnet",
        downsample_type="resnet",
        **options,
    ).save_pretrained(folder / "unet")
    write_ddim(folder)
    write_index(folder, "DDIMPipeline")


def small_dit(folder: Path) -> None:
    DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        out_channels=8,
        num_layers=13,
        sample_size=8,
        num_embeds_ada_norm=10,
        norm_elementwise_affine=False,
    ).save_pretrained(folder / "transformer")
    write_vae(folder)
    write_ddim(folder)
    write_index(folder, "DiTPipeline", id2label={"0": "dog", "1": "cat"})


def small_pixart(folder: Path) -> None:
    PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=13,
        cross_attention_dim=24,
        sample_size=128,
        caption_channels=WIDTH,
    ).save_pretrained(folder / "transformer")
    write_vae(folder)
    write_t5(folder)
    write_ddim(folder)
    write_index(folder, "PixArtAlphaPipeline")


def small_sd35(folder: Path) -> None:
    SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=11,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=48,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=64,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    ).save_pretrained(folder / "transformer")
    write_vae(folder, shift_factor=0.1)
    write_clip(folder)
    write_clip(folder, "_2")
    write_t5(folder, "_3", width=48)
    write_flow(folder)
    write_index(folder, "StableDiffusion3Pipeline")


def small_flux(folder: Path) -> None:
    FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=6,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    ).save_pretrained(folder / "transformer")
    write_vae(folder, shift_factor=0.1)
    write_clip(folder, projected=False)
    write_t5(folder, "_2")
    write_flow(folder)
    write_index(folder, "FluxPipeline")


def small_rae(folder: Path, encoder: str = "dinov2") -> None:
    patch = 14 if encoder == "dinov2" else 16
    AutoencoderRAE(
        encoder_type=encoder,
        encoder_hidden_size=128,
        encoder_patch_size=patch,
        encoder_num_hidden_layers=2,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=32,
        encoder_input_size=4 * patch,
    ).save_pretrained(folder)


CHECKPOINTS: dict[str, Callable[[Path], None]] = {
    "adm": small_adm,
    "dit": small_dit,
    "flux": small_flux,
    "pixart": small_pixart,
    "rae": small_rae,
    "sd35": small_sd35,
    "sdxl": small_sdxl,
}
"""Functions that write a checkpoint, by the choice of `backbone=` for it."""


def write_checkpoint_of(name: str, folder: Path, seed: int = 0) -> Path:
    """Writes a small checkpoint of a family with random weights."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    CHECKPOINTS[name](folder)
    return folder
