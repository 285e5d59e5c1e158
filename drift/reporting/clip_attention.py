"""The attention figure of a clip in work: where its first visible object looks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from drift.clip import Clip
from drift.formats import SegmentedFrame
from drift.propagation.tracker import Tracker
from drift.reporting.attention_figure import AttentionView, draw_attention

__all__ = ["draw_clip_attention"]


def draw_clip_attention(tracker: Tracker, clip: Clip, segmented: SegmentedFrame, path: Path) -> None:
    """Draws where a query of the frame last tracked looks, in the first and in the last memory frame.

    The query is the inmost pixel of the first object that is visible, or else the first point that is followed, or else
    where the first object was given. Where nothing is remembered yet, no figure is made.

    Args:
        tracker: whose last frame it is.
        clip: of the frame.
        segmented: the frame, and what was found in it.
        path: of the PNG.
    """
    frame = clip.reduced_frame(segmented.frame)
    point = _query(clip.reduced_mask(segmented.mask), segmented, frame.shape[0] / segmented.frame.shape[0])
    if point is None:
        given = clip.reduced_mask(clip.given[min(clip.given)])
        point = _query(given, replace(segmented, objects=np.unique(given[given > 0]).tolist()), 1.0)
    if point is None:
        return
    indices, weights = tracker.attention(*point)
    if not indices:
        return
    shown = sorted({0, len(indices) - 1})
    view = AttentionView(
        frame=frame,
        frame_index=segmented.index,
        point=point,
        memory_frames=[clip.reduced_frame(clip.frames[indices[place]]) for place in shown],
        memory_indices=[indices[place] for place in shown],
        weights=weights[shown].numpy(),
    )
    draw_attention(
        view, path, title=f"{clip.name}: where one query attends, over {len(indices)} memory frames"
    )


def _query(mask: np.ndarray, segmented: SegmentedFrame, scale: float) -> tuple[int, int] | None:
    for object_id in segmented.objects:
        if (point := _inmost_pixel(mask == object_id)) is not None:
            return point
    if segmented.points:
        first = segmented.points[0]
        rows, columns = mask.shape
        row, column = round(first.y * scale), round(first.x * scale)
        return min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)
    return None


def _inmost_pixel(visible: np.ndarray) -> tuple[int, int] | None:
    """The pixel of an object that is farthest from its edge, (row, column); None where it is not visible."""
    if not visible.any():
        return None
    depth = cv2.distanceTransform(np.pad(visible, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(row), int(column)
