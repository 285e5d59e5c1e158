"""The overlay video: `overlays/SEQUENCE.mp4`, the masks and points over the frames, with the clip's own sound."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from drift.formats.video_encoding import VideoEncoder, with_audio
from drift.formats.writer import FrameWriter, SegmentedFrame
from drift.image_files import DAVIS_PALETTE
from drift.propagation.keypoints import TrackedPoint

__all__ = ["OverlayWriter", "draw_overlay", "draw_points"]

_TRAIL = 12  # frames for which a point's way is shown


class OverlayWriter(FrameWriter):
    """An H.264 mp4 that every browser plays.

    Args:
        path: of the mp4.
        audio: a file whose sound goes with it, or None.
    """

    def __init__(self, path: Path, *, audio: Path | None = None) -> None:
        self.path, self.audio = path, audio
        # Fragments can be played as soon as they are written; the one file is made of them at the end.
        self._video = VideoEncoder(
            path,
            codec="libx264",
            pixels="yuv420p",
            # Without pictures that look ahead: they would shift all times of a video in fragments.
            options={"crf": "20", "preset": "veryfast", "g": "24", "bf": "0"},
            container_options={"movflags": "frag_keyframe+empty_moov+default_base_moof"},
        )
        self._trail: deque[Sequence[TrackedPoint]] = deque(maxlen=_TRAIL)

    def add(self, segmented: SegmentedFrame) -> None:
        """See `FrameWriter.add`."""
        drawn = draw_overlay(segmented.frame, segmented.mask)
        if segmented.points:
            self._trail.append(segmented.points)
            drawn = draw_points(drawn, list(self._trail))
        self._video.add(drawn, segmented.time)

    def close(self) -> None:
        """See `FrameWriter.close`."""
        self._video.close()
        if self.path.is_file():
            with_audio(self.path, self.audio)


def draw_overlay(frame: np.ndarray, mask: np.ndarray, *, opacity: float = 0.5) -> np.ndarray:
    """Each object tinted in its palette colour and outlined.

    Args:
        frame: `(height, width, 3)` uint8 RGB.
        mask: `(height, width)` uint8 object ids.
        opacity: of the tint, in [0, 1].

    Returns:
        `(height, width, 3)` uint8 RGB.
    """
    tint = DAVIS_PALETTE[mask]
    mixed = cv2.addWeighted(frame, 1 - opacity, tint, opacity, 0)
    drawn = np.where((mask > 0)[..., None], mixed, frame)
    for object_id in np.flatnonzero(np.bincount(mask.ravel(), minlength=256)[1:]) + 1:
        outlines, _ = cv2.findContours(
            (mask == object_id).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        light = [int(c) for c in DAVIS_PALETTE[object_id] // 2 + 127]
        cv2.drawContours(drawn, outlines, -1, light, thickness=max(1, round(min(mask.shape) / 400)))
    return drawn


def draw_points(picture: np.ndarray, course: Sequence[Sequence[TrackedPoint]]) -> np.ndarray:
    """The points of the last frame as discs, pale where they are unsure, with the ways that they came.

    Args:
        picture: `(height, width, 3)` uint8 RGB.
        course: the points of the last frames, this one's last.

    Returns:
        `(height, width, 3)` uint8 RGB.
    """
    drawn = np.ascontiguousarray(picture).copy()
    unit = max(1, round(min(picture.shape[:2]) / 240))
    ways: dict[str, list[tuple[int, int]]] = {}
    for points in course:
        for point in points:
            ways.setdefault(point.name, []).append((round(point.x), round(point.y)))
    for number, point in enumerate(course[-1], start=1):
        colour = [int(c) for c in DAVIS_PALETTE[1 + (number - 1) % 254] // 2 + 127]
        way = np.array(ways[point.name], dtype=np.int32)
        cv2.polylines(drawn, [way], False, colour, thickness=unit, lineType=cv2.LINE_AA)
        centre = way[-1].tolist()
        cv2.circle(drawn, centre, 4 * unit, (255, 255, 255), -1, cv2.LINE_AA)
        shade = [round(255 + (c - 255) * min(point.confidence * 2, 1)) for c in colour]
        cv2.circle(drawn, centre, 3 * unit, shade, -1, cv2.LINE_AA)
    return drawn
