"""Segmentation of a frame by a tracker, shared by `TrackingModule` and the page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice

import numpy as np
import torch

from drift.clip import Clip
from drift.errors import InputError
from drift.formats import SegmentedFrame
from drift.masks import with_given
from drift.propagation.labels import SoftLabels
from drift.propagation.tracker import FrameFeatures, Tracker

__all__ = ["Decoded", "features_ahead", "is_tracked", "segment_frame"]


Decoded = tuple[int, np.ndarray, np.ndarray | None]
"""Index, frame and given mask."""


def is_tracked(clip: Clip, index: int) -> bool:
    """Whether the forward tracker processes a frame."""
    return index >= clip.start and clip.direction != "backward"


def features_ahead(
    tracker: Tracker, clip: Clip, frames: Iterable[Decoded]
) -> Iterator[tuple[int, np.ndarray, np.ndarray | None, FrameFeatures | None]]:
    """Adds the features of each tracked frame, computed in batches of `Backbone.batch` frames.

    Run in a background thread (`prefetched`), the backbone computes the next batch while frames are propagated, refined
    and written.
    """
    torch.get_num_threads()  # fixes the thread's pool size before the kernel changes that of its workers
    remaining = iter(frames)
    while batch := list(islice(remaining, tracker.backbone.batch)):
        tracked = {index: clip.reduced_frame(frame) for index, frame, _ in batch if is_tracked(clip, index)}
        features = dict(zip(tracked, tracker.features(list(tracked.values()), list(tracked)), strict=True))
        for index, frame, given in batch:
            yield index, frame, given, features.get(index)


def segment_frame(
    tracker: Tracker,
    clip: Clip,
    index: int,
    frame: np.ndarray,
    given: np.ndarray | None,
    features: FrameFeatures | None = None,
) -> tuple[SegmentedFrame, SoftLabels | None]:
    """Segments the next frame of a clip; errors gain the names of clip and frame.

    Args:
        tracker: has processed all frames from `clip.start` to `index - 1`.
        clip: the clip.
        index: index of the frame.
        frame: RGB, `(height, width, 3)` uint8, at full size.
        given: the given mask of the frame, or None.
        features: the frame's features, where they were computed ahead, see `features_ahead`.

    Returns:
        The frame with its mask at full size, and the tracker's labels; an empty mask and None before `clip.start` and
        with the direction `backward`.
    """
    size = frame.shape[0], frame.shape[1]
    named = partial(
        SegmentedFrame, index=index, name=clip.frame_names[index], time=clip.time(index), frame=frame
    )
    if not is_tracked(clip, index):
        return named(mask=np.zeros(size, dtype=np.uint8)), None
    reduced = clip.reduced_frame(frame)
    points = clip.reduced_points(index, size)
    try:
        labels = tracker.step(reduced, None if given is None else clip.reduced_mask(given), points, features)
    except InputError as error:
        raise InputError(f"{clip.name}, frame {clip.frame_names[index]}: {error}") from None
    with tracker.stopwatch.stage("kernel"):
        mask = with_given(labels.mask(size).numpy(), given)
        return named(mask=mask, objects=labels.object_ids, points=labels.tracked_points(size)), labels
