"""Backward tracking: the reversed clip is tracked, and its masks are merged with those of forward tracking."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from drift.clip import Clip
from drift.formats import SegmentedFrame
from drift.image_files import read_mask, write_mask

__all__ = ["BackwardMasks", "ReversedFrames", "backward_clip", "first_frames", "later_objects", "merged"]

_DECODED_TOGETHER = 16  # frames: a video can only be decoded forwards, from a key frame on


class ReversedFrames(Sequence[np.ndarray]):
    """Frames from the last to the first. Iteration keeps at most 16 frames in memory."""

    def __init__(self, frames: Sequence[np.ndarray]) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise ValueError(f"a slice of reversed frames must have step 1, not {step}")
            return ReversedFrames(self.frames[len(self) - max(stop, start) : len(self) - start])
        return self.frames[len(self) - 1 - range(len(self))[index]]

    def __iter__(self) -> Iterator[np.ndarray]:
        for stop in range(len(self), 0, -_DECODED_TOGETHER):
            yield from reversed(list(self.frames[max(stop - _DECODED_TOGETHER, 0) : stop]))


def first_frames(given: Mapping[int, np.ndarray]) -> dict[int, int]:
    """Index of the first frame in which each object is given, by object id."""
    first: dict[int, int] = {}
    for index in sorted(given):
        for object_id in np.unique(given[index]).tolist():
            if object_id:
                first.setdefault(object_id, index)
    return first


def backward_clip(clip: Clip) -> Clip | None:
    """The reversed clip, whose frame `len(clip) - 1 - t` is frame `t`; None if nothing is tracked backwards.

    With the direction `both`, it contains the given masks up to the first frame of the last object to appear.
    """
    if clip.direction == "forward" or not clip.given:
        return None
    start = max(first_frames(clip.given).values() if clip.direction == "both" else clip.given, default=0)
    if start == 0 and clip.direction == "both":
        return None
    last = len(clip) - 1
    return replace(
        clip,
        name=f"{clip.name}-backward",  # its adapter has a separate file
        frames=ReversedFrames(clip.frames),
        frame_names=clip.frame_names[::-1],
        given={last - index: clip.given[index] for index in sorted(clip.given) if index <= start},
        truth={},
        times=None,
        audio=None,
        direction="forward",
    )


class BackwardMasks:
    """Files with the masks of backward tracking.

    Args:
        clip: the clip.
        folder: folder of the files.
    """

    def __init__(self, clip: Clip, folder: Path) -> None:
        self.clip, self.folder = clip, folder
        self._first = {} if clip.direction == "forward" else first_frames(clip.given)

    def add(self, index: int, segmented: SegmentedFrame) -> None:
        """Writes the mask of frame `index` of the clip."""
        write_mask(self.folder / f"{index}.png", segmented.mask)

    def merged_with(self, segmented: SegmentedFrame) -> SegmentedFrame:
        """The frame with backward-tracked objects on the pixels that forward tracking assigned to the background."""
        objects = later_objects(self.clip, segmented.index, self._first)
        path = self.folder / f"{segmented.index}.png"
        if not objects or not path.exists():
            return segmented
        mask = merged(segmented.mask, read_mask(path), objects)
        known = (*segmented.objects, *(i for i in objects if i not in segmented.objects))
        return replace(segmented, mask=mask, objects=known)


def later_objects(clip: Clip, index: int, first: Mapping[int, int]) -> Collection[int]:
    """Objects whose mask on frame `index` comes from backward tracking.

    Args:
        clip: the clip.
        index: index of the frame.
        first: see `first_frames`.
    """
    if clip.direction == "forward":
        return ()
    return [i for i, start in first.items() if index < start or clip.direction == "backward"]


def merged(
    forward: UInt8[np.ndarray, "height width"],
    backward: UInt8[np.ndarray, "height width"],
    objects: Collection[int],
) -> UInt8[np.ndarray, "height width"]:
    """`forward` with the `objects` of `backward` on its background pixels."""
    return np.where((forward == 0) & np.isin(backward, list(objects)), backward, forward)
