"""Noise schedules: noisy latents are `signal · clean + sigma · noise`, of diffusion and of rectified flow alike.

Diffusion has signal √ᾱ and sigma √(1 - ᾱ) (arXiv 2006.11239). Rectified flow has signal 1 - s and sigma s with
s = τ / 1000, and its model predicts the velocity, noise minus clean latents (arXiv 2209.03003).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["NoiseLevel", "add_noise", "clean_and_noise", "is_rectified_flow", "last_timestep", "noise_level"]


@dataclass(frozen=True)
class NoiseLevel:
    """Noisy latents are `signal · clean + sigma · noise`."""

    signal: float
    sigma: float


def is_rectified_flow(scheduler: Any) -> bool:
    """Whether a scheduler of diffusers is that of a rectified flow (flow matching), not of diffusion."""
    return not hasattr(scheduler, "alphas_cumprod")


def last_timestep(scheduler: Any) -> int:
    """The largest timestep: 999 for diffusion, 1000 (noise alone) for rectified flow."""
    steps = int(scheduler.config["num_train_timesteps"])
    return steps if is_rectified_flow(scheduler) else steps - 1


def noise_level(scheduler: Any, timestep: int | None) -> NoiseLevel:
    """The noise level at a timestep; at None that of clean latents, whose signal is not exactly 1 in some models."""
    if is_rectified_flow(scheduler):
        sigma = (timestep or 0) / scheduler.config["num_train_timesteps"]
        return NoiseLevel(1 - sigma, sigma)
    alpha = float(scheduler.final_alpha_cumprod if timestep is None else scheduler.alphas_cumprod[timestep])
    return NoiseLevel(math.sqrt(alpha), math.sqrt(1 - alpha))


def add_noise(
    scheduler: Any,
    latents: Float[Tensor, "batch channels rows columns"],
    noise: Float[Tensor, "batch channels rows columns"],
    timestep: int,
) -> Float[Tensor, "batch channels rows columns"]:
    """Clean latents taken to `timestep` by adding the given noise."""
    if is_rectified_flow(scheduler):
        level = noise_level(scheduler, timestep)
        return level.signal * latents + level.sigma * noise
    noisy: Tensor = scheduler.add_noise(latents, noise, torch.tensor([timestep], device=latents.device))
    return noisy


def clean_and_noise(
    scheduler: Any,
    latents: Float[Tensor, "batch channels rows columns"],
    output: Float[Tensor, "batch channels rows columns"],
    level: NoiseLevel,
) -> tuple[Float[Tensor, "batch channels rows columns"], Float[Tensor, "batch channels rows columns"]]:
    """The clean latents and the noise of which noisy latents consist according to the model's output for them."""
    if is_rectified_flow(scheduler):
        return latents - level.sigma * output, latents + level.signal * output
    if scheduler.config["prediction_type"] == "v_prediction":
        return level.signal * latents - level.sigma * output, level.signal * output + level.sigma * latents
    return (latents - level.sigma * output) / level.signal, output
