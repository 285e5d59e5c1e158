"""Labels carried through a clip: the temporal kernel, the memory, and the tracker that joins them."""

from drift.propagation.kernel import propagate
from drift.propagation.labels import SoftLabels
from drift.propagation.tracker import Tracker

__all__ = ["SoftLabels", "Tracker", "propagate"]
