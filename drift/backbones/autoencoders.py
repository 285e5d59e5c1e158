"""Autoencoders of latent diffusion models, whichever class they are of."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["clean_latents", "without_decoder"]


def without_decoder(autoencoder: Any) -> Any:
    """The autoencoder with its decoder removed, in place: masks are never decoded from latents."""
    for part in ("decoder", "post_quant_conv"):
        if isinstance(getattr(autoencoder, part, None), nn.Module):
            setattr(autoencoder, part, None)
    return autoencoder


def clean_latents(
    autoencoder: Any, frames: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch channels rows columns"]:
    """Latents of RGB frames in [0, 1] in the scale that the denoiser is trained with, float32: the posterior's mode."""
    images = (frames * 2 - 1).to(autoencoder.dtype, memory_format=torch.channels_last)
    encoded = autoencoder.encode(images)
    latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    shift = autoencoder.config.get("shift_factor") or 0.0
    return (latents.float() - shift) * autoencoder.config["scaling_factor"]
