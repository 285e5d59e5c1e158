"""Frames, masks and places made smaller for the model, and back."""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["reduced_frame", "reduced_mask", "reduced_size"]


def reduced_size(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    """Height and width of a frame made smaller, in its own proportions, until no side exceeds `max_side` pixels."""
    if max_side is None or max(size) <= max_side:
        return size
    scale = max_side / max(size)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def reduced_frame(frame: np.ndarray, max_side: int | None) -> np.ndarray:
    """`(height, width, 3)` uint8 made smaller, each pixel the mean of those it covers."""
    return _resized(frame, max_side, cv2.INTER_AREA)


def reduced_mask(mask: np.ndarray, max_side: int | None) -> np.ndarray:
    """`(height, width)` uint8 object ids made smaller; ids are never mixed."""
    return _resized(mask, max_side, cv2.INTER_NEAREST_EXACT)


def _resized(picture: np.ndarray, max_side: int | None, interpolation: int) -> np.ndarray:
    size = picture.shape[0], picture.shape[1]
    wanted = reduced_size(size, max_side)
    if wanted == size:
        return picture
    return cv2.resize(picture, (wanted[1], wanted[0]), interpolation=interpolation)
