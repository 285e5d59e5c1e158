"""Test-time optimisation: what is learned on a clip's given frame before the clip is tracked."""

from drift.adaptation.adapting import adapt
from drift.adaptation.settings import AdaptationSettings

__all__ = ["AdaptationSettings", "adapt"]
