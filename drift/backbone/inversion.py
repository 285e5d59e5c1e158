"""DDIM inversion: a latent taken to a timestep by the model's own, deterministic path (design 2.1)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from diffusers import DDIMScheduler
from jaxtyping import Float
from torch import Tensor

from drift.errors import OptionError
from drift.options import whole_number

__all__ = ["Predict", "ddim_inverted", "inversion_timesteps"]

Predict = Callable[[Float[Tensor, "batch channels rows columns"], int], Tensor]
"""The model's output (noise or velocity, as its scheduler's `prediction_type` says) at a timestep."""


def inversion_timesteps(timestep: int, steps: int) -> list[int]:
    """The `steps` timesteps at equal distances from 0, which is not one of them, to `timestep`, which is the last.

    Raises:
        OptionError: the timestep is 0, or the steps are no whole number from 1 to it.
    """
    if timestep < 1:
        raise OptionError("timestep", timestep, "1 or more with noise=ddim_inversion")
    whole_number("inversion_steps", steps, minimum=1, maximum=timestep)
    return [round(timestep * (place + 1) / steps) for place in range(steps)]


@torch.no_grad()
def ddim_inverted(
    latents: Float[Tensor, "batch channels rows columns"],
    predict: Predict,
    scheduler: DDIMScheduler,
    *,
    timestep: int,
    steps: int,
) -> Float[Tensor, "batch channels rows columns"]:
    """Clean latents taken to `timestep` in `steps` steps of DDIM (equation 12 of arXiv 2010.02502), backwards.

    Every step supposes that the model says at the noisier latent what it says at the clearer one, which is
    the truer the more steps there are.

    Args:
        latents: in the UNet's scale, of any number of frames; each is inverted as if alone.
        predict: the model under its condition.
        scheduler: the model's own: its noise schedule and prediction type hold.
        timestep: τ.
        steps: S.

    Raises:
        OptionError: see `inversion_timesteps`.
    """
    before = float(scheduler.final_alpha_cumprod)  # of clean latents; Stable Diffusion's is not quite 1
    for target in inversion_timesteps(timestep, steps):
        after = float(scheduler.alphas_cumprod[target])
        latents = _moved(latents, predict(latents, target), before, after, scheduler)
        before = after
    return latents


def _moved(latents: Tensor, output: Tensor, before: float, after: float, scheduler: DDIMScheduler) -> Tensor:
    """From noise level ᾱ `before` to `after`, along what the model says is picture and what is noise."""
    kept, lost = math.sqrt(before), math.sqrt(1 - before)
    if scheduler.config["prediction_type"] == "v_prediction":
        picture = kept * latents - lost * output
        noise = kept * output + lost * latents
    else:
        noise = output
        picture = (latents - lost * noise) / kept
    return math.sqrt(after) * picture + math.sqrt(1 - after) * noise
