"""The interface through which the tracker has its masks refined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float, UInt8
from torch import Tensor

from drift.propagation.labels import SoftLabels

__all__ = ["Refined", "Refiner"]


@dataclass(frozen=True)
class Refined:
    """What a refiner makes of one frame's labels.

    Attributes:
        probabilities: at the frame's size, background first; each pixel's channels sum to 1.
        outcomes: what became of each object, in words that are counted.
    """

    probabilities: Float[Tensor, "channels height width"]
    outcomes: tuple[str, ...]


class Refiner(Protocol):
    """Sharpens the propagated masks of a frame; knows nothing of other frames.

    Attributes:
        feedback: whether the refined masks are remembered in place of the propagated ones.
    """

    feedback: bool

    def refine(self, frame: UInt8[Tensor, "height width 3"], labels: SoftLabels) -> Refined:
        """The labels at the frame's size. Objects whose mask was given for this frame are left alone.

        Args:
            frame: RGB.
            labels: the propagated ones.
        """
        ...
