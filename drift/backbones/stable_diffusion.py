"""Latent diffusion models with a UNet and a text prompt: Stable Diffusion 1.x and 2.x and the embedded model."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from drift.backbones.diffusion import UNetModel

__all__ = ["StableDiffusion"]


class StableDiffusion(UNetModel):
    """Stable Diffusion 1.x or 2.x, its Turbo variants, or the embedded model.

    Args:
        vae: autoencoder; encodes images in [-1, 1].
        unet: denoiser, a `UNet2DConditionModel` of diffusers.
        options: `scheduler`, `prompt`, `layers`, `timestep`, `noise`, `source`; see `DiffusionModel`.
    """

    def __init__(self, *, vae: nn.Module, unet: nn.Module, **options: Any) -> None:
        super().__init__(vae=vae, denoiser=unet, **options)

    def _output(self, latents: Tensor, timestep: int, prompt: Tensor) -> Tensor:
        output: Tensor = self.denoiser(latents, timestep, encoder_hidden_states=prompt).sample
        return output
