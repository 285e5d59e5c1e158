"""Flux (black-forest-labs): a transformer with joint attention and rotary embeddings on packed latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel

from drift.backbones.folders import CheckpointFolder
from drift.backbones.joint_attention import JointAttentionModel
from drift.backbones.prompts import clip_embeddings, load_t5_tokenizer, t5_dtype, t5_embeddings
from drift.checkpoint_files import load_part
from drift.noising import Noise
from drift.options import non_negative

__all__ = ["Flux", "from_checkpoint"]

CHECKPOINTS = {"FluxPipeline": "flux", "FluxTransformer2DModel": "flux"}

_PROMPT_LENGTH = 512  # tokens of T5


def from_checkpoint(
    path: Path,
    *,
    source: str,
    dtype: torch.dtype,
    layers: Sequence[str] | None = ("single_transformer_blocks.5",),
    timestep: int = 90,
    noise: Noise | None = None,
    prompt: str = "",
    guidance: float = 1.0,
) -> Flux:
    """A Flux model in diffusers' layout: FLUX.1-dev or FLUX.1-schnell.

    Args:
        path: the folder of the checkpoint.
        source: the checkpoint as the user named it.
        dtype: data type of weights and activations.
        layers: names of the layers whose features are computed, "transformer_blocks.N" (19) and
            "single_transformer_blocks.N" (38).
        timestep, noise: see `DiffusionModel`; τ = 1000 s.
        prompt: the text prompt.
        guidance: the guidance scale that FLUX.1-dev takes as input; 1 for none.

    Raises:
        InputError: the checkpoint is incomplete or corrupt.
        OptionError: an option is out of range.
    """
    non_negative("guidance", guidance)
    encoders = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    folder = CheckpointFolder(path, source, dtype, ("vae", "transformer", "scheduler", *encoders))
    clip = clip_embeddings(
        prompt,
        load_part(folder.path / "tokenizer", CLIPTokenizer.from_pretrained),
        folder.model("text_encoder", CLIPTextModel, torch.float32),
    )
    embeddings, _ = t5_embeddings(
        prompt,
        load_t5_tokenizer(folder.path / "tokenizer_2"),
        folder.model("text_encoder_2", T5EncoderModel, t5_dtype(dtype)),
        _PROMPT_LENGTH,
    )
    return Flux(
        vae=folder.autoencoder(),
        denoiser=folder.model("transformer", FluxTransformer2DModel),
        guidance=guidance,
        pooled=clip.pooler_output,
        prompt=embeddings,
        scheduler=folder.scheduler(),
        layers=layers,
        timestep=timestep,
        noise=noise,
        source=source,
    )


class Flux(JointAttentionModel):
    """Flux, which takes each 2 x 2 latents as one token.

    Args:
        guidance: the guidance scale, for a model that takes it as input.
        options: `vae`, `denoiser` (a `FluxTransformer2DModel`), `pooled`, `scheduler`, `prompt`, `layers`, `timestep`,
            `noise`, `source`; see `JointAttentionModel`.
    """

    image_tokens = "last"

    def __init__(self, *, guidance: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.guidance = guidance

    @property
    def patch_size(self) -> int:
        """Latents per token along each axis; the transformer itself is given packed latents and says 1."""
        return 2

    @property
    def description(self) -> dict[str, object]:
        """See `DiffusionModel`."""
        return {**super().description, "guidance": self.guidance}

    def _output(self, latents: Tensor, timestep: int, prompt: Tensor) -> Tensor:
        rows, columns = (length // 2 for length in latents.shape[-2:])
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        ids = F.pad(places, (1, 0)).to(latents.device, torch.float32)  # the first axis is not used
        scales = latents.new_ones(len(latents))
        output: Any = self.denoiser(
            F.pixel_unshuffle(latents, 2).flatten(2).mT,
            encoder_hidden_states=prompt,
            pooled_projections=self._pooled.expand(len(latents), -1),
            timestep=scales * (timestep / 1000),
            guidance=scales * self.guidance if self.denoiser.config["guidance_embeds"] else None,
            img_ids=ids,
            txt_ids=ids.new_zeros(prompt.shape[1], 3),
        )
        return F.pixel_shuffle(output.sample.mT.unflatten(2, (rows, columns)), 2)
