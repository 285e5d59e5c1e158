"""Masks of object ids: made smaller without losing an object, and put over each other."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import UInt8

from drift.resizing import reduced_size

__all__ = ["reduced_mask", "with_given"]


def reduced_mask(
    mask: UInt8[np.ndarray, "height width"], max_side: int | None
) -> UInt8[np.ndarray, "rows columns"]:
    """Object ids made smaller until no side exceeds `max_side` pixels; ids are never mixed, and none is lost."""
    size = mask.shape[0], mask.shape[1]
    rows, columns = reduced_size(size, max_side)
    if (rows, columns) == size:
        return mask
    small = cv2.resize(mask, (columns, rows), interpolation=cv2.INTER_NEAREST_EXACT)
    for lost in np.setdiff1d(mask, small):
        there = np.argwhere(mask == lost)
        row, column = there[len(there) // 2]
        small[_spare_pixel(small, row * rows // size[0], column * columns // size[1])] = lost
    return small


def _spare_pixel(mask: np.ndarray, row: int, column: int) -> tuple[int, int]:
    """The pixel nearest to a place that is not the only one of its object."""
    alone = np.bincount(mask.ravel(), minlength=256) == 1
    rows, columns = np.indices(mask.shape)
    distance = np.where(alone[mask], np.inf, (rows - row) ** 2 + (columns - column) ** 2)
    found = np.unravel_index(int(distance.argmin()), mask.shape)
    return int(found[0]), int(found[1])


def with_given(
    mask: UInt8[np.ndarray, "height width"], given: UInt8[np.ndarray, "height width"] | None
) -> UInt8[np.ndarray, "height width"]:
    """A mask in which the objects of another, given one are just where that has them; None changes nothing."""
    if given is None or not given.any():
        return mask
    others = np.where(np.isin(mask, np.unique(given)), np.uint8(0), mask)
    return np.where(given > 0, given, others)
