"""What goes to the writers of a clip, and what they have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import UInt8
from numpy import ndarray

from drift.propagation.keypoints import TrackedPoint

__all__ = ["FrameWriter", "SegmentedFrame", "appended"]


@dataclass(frozen=True)
class SegmentedFrame:
    """A frame of a clip and what was found in it.

    Attributes:
        index: of the frame in the clip, from 0.
        name: of the frame, without suffix.
        time: when it is shown, in seconds.
        frame: RGB.
        mask: object ids, 0 for the background.
        objects: the ids of the objects known so far, in the mask or not.
        points: the points that are followed.
    """

    index: int
    name: str
    time: float
    frame: UInt8[ndarray, "height width 3"]
    mask: UInt8[ndarray, "height width"]
    objects: Sequence[int] = ()
    points: Sequence[TrackedPoint] = ()


class FrameWriter(ABC):
    """Writes one kind of output of one clip, frame by frame and in order.

    Whatever ends a run, a kill included, what was added before is readable.
    """

    @abstractmethod
    def add(self, segmented: SegmentedFrame) -> None:
        """Writes one frame."""

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """Ends the output; nothing is added after it."""


def appended(path: Path, text: str) -> None:
    """Adds text at a file's end in one go, so that a killed run leaves no half of it."""
    with path.open("ab", buffering=0) as file:
        file.write(text.encode())
