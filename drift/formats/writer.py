"""`SegmentedFrame`, the input of every writer, and the base class of writers."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import UInt8
from numpy import ndarray

from drift.propagation.keypoints import TrackedPoint

__all__ = ["FrameWriter", "SegmentedFrame", "append", "atomic_path", "write_all"]


@dataclass(frozen=True)
class SegmentedFrame:
    """A frame of a clip with its predicted mask and points.

    Attributes:
        index: index of the frame in the clip, from 0.
        name: name of the frame, without suffix.
        time: presentation time in seconds.
        frame: RGB.
        mask: object ids, 0 for the background.
        objects: ids of all objects given so far, visible in this frame or not.
        points: tracked keypoints.
    """

    index: int
    name: str
    time: float
    frame: UInt8[ndarray, "height width 3"]
    mask: UInt8[ndarray, "height width"]
    objects: Sequence[int] = ()
    points: Sequence[TrackedPoint] = ()


class FrameWriter(ABC):
    """Writes one output format of one clip, frame by frame and in order.

    The frames added so far stay readable if the process is killed or the disk is full.

    Attributes:
        resumable: whether a resumed run keeps the output of the earlier run. Other writers are fed the earlier
            run's masks and points again.
    """

    resumable = False

    @abstractmethod
    def add(self, segmented: SegmentedFrame) -> None:
        """Writes one frame."""

    def close(self) -> None:  # noqa: B027 - optional
        """Completes the output; no frame is added afterwards."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, with its suffix, and renames it to `path` if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    yield partial
    os.replace(partial, path)


def write_all(file: int, content: bytes, offset: int) -> None:
    """Writes all of `content`, or truncates the file at `offset` if the disk is full.

    Args:
        file: file descriptor.
        content: new content of the file from `offset` on.
        offset: in bytes.
    """
    written = 0
    try:
        while written < len(content):
            written += os.pwrite(file, content[written:], offset + written)
    except OSError:
        os.ftruncate(file, offset)
        raise


def append(path: Path, text: str) -> None:
    """Appends `text` in one write, so that a kill or a full disk leaves no partial line."""
    file = os.open(path, os.O_WRONLY)
    try:
        write_all(file, text.encode(), os.fstat(file).st_size)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(file)
