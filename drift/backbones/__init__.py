"""Frozen image models as sources of attention features. A family of models is imported when it is first needed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from drift.backbones.interface import AttentionPass, Backbone, Features, PromptBackbone, as_prompt_backbone

if TYPE_CHECKING:
    from drift.backbones.ensemble import Ensemble, load_ensemble
    from drift.backbones.loading import load_backbone
    from drift.backbones.stable_diffusion import StableDiffusion
    from drift.backbones.summary import Summary, describe

__all__ = [
    "AttentionPass",
    "Backbone",
    "Ensemble",
    "Features",
    "PromptBackbone",
    "StableDiffusion",
    "Summary",
    "as_prompt_backbone",
    "describe",
    "load_backbone",
    "load_ensemble",
]

_LAZY = {
    "Ensemble": "ensemble",
    "load_backbone": "loading",
    "load_ensemble": "ensemble",
    "StableDiffusion": "stable_diffusion",
    "Summary": "summary",
    "describe": "summary",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"drift.backbones.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
