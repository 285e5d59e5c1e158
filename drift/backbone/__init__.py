"""The latent diffusion model behind one small interface: encode frames, read queries and keys."""

from drift.backbone.interface import Backbone, LayerReading
from drift.backbone.latent_diffusion import LatentDiffusion
from drift.backbone.loading import load_latent_diffusion

__all__ = ["Backbone", "LatentDiffusion", "LayerReading", "load_latent_diffusion"]
