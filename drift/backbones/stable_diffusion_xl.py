"""Stable Diffusion XL and SDXL-Turbo (arXiv 2307.01952): two text encoders, and the size of the image as input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from drift.backbones.diffusion import UNetModel
from drift.backbones.folders import CheckpointFolder
from drift.backbones.prompts import clip_embeddings
from drift.checkpoint_files import load_part
from drift.noising import Noise

__all__ = ["StableDiffusionXL", "from_checkpoint"]

CHECKPOINTS = {"StableDiffusionXLPipeline": "sdxl"}


def from_checkpoint(
    path: Path,
    *,
    source: str,
    dtype: torch.dtype,
    layers: Sequence[str] | None = ("up_blocks.1.attentions.2",),
    timestep: int = 51,
    noise: Noise | None = None,
    prompt: str = "",
) -> StableDiffusionXL:
    """A Stable Diffusion XL model in diffusers' layout.

    The text encoders are not needed for an empty prompt where the checkpoint says `force_zeros_for_empty_prompt`: the
    model is trained to take zeros for it. The autoencoder is computed in float32 instead of float16 where the
    checkpoint says `force_upcast`: its activations overflow.

    Args:
        path: the folder of the checkpoint.
        source: the checkpoint as the user named it.
        dtype: data type of weights and activations.
        layers, timestep, noise: see `DiffusionModel`.
        prompt: the text prompt; empty for the unconditional prompt.

    Raises:
        InputError: the checkpoint is incomplete or corrupt.
        OptionError: an option is out of range.
    """
    folder = CheckpointFolder(path, source, dtype, ("vae", "unet", "scheduler"))
    overflows = dtype == torch.float16 and folder.config("vae").get("force_upcast", True)
    embeddings, pooled = _embeddings(folder, prompt)
    return StableDiffusionXL(
        vae=folder.autoencoder(torch.float32 if overflows else None),
        unet=folder.model("unet", UNet2DConditionModel),
        pooled=pooled,
        prompt=embeddings,
        scheduler=folder.scheduler(),
        layers=layers,
        timestep=timestep,
        noise=noise,
        source=source,
    )


def _embeddings(
    folder: CheckpointFolder, prompt: str
) -> tuple[Float[Tensor, "1 tokens dim"], Float[Tensor, "1 pooled_dim"]]:
    """Both encoders' hidden states before the last layer, side by side, and the second one's projected embedding."""
    unet = folder.config("unet")
    if not prompt and folder.index.get("force_zeros_for_empty_prompt"):
        pooled = unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"]
        return torch.zeros(1, 77, unet["cross_attention_dim"]), torch.zeros(1, pooled)
    folder.require("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    outputs = []
    for suffix, kind in (("", CLIPTextModel), ("_2", CLIPTextModelWithProjection)):
        tokenizer = load_part(folder.path / f"tokenizer{suffix}", CLIPTokenizer.from_pretrained)
        encoder = folder.model(f"text_encoder{suffix}", kind, torch.float32)
        outputs.append(clip_embeddings(prompt, tokenizer, encoder))
    return torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[1].text_embeds


class StableDiffusionXL(UNetModel):
    """Stable Diffusion XL. The image's size that it takes as input is that of the frames, without a crop.

    Args:
        vae: autoencoder.
        unet: denoiser, a `UNet2DConditionModel` of diffusers.
        pooled: the second text encoder's embedding of the whole prompt.
        options: `scheduler`, `prompt`, `layers`, `timestep`, `noise`, `source`; see `DiffusionModel`.
    """

    _pooled: Tensor

    def __init__(
        self, *, vae: nn.Module, unet: Any, pooled: Float[Tensor, "1 pooled_dim"], **options: Any
    ) -> None:
        super().__init__(vae=vae, denoiser=unet, **options)
        self.register_buffer("_pooled", pooled.to(unet.dtype), persistent=False)

    def _output(self, latents: Tensor, timestep: int, prompt: Tensor) -> Tensor:
        height, width = (self.stride * length for length in latents.shape[-2:])
        sizes = torch.tensor(
            [[height, width, 0, 0, height, width]], dtype=latents.dtype, device=latents.device
        )
        added = {
            "text_embeds": self._pooled.expand(len(latents), -1),
            "time_ids": sizes.expand(len(latents), -1),
        }
        output: Tensor = self.denoiser(
            latents, timestep, encoder_hidden_states=prompt, added_cond_kwargs=added
        ).sample
        return output
