"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206): a transformer with joint attention, and rectified flow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel

from drift.backbones.folders import CheckpointFolder
from drift.backbones.joint_attention import JointAttentionModel
from drift.backbones.prompts import clip_embeddings, load_t5_tokenizer, padded_to, t5_dtype, t5_embeddings
from drift.checkpoint_files import load_part
from drift.errors import InputError
from drift.noising import Noise

__all__ = ["StableDiffusion3", "from_checkpoint"]

CHECKPOINTS = {"StableDiffusion3Pipeline": "sd35", "SD3Transformer2DModel": "sd35"}

_PROMPT_LENGTH = 256  # tokens of T5


def from_checkpoint(
    path: Path,
    *,
    source: str,
    dtype: torch.dtype,
    layers: Sequence[str] | None = ("transformer_blocks.10",),
    timestep: int = 90,
    noise: Noise | None = None,
    prompt: str = "",
) -> StableDiffusion3:
    """A Stable Diffusion 3 or 3.5 model in diffusers' layout.

    The T5 encoder (`text_encoder_3`, 9.5 GB) is optional, as in diffusers: without it its embeddings are zeros, as they
    often were in training.

    Args:
        path: the folder of the checkpoint.
        source: the checkpoint as the user named it.
        dtype: data type of weights and activations.
        layers: names of the layers whose features are computed: "transformer_blocks.N", where image and prompt attend
            jointly, or "transformer_blocks.N.attn2", where the image attends to itself (first blocks of 3.5-medium).
        timestep, noise: see `DiffusionModel`; τ = 1000 s.
        prompt: the text prompt.

    Raises:
        InputError: the checkpoint is incomplete or corrupt.
        OptionError: an option is out of range.
    """
    needed = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    folder = CheckpointFolder(path, source, dtype, ("vae", "transformer", "scheduler", *needed))
    embeddings, pooled = _embeddings(folder, prompt)
    return StableDiffusion3(
        vae=folder.autoencoder(),
        denoiser=folder.model("transformer", SD3Transformer2DModel),
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
    """CLIP's hidden states before the last layer, side by side, then T5's tokens; and CLIP's projected embeddings."""
    outputs = []
    for suffix in ("", "_2"):
        tokenizer = load_part(folder.path / f"tokenizer{suffix}", CLIPTokenizer.from_pretrained)
        encoder = folder.model(f"text_encoder{suffix}", CLIPTextModelWithProjection, torch.float32)
        outputs.append(clip_embeddings(prompt, tokenizer, encoder))
    width = folder.config("transformer")["joint_attention_dim"]
    clip = padded_to(torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), width)
    pooled = torch.cat([output.text_embeds for output in outputs], dim=-1)
    return torch.cat([clip, _t5(folder, prompt, width).to(clip)], dim=1), pooled


def _t5(folder: CheckpointFolder, prompt: str, width: int) -> Float[Tensor, "1 tokens dim"]:
    if not (folder.path / "text_encoder_3").exists():
        return torch.zeros(1, _PROMPT_LENGTH, width)
    folder.require("tokenizer_3")
    tokenizer = load_t5_tokenizer(folder.path / "tokenizer_3")
    encoder = folder.model("text_encoder_3", T5EncoderModel, t5_dtype(folder.dtype))
    return t5_embeddings(prompt, tokenizer, encoder, _PROMPT_LENGTH)[0]


class StableDiffusion3(JointAttentionModel):
    """Stable Diffusion 3 or 3.5.

    Args:
        options: `vae`, `denoiser` (a `SD3Transformer2DModel`), `pooled`, `scheduler`, `prompt`, `layers`, `timestep`,
            `noise`, `source`; see `JointAttentionModel`.
    """

    image_tokens = "first"

    def _output(self, latents: Tensor, timestep: int, prompt: Tensor) -> Tensor:
        largest = self.denoiser.config["pos_embed_max_size"]
        if max(latents.shape[-2:]) > largest * self.patch_size:
            limit = largest * self.stride
            raise InputError(
                f"frames: over {limit} pixels along one axis, more than the model has positions for"
            )
        timesteps = torch.full((len(latents),), timestep, device=latents.device)
        pooled = self._pooled.expand(len(latents), -1)
        output: Any = self.denoiser(
            latents, timestep=timesteps, encoder_hidden_states=prompt, pooled_projections=pooled
        )
        return output.sample
