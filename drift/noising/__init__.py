"""Noising: how clean latents reach the timestep at which features are computed."""

from drift.noising.gaussian import Gaussian, NoNoise
from drift.noising.interface import Denoiser, Noise
from drift.noising.inversion import LatentInversion, invert_latents

__all__ = ["Denoiser", "Gaussian", "LatentInversion", "NoNoise", "Noise", "invert_latents"]
