"""PixArt-alpha and PixArt-Sigma (arXiv 2310.00426, 2403.04692): latent diffusion transformers that attend to T5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from jaxtyping import Float, Int
from torch import Tensor
from transformers import T5EncoderModel

from drift.backbones.diffusion import PromptedModel
from drift.backbones.folders import CheckpointFolder
from drift.backbones.prompts import load_t5_tokenizer, t5_dtype, t5_embeddings
from drift.noising import Noise

__all__ = ["PixArt", "from_checkpoint"]

CHECKPOINTS = {
    "PixArtAlphaPipeline": "pixart",
    "PixArtSigmaPipeline": "pixart",
    "PixArtTransformer2DModel": "pixart",
}

_ALPHA_LENGTH, _SIGMA_LENGTH = 120, 300  # tokens of T5


def from_checkpoint(
    path: Path,
    *,
    source: str,
    dtype: torch.dtype,
    layers: Sequence[str] | None = ("transformer_blocks.12",),
    timestep: int = 51,
    noise: Noise | None = None,
    prompt: str = "",
) -> PixArt:
    """A PixArt model in diffusers' layout.

    Args:
        path: the folder of the checkpoint.
        source: the checkpoint as the user named it.
        dtype: data type of weights and activations.
        layers: names of the layers whose features are computed, "transformer_blocks.N".
        timestep, noise: see `DiffusionModel`.
        prompt: the text prompt.

    Raises:
        InputError: the checkpoint is incomplete or corrupt.
        OptionError: an option is out of range.
    """
    parts = ("vae", "transformer", "scheduler", "text_encoder", "tokenizer")
    folder = CheckpointFolder(path, source, dtype, parts)
    length = _SIGMA_LENGTH if "Sigma" in str(folder.index.get("_class_name")) else _ALPHA_LENGTH
    embeddings, mask = t5_embeddings(
        prompt.lower().strip(),  # as the captions that it was trained with
        load_t5_tokenizer(path / "tokenizer"),
        folder.model("text_encoder", T5EncoderModel, t5_dtype(dtype)),
        length,
        masked=True,
    )
    return PixArt(
        vae=folder.autoencoder(),
        denoiser=folder.model("transformer", PixArtTransformer2DModel),
        scheduler=folder.scheduler(),
        prompt=embeddings,
        mask=mask,
        layers=layers,
        timestep=timestep,
        noise=noise,
        source=source,
    )


class PixArt(PromptedModel):
    """PixArt-alpha or PixArt-Sigma. The tokens behind a prompt's own are attended to only once they are learned.

    Args:
        mask: 1 for the prompt's own tokens, 0 for padding.
        options: `vae`, `denoiser` (a `PixArtTransformer2DModel`), `scheduler`, `prompt`, `layers`, `timestep`, `noise`,
            `source`; see `LatentDiffusionModel`.
    """

    _mask: Tensor

    def __init__(self, *, mask: Int[Tensor, "1 tokens"], **options: Any) -> None:
        super().__init__(**options)
        self.register_buffer("_mask", mask.bool(), persistent=False)

    def _context(self, embeddings: Float[Tensor, "tokens dim"]) -> Tensor:
        projection = self.denoiser.caption_projection
        return embeddings if projection is None else projection(embeddings)

    def _output(self, latents: Tensor, timestep: int, prompt: Tensor) -> Tensor:
        changed = (prompt != self._prompt).any(-1)
        sizes: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.denoiser.use_additional_conditions:
            height, width = (self.stride // self.patch_size * length for length in latents.shape[-2:])
            sizes["resolution"] = latents.new_tensor([[height, width]]).expand(len(latents), -1)
            sizes["aspect_ratio"] = latents.new_tensor([[height / width]]).expand(len(latents), -1)
        output: Any = self.denoiser(
            latents,
            encoder_hidden_states=prompt,
            timestep=torch.full((len(latents),), timestep, device=latents.device),
            added_cond_kwargs=sizes,
            encoder_attention_mask=(self._mask | changed).to(latents.dtype),
        )
        return output.sample
