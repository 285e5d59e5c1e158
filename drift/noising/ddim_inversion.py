"""DDIM inversion: latents taken to a timestep by the model's own deterministic path."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import DDIMScheduler
from jaxtyping import Float
from torch import Tensor

from drift.errors import OptionError
from drift.noising.interface import Denoiser, Latents, NoisyLatents, Prompts
from drift.options import whole_number

__all__ = ["DDIMInversion", "Predict", "ddim_invert", "inversion_timesteps"]

Predict = Callable[[Float[Tensor, "batch channels rows columns"], int], Tensor]
"""Output of the model (noise or velocity, by its scheduler's `prediction_type`) for latents at a timestep."""


def inversion_timesteps(timestep: int, steps: int) -> list[int]:
    """`steps` evenly spaced timesteps from 0 (excluded) to `timestep` (included).

    Raises:
        OptionError: `timestep` is 0, or `steps` is not a whole number from 1 to `timestep`.

    Example:
        >>> inversion_timesteps(50, 4)
        [12, 25, 38, 50]
    """
    if timestep < 1:
        raise OptionError("timestep", timestep, "1 or more with noise=ddim_inversion")
    whole_number("steps", steps, minimum=1, maximum=timestep)
    return [round(timestep * (step + 1) / steps) for step in range(steps)]


@torch.no_grad()
def ddim_invert(
    latents: Float[Tensor, "batch channels rows columns"],
    predict: Predict,
    scheduler: DDIMScheduler,
    *,
    timestep: int,
    steps: int,
) -> Float[Tensor, "batch channels rows columns"]:
    """Inverts clean latents to `timestep` with DDIM (equation 12 of arXiv 2010.02502, run backwards).

    Each step assumes that the model predicts the same noise for the cleaner latent as for the noisier one; the error
    vanishes as `steps` grows.

    Args:
        latents: clean latents in the model's scale. Entries of the batch are independent.
        predict: the model under its prompt.
        scheduler: the model's own scheduler, which holds its noise schedule and prediction type.
        timestep: τ.
        steps: S, the number of inversion steps; each is one call of `predict`.

    Raises:
        OptionError: see `inversion_timesteps`.
    """
    before = float(scheduler.final_alpha_cumprod)  # of clean latents: not exactly 1 in Stable Diffusion
    for target in inversion_timesteps(timestep, steps):
        after = float(scheduler.alphas_cumprod[target])
        latents = _step(latents, predict(latents, target), before, after, scheduler)
        before = after
    return latents


def _step(latents: Tensor, output: Tensor, before: float, after: float, scheduler: DDIMScheduler) -> Tensor:
    """Latents at noise level ᾱ `after`, from those at ᾱ `before` and the model's output."""
    signal, sigma = math.sqrt(before), math.sqrt(1 - before)
    if scheduler.config["prediction_type"] == "v_prediction":
        clean = signal * latents - sigma * output
        noise = signal * output + sigma * latents
    else:
        noise = output
        clean = (latents - sigma * noise) / signal
    return math.sqrt(after) * clean + math.sqrt(1 - after) * noise


@dataclass(frozen=True)
class DDIMInversion:
    """Noise by DDIM inversion under the prompt: semantically aligned latents (arXiv 2511.19936).

    Attributes:
        steps: S, each a pass of the whole model; from 1 to τ.
    """

    steps: int = 10

    @property
    def description(self) -> Mapping[str, object]:
        """See `Noise`."""
        return {"noise": "ddim_inversion", "steps": self.steps}

    def check(self, timestep: int) -> None:
        """See `Noise`."""
        inversion_timesteps(timestep, self.steps)

    def __call__(
        self, latents: Latents, denoiser: Denoiser, prompts: Prompts, generator: torch.Generator
    ) -> NoisyLatents:
        """See `Noise`. All prompts are inverted in one batch."""
        batch = latents.repeat(len(prompts), 1, 1, 1)
        predict = partial(denoiser.denoise, prompt=prompts.repeat_interleave(len(latents), 0))
        inverted = ddim_invert(
            batch,
            lambda noisy, timestep: predict(noisy, timestep),
            denoiser.scheduler,
            timestep=denoiser.timestep,
            steps=self.steps,
        )
        return inverted.unflatten(0, (1, len(prompts), len(latents)))
