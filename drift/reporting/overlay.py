"""Masks drawn over frames, and the video made of them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from drift.image_files import DAVIS_PALETTE

__all__ = ["OverlayVideo", "draw_overlay"]


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


class OverlayVideo:
    """An H.264 mp4, encoded frame by frame.

    Use it in a `with` block: the file is whole when the block is left, also when it is left by an error.

    Args:
        path: of the mp4.
        frames_per_second: the rate of playing.
    """

    def __init__(self, path: Path, *, frames_per_second: float = 24.0) -> None:
        self.path = path
        self._rate = Fraction(frames_per_second).limit_denominator(1001)
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None

    def __enter__(self) -> OverlayVideo:
        return self

    def __exit__(self, *_: object) -> None:
        if self._container is not None and self._stream is not None:
            container, self._container = self._container, None
            try:
                container.mux(self._stream.encode())
            finally:
                container.close()

    def add(self, picture: np.ndarray) -> None:
        """Appends `(height, width, 3)` uint8 RGB; all of one size. Odd sides gain a row or a column."""
        height, width = picture.shape[:2]
        if height % 2 or width % 2:
            picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._container is None:
            self._open(picture.shape[1], picture.shape[0])
        assert self._container is not None
        assert self._stream is not None
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))

    def _open(self, width: int, height: int) -> None:
        self._container = av.open(str(self.path), mode="w", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream("libx264", rate=self._rate)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"  # what every browser plays
        # One thread: the encoder runs beside the model, which needs the cores more.
        self._stream.options = {"crf": "20", "preset": "veryfast", "threads": "1"}
