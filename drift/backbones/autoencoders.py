"""Autoencoders of latent diffusion models, whichever class they are of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["clean_latents", "encoder_tokens", "is_representation", "without_decoder"]

_REGISTERS = 5  # of DINOv2 with registers: the class token and four more


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
    if is_representation(autoencoder):
        return _representation_latents(autoencoder, frames)
    images = (frames * 2 - 1).to(autoencoder.dtype, memory_format=torch.channels_last)
    encoded = autoencoder.encode(images)
    latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    shift = autoencoder.config.get("shift_factor") or 0.0
    return (latents.float() - shift) * autoencoder.config["scaling_factor"]


def is_representation(autoencoder: Any) -> bool:
    """Whether it is diffusers' `AutoencoderRAE`, whose encoder is an image encoder (arXiv 2510.11690)."""
    return type(autoencoder).__name__ == "AutoencoderRAE"


def encoder_tokens(
    autoencoder: Any, frames: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch rows columns channels"]:
    """Tokens of the encoder of an `AutoencoderRAE` for RGB frames in [0, 1] of any multiple of its patch.

    `AutoencoderRAE.encode` itself resizes all images to one square size.
    """
    encoder, kind, size = (
        autoencoder.encoder,
        *map(autoencoder.config.get, ("encoder_type", "encoder_patch_size")),
    )
    images = ((frames - autoencoder.encoder_mean) / autoencoder.encoder_std).to(autoencoder.dtype)
    grid = images.shape[-2] // size, images.shape[-1] // size
    if kind == "mae":
        order = torch.arange(grid[0] * grid[1], device=images.device, dtype=torch.float32)  # hides no patch
        tokens = encoder(
            images, order.expand(len(images), -1), interpolate_pos_encoding=True
        ).last_hidden_state[:, 1:]
    elif kind == "siglip2":
        tokens = encoder(images, interpolate_pos_encoding=True).last_hidden_state
    else:
        tokens = encoder(images).last_hidden_state[:, _REGISTERS:]
    return tokens.unflatten(1, grid)


def _representation_latents(autoencoder: Any, frames: Tensor) -> Tensor:
    latents = encoder_tokens(autoencoder, frames).permute(0, 3, 1, 2).float()
    statistics = (autoencoder._latents_mean.float(), autoencoder._latents_std.float())
    mean, std = (_resized(statistic, latents.shape[-2:]) for statistic in statistics)
    return (latents - mean) / (std + 1e-5) * autoencoder.config["scaling_factor"]


def _resized(statistic: Tensor, grid: Sequence[int]) -> Tensor:
    """A statistic of latents on another grid, where there is one for each position."""
    if statistic.ndim < 3:
        return statistic
    per_position = statistic.reshape(1, *statistic.shape[-3:])
    return F.interpolate(per_position, tuple(grid), mode="bilinear", align_corners=False)
