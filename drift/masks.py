"""Operations on masks of object ids: downscaling without losing objects, and merging."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import UInt8

from drift.resizing import reduced_size

__all__ = ["reduced_mask", "with_given"]


def reduced_mask(
    mask: UInt8[np.ndarray, "height width"], max_side: int | None
) -> UInt8[np.ndarray, "rows columns"]:
    """Downscales a mask until no side exceeds `max_side` pixels; every object keeps at least one pixel."""
    size = mask.shape[0], mask.shape[1]
    rows, columns = reduced_size(size, max_side)
    if (rows, columns) == size:
        return mask
    small = cv2.resize(mask, (columns, rows), interpolation=cv2.INTER_NEAREST_EXACT)
    for object_id in np.setdiff1d(mask, small):
        pixels = np.argwhere(mask == object_id)
        row, column = pixels[len(pixels) // 2]
        small[_free_pixel(small, row * rows // size[0], column * columns // size[1])] = object_id
    return small


def _free_pixel(mask: np.ndarray, row: int, column: int) -> tuple[np.intp, ...]:
    """The pixel nearest to (row, column) that is not the last pixel of its object."""
    is_last = np.bincount(mask.ravel(), minlength=256) == 1
    rows, columns = np.indices(mask.shape)
    distance = np.where(is_last[mask], np.inf, (rows - row) ** 2 + (columns - column) ** 2)
    return np.unravel_index(int(distance.argmin()), mask.shape)


def with_given(
    mask: UInt8[np.ndarray, "height width"], given: UInt8[np.ndarray, "height width"] | None
) -> UInt8[np.ndarray, "height width"]:
    """Replaces objects of `mask` by those of `given`: an id in `given` keeps only its pixels there; None: no change."""
    if given is None or not given.any():
        return mask
    other_objects = np.where(np.isin(mask, np.unique(given)), np.uint8(0), mask)
    return np.where(given > 0, given, other_objects)
