"""Frozen image models as sources of attention features."""

from drift.backbones.interface import AttentionPass, Backbone, Features, PromptBackbone, as_prompt_backbone
from drift.backbones.loading import load_backbone
from drift.backbones.stable_diffusion import StableDiffusion

__all__ = [
    "AttentionPass",
    "Backbone",
    "Features",
    "PromptBackbone",
    "StableDiffusion",
    "as_prompt_backbone",
    "load_backbone",
]
