"""What goes to the writers of a clip, and what they have in common."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import UInt8
from numpy import ndarray

from drift.propagation.keypoints import TrackedPoint

__all__ = ["FrameWriter", "SegmentedFrame", "appended", "write_whole"]


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

    Attributes:
        goes_on: whether a run that goes on where another was stopped keeps what that wrote; the others' output is made
            anew of what was kept.
    """

    goes_on = False

    @abstractmethod
    def add(self, segmented: SegmentedFrame) -> None:
        """Writes one frame."""

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """Ends the output; nothing is added after it."""


def write_whole(file: int, content: bytes, place: int) -> None:
    """Writes at a place of an open file, all or, where the disk is full, nothing: the file is cut off there again.

    Args:
        file: its descriptor.
        content: what to write; nothing behind it is to be kept.
        place: in bytes.
    """
    written = 0
    try:
        while written < len(content):
            written += os.pwrite(file, content[written:], place + written)
    except OSError:
        os.ftruncate(file, place)
        raise


def appended(path: Path, text: str) -> None:
    """Adds text at a file's end in one go, so that neither a kill nor a full disk leaves half of it."""
    file = os.open(path, os.O_WRONLY)
    try:
        write_whole(file, text.encode(), os.fstat(file).st_size)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(file)
