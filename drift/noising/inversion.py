"""Inversion: latents taken to a timestep by the model's own deterministic path.

Every step takes the model's output for an estimate of the clean latents and of the noise, and mixes these at the next
noise level. For diffusion this is DDIM inversion; for rectified flow, whose path is straight, it is the Euler method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from drift.errors import OptionError
from drift.noising.interface import Denoiser, Generators, Latents, NoisyLatents, Prompts
from drift.noising.schedule import clean_and_noise, noise_level
from drift.options import whole_number

__all__ = ["LatentInversion", "Predict", "inversion_timesteps", "invert_latents"]

Predict = Callable[[Float[Tensor, "batch channels rows columns"], int], Tensor]
"""Output of the model (noise or velocity, see `clean_and_noise`) for latents at a timestep."""


def inversion_timesteps(timestep: int, steps: int) -> list[int]:
    """`steps` evenly spaced timesteps from 0 (excluded) to `timestep` (included).

    Raises:
        OptionError: `timestep` is 0, or `steps` is not a whole number from 1 to `timestep`.

    Example:
        >>> inversion_timesteps(50, 4)
        [12, 25, 38, 50]
    """
    if timestep < 1:
        raise OptionError("timestep", timestep, "1 or more with noise=inversion")
    whole_number("steps", steps, minimum=1, maximum=timestep)
    return [round(timestep * (step + 1) / steps) for step in range(steps)]


@torch.no_grad()
def invert_latents(
    latents: Float[Tensor, "batch channels rows columns"],
    predict: Predict,
    scheduler: Any,
    *,
    timestep: int,
    steps: int,
) -> Float[Tensor, "batch channels rows columns"]:
    """Inverts clean latents to `timestep`.

    Diffusion: DDIM (equation 12 of arXiv 2010.02502), run backwards. Rectified flow: Euler steps along the velocity.
    Each step assumes that the model predicts the same noise or velocity for the cleaner latent as for the noisier one;
    the error vanishes as `steps` grows.

    Args:
        latents: clean latents in the model's scale. Entries of the batch are independent.
        predict: the model under its prompt.
        scheduler: the model's own scheduler, a `DDIMScheduler` or `FlowMatchEulerDiscreteScheduler` of diffusers.
        timestep: τ.
        steps: S, the number of inversion steps; each is one call of `predict`.

    Raises:
        OptionError: see `inversion_timesteps`.
    """
    before = noise_level(scheduler, None)
    for target in inversion_timesteps(timestep, steps):
        after = noise_level(scheduler, target)
        clean, noise = clean_and_noise(scheduler, latents, predict(latents, target), before)
        latents = after.signal * clean + after.sigma * noise
        before = after
    return latents


@dataclass(frozen=True)
class LatentInversion:
    """Noise by inversion of the model's deterministic sampler under the prompt: semantically aligned latents.

    DDIM inversion for diffusion (arXiv 2511.19936), Euler steps for rectified flow; see `invert_latents`.

    Attributes:
        steps: S, each a pass of the whole model; from 1 to τ.
    """

    steps: int = 10

    @property
    def description(self) -> Mapping[str, object]:
        """See `Noise`."""
        return {"noise": "inversion", "steps": self.steps}

    def check(self, timestep: int) -> None:
        """See `Noise`."""
        inversion_timesteps(timestep, self.steps)

    def __call__(
        self, latents: Latents, denoiser: Denoiser, prompts: Prompts, generator: Generators
    ) -> NoisyLatents:
        """See `Noise`. All prompts are inverted in one batch."""
        batch = latents.repeat(len(prompts), 1, 1, 1)
        predict = partial(denoiser.denoise, prompt=prompts.repeat_interleave(len(latents), 0))
        inverted = invert_latents(
            batch,
            lambda noisy, timestep: predict(noisy, timestep),
            denoiser.scheduler,
            timestep=denoiser.timestep,
            steps=self.steps,
        )
        return inverted.unflatten(0, (1, len(prompts), len(latents)))
