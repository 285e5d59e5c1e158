"""Test-time optimisation: what is learned on a clip's given frame before the clip is tracked."""

from drift.adaptation.adaptation import Adaptation
from drift.adaptation.fitting import Diverged, fit
from drift.adaptation.head_weighting import HeadWeighting, Learned
from drift.adaptation.schemes import Fixed, HeadScheme, Single, Uniform
from drift.adaptation.textual_inversion import PromptOptions, TextualInversion, no_textual_inversion

__all__ = [
    "Adaptation",
    "Diverged",
    "Fixed",
    "HeadScheme",
    "HeadWeighting",
    "Learned",
    "PromptOptions",
    "Single",
    "TextualInversion",
    "Uniform",
    "fit",
    "no_textual_inversion",
]
