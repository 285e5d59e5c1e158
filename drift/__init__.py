"""Video object segmentation by label propagation through the self-attention of image diffusion models.

The public API is imported on first use, so that `import drift` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0"

_MODULES = {
    "drift.adaptation": (
        "Adaptation",
        "HeadWeighting",
        "Learned",
        "PromptOptions",
        "TextualInversion",
        "fit",
    ),
    "drift.backbones": ("Backbone", "Features", "PromptBackbone", "load_backbone"),
    "drift.noising": ("LatentInversion", "Gaussian", "NoNoise", "invert_latents"),
    "drift.propagation": ("Adapter", "PropagationOptions", "SoftLabels", "Tracker", "propagate"),
    "drift.refinement": ("load_refiner",),
}

__all__ = [name for names in _MODULES.values() for name in names]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
