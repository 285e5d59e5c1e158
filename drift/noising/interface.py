"""The interface of noising: how clean latents reach the timestep at which features are computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Denoiser", "Generators", "Latents", "Noise", "NoisyLatents", "Prompts"]

Generators = torch.Generator | list[torch.Generator]
"""One generator for a batch, or a list with one generator per frame, as in diffusers: the noise of a frame is then
independent of the other frames in the batch."""

Latents = Float[Tensor, "batch channels rows columns"]
"""Clean latents in the scale of the denoiser."""

Prompts = Float[Tensor, "prompts tokens dim"]
"""Embeddings of one or several prompts."""

NoisyLatents = Float[Tensor, "draws prompts batch channels rows columns"]
"""Latents at τ for each draw of noise and each prompt; of size 1 along prompts if the noise does not depend on them."""


class Denoiser(Protocol):
    """A diffusion model, as noising sees it. Latents are pixels where the model has no autoencoder."""

    timestep: int
    """τ, at which features are computed."""

    scheduler: Any
    """The model's noise schedule and prediction type: a `DDIMScheduler` of diffusers, or for rectified flow a
    `FlowMatchEulerDiscreteScheduler`."""

    def denoise(
        self,
        latents: Float[Tensor, "batch channels rows columns"],
        timestep: int,
        prompt: Float[Tensor, "#batch tokens dim"],
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Output of the whole model: noise or velocity, by its scheduler."""


class Noise(Protocol):
    """Takes clean latents to the denoiser's timestep τ."""

    @property
    def description(self) -> Mapping[str, object]:
        """Name and options, JSON-serialisable: part of what features depend on."""

    def check(self, timestep: int) -> None:
        """Raises OptionError if τ = `timestep` is not possible with these options."""

    def __call__(
        self, latents: Latents, denoiser: Denoiser, prompts: Prompts, generator: Generators
    ) -> NoisyLatents:
        """Takes latents to τ.

        Args:
            latents: clean latents.
            denoiser: the model.
            prompts: prompt embeddings.
            generator: source of the noise, see `Generators`; its device does not matter, so that a seed means the same
                everywhere.
        """
