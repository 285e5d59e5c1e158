"""Overlay video: masks and points drawn over the frames, with the clip's audio: `overlays/SEQUENCE.mp4`."""

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

_TRAIL = 12  # length of a point's drawn trajectory, in frames


class OverlayWriter(FrameWriter):
    """Writes an H.264 MP4 that plays in every browser.

    Args:
        path: path of the MP4 file.
        audio: file whose audio track is added, or None.
    """

    def __init__(self, path: Path, *, audio: Path | None = None) -> None:
        self.path, self.audio = path, audio
        # Fragmented, so that the file is playable while it is written; `close` remuxes it to a regular MP4.
        self._video = VideoEncoder(
            path,
            codec="libx264",
            pixels="yuv420p",
            # No B-frames: in a fragmented MP4 they would shift all timestamps.
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
    """Tints each object in its palette colour and draws a light and a black outline.

    Args:
        frame: `(height, width, 3)` uint8 RGB.
        mask: `(height, width)` uint8 object ids.
        opacity: opacity of the tint, in [0, 1].

    Returns:
        `(height, width, 3)` uint8 RGB.
    """
    tint = cv2.applyColorMap(mask, DAVIS_PALETTE[:, None])
    drawn = cv2.copyTo(cv2.addWeighted(frame, 1 - opacity, tint, opacity, 0), mask, frame.copy())
    width = max(1, round(min(mask.shape) / 400))
    around = cv2.dilate((mask > 0).astype(np.uint8), np.ones((2 * width + 1, 2 * width + 1), np.uint8))
    drawn[(around > 0) & (mask == 0)] = 0  # contrast where the background has the colour of the object
    for object_id in np.flatnonzero(np.bincount(mask.ravel(), minlength=256)[1:]) + 1:
        contours, _ = cv2.findContours(
            (mask == object_id).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        light = [int(c) for c in DAVIS_PALETTE[object_id] // 2 + 127]
        cv2.drawContours(drawn, contours, -1, light, thickness=width)
    return drawn


def draw_points(image: np.ndarray, trajectory: Sequence[Sequence[TrackedPoint]]) -> np.ndarray:
    """Draws tracked points as discs, paler at low confidence, with the trajectories that lead to them.

    Args:
        image: `(height, width, 3)` uint8 RGB.
        trajectory: points of the most recent frames; the current frame is the last item.

    Returns:
        `(height, width, 3)` uint8 RGB.
    """
    drawn = np.ascontiguousarray(image).copy()
    unit = max(1, round(min(image.shape[:2]) / 240))
    paths: dict[str, list[tuple[int, int]]] = {}
    for points in trajectory:
        for point in points:
            paths.setdefault(point.name, []).append((round(point.x), round(point.y)))
    for number, point in enumerate(trajectory[-1]):
        colour = [int(c) for c in DAVIS_PALETTE[1 + number % 254] // 2 + 127]
        path = np.array(paths[point.name], dtype=np.int32)
        cv2.polylines(drawn, [path], False, colour, thickness=unit, lineType=cv2.LINE_AA)
        centre = path[-1].tolist()
        cv2.circle(drawn, centre, 4 * unit, (255, 255, 255), -1, cv2.LINE_AA)
        shade = [round(255 + (c - 255) * min(point.confidence * 2, 1)) for c in colour]
        cv2.circle(drawn, centre, 3 * unit, shade, -1, cv2.LINE_AA)
    return drawn
