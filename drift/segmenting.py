"""Segmentation of a frame by a tracker, shared by `TrackingModule` and the page."""

from __future__ import annotations

from functools import partial

import numpy as np

from drift.clip import Clip
from drift.errors import InputError
from drift.formats import SegmentedFrame
from drift.masks import with_given
from drift.propagation.labels import SoftLabels
from drift.propagation.tracker import Tracker

__all__ = ["segment_frame"]


def segment_frame(
    tracker: Tracker, clip: Clip, index: int, frame: np.ndarray, given: np.ndarray | None
) -> tuple[SegmentedFrame, SoftLabels | None]:
    """Segments the next frame of a clip; errors gain the names of clip and frame.

    Args:
        tracker: has processed all frames from `clip.start` to `index - 1`.
        clip: the clip.
        index: index of the frame.
        frame: RGB, `(height, width, 3)` uint8, at full size.
        given: the given mask of the frame, or None.

    Returns:
        The frame with its mask at full size, and the tracker's labels; an empty mask and None before `clip.start` and
        with the direction `backward`.
    """
    size = frame.shape[0], frame.shape[1]
    named = partial(
        SegmentedFrame, index=index, name=clip.frame_names[index], time=clip.time(index), frame=frame
    )
    if index < clip.start or clip.direction == "backward":
        return named(mask=np.zeros(size, dtype=np.uint8)), None
    reduced = clip.reduced_frame(frame)
    points = clip.reduced_points(index, size)
    try:
        labels = tracker.step(reduced, None if given is None else clip.reduced_mask(given), points)
    except InputError as error:
        raise InputError(f"{clip.name}, frame {clip.frame_names[index]}: {error}") from None
    with tracker.stopwatch.stage("kernel"):
        mask = with_given(labels.mask(size).numpy(), given)
        return named(mask=mask, objects=labels.object_ids, points=labels.tracked_points(size)), labels
