"""The interface of a refiner, as the tracker calls it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float, UInt8
from torch import Tensor

from drift.propagation.labels import SoftLabels

__all__ = ["Refined", "Refiner"]


@dataclass(frozen=True)
class Refined:
    """Refined masks of a frame.

    Attributes:
        probabilities: at the frame's size, background first; the channels of a pixel sum to 1.
        outcomes: outcome for each object without a given mask; one of `drift.refinement.gates.OUTCOMES`.
    """

    probabilities: Float[Tensor, "channels height width"]
    outcomes: tuple[str, ...]


class Refiner(Protocol):
    """Refines the propagated masks of a frame; stateless across frames.

    Attributes:
        feedback: whether the memory keeps the refined masks in place of the propagated ones.
    """

    feedback: bool

    def refine(self, frame: UInt8[Tensor, "height width 3"], labels: SoftLabels) -> Refined:
        """Refines all objects, except those whose mask is given for this frame.

        Args:
            frame: RGB, on any device.
            labels: propagated labels.

        Returns:
            Refined masks on the device of `labels`.
        """
        ...
