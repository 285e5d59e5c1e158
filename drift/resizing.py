"""Downscaling of frames."""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["reduced_frame", "reduced_size"]


def reduced_size(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    """(height, width) scaled so that no side exceeds `max_side` pixels, keeping the aspect ratio; None: unchanged."""
    if max_side is None or max(size) <= max_side:
        return size
    scale = max_side / max(size)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def reduced_frame(frame: np.ndarray, max_side: int | None) -> np.ndarray:
    """Downscales a `(height, width, 3)` uint8 frame to `reduced_size`, by averaging pixels."""
    size = frame.shape[0], frame.shape[1]
    rows, columns = reduced_size(size, max_side)
    if (rows, columns) == size:
        return frame
    return cv2.resize(frame, (columns, rows), interpolation=cv2.INTER_AREA)
