"""Noising: how clean latents reach the timestep at which features are computed."""

from drift.noising.ddim_inversion import DDIMInversion, ddim_invert
from drift.noising.gaussian import Gaussian, NoNoise
from drift.noising.interface import Denoiser, Noise

__all__ = ["DDIMInversion", "Denoiser", "Gaussian", "NoNoise", "Noise", "ddim_invert"]
