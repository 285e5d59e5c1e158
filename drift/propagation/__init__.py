"""Label propagation: the temporal kernel, the memory, and the tracker."""

from drift.propagation.adapter import Adapter
from drift.propagation.heads import PropagationOptions
from drift.propagation.kernel import propagate
from drift.propagation.labels import SoftLabels
from drift.propagation.tracker import Tracker

__all__ = ["Adapter", "PropagationOptions", "SoftLabels", "Tracker", "propagate"]
