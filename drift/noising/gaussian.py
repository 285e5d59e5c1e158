"""Latents at a timestep by the forward process of diffusion, or without noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from drift.configuration import groups
from drift.configuration.checking import check_fields
from drift.noising.interface import Denoiser, Generators, Latents, NoisyLatents, Prompts
from drift.noising.schedule import add_noise

__all__ = ["Gaussian", "NoNoise"]


@dataclass(frozen=True)
class NoNoise:
    """Leaves latents as they are: the model sees clean latents at timestep τ."""

    @property
    def description(self) -> Mapping[str, object]:
        """See `Noise`."""
        return {"noise": "none"}

    def check(self, timestep: int) -> None:
        """Any timestep is allowed."""

    def __call__(
        self, latents: Latents, denoiser: Denoiser, prompts: Prompts, generator: Generators
    ) -> NoisyLatents:
        """See `Noise`."""
        return latents[None, None]


@dataclass(frozen=True)
class Gaussian:
    """Gaussian noise: the forward process q(z_τ | z_0), with τ = 1000 s for rectified flow: (1 - s) z_0 + s ε.

    Attributes:
        ensemble: number of draws, over which features are averaged (8 in DIFT).

    Raises:
        OptionError: `ensemble` is not a whole number above 0.
    """

    ensemble: int = 1

    def __post_init__(self) -> None:
        check_fields(self, groups.Gaussian)

    @property
    def description(self) -> Mapping[str, object]:
        """See `Noise`."""
        return {"noise": "gaussian", "ensemble": self.ensemble}

    def check(self, timestep: int) -> None:
        """Any timestep is allowed."""

    def __call__(
        self, latents: Latents, denoiser: Denoiser, prompts: Prompts, generator: Generators
    ) -> NoisyLatents:
        """See `Noise`."""
        from diffusers.utils.torch_utils import randn_tensor  # `import drift` does not import diffusers

        device = generator[0].device if isinstance(generator, list) else generator.device
        draws = [randn_tensor(latents.shape, generator, device).to(latents) for _ in range(self.ensemble)]
        noisy = [add_noise(denoiser.scheduler, latents, noise, denoiser.timestep) for noise in draws]
        return torch.stack(noisy)[:, None]
