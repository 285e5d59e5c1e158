"""Query pixels of the attention figure: one per object, per tracked point and for the background."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from drift.propagation.keypoints import TrackedPoint

__all__ = ["QueryPoint", "chosen_points", "default_points"]

_MAX_POINTS = 5  # objects and tracked points, to keep the figure readable


class QueryPoint(NamedTuple):
    """A query pixel.

    Attributes:
        name: caption, e.g. "object 1".
        row, column: position in pixels.
    """

    name: str
    row: int
    column: int


def default_points(
    mask: UInt8[np.ndarray, "height width"], points: Sequence[TrackedPoint] = ()
) -> list[QueryPoint]:
    """Innermost pixel of each visible object, the tracked points, and the innermost background pixel.

    Args:
        mask: object ids.
        points: tracked points in pixels of the mask.

    Returns:
        At most 5 objects and points, and the background.
    """
    queries = [
        QueryPoint(f"object {object_id}", *_innermost_pixel(mask == object_id))
        for object_id in np.unique(mask[mask > 0])
    ]
    queries += [_clamped(f"point {point.name}", point.x, point.y, mask.shape) for point in points]
    background = [QueryPoint("background", *_innermost_pixel(mask == 0))] if (mask == 0).any() else []
    return queries[:_MAX_POINTS] + background


def chosen_points(points: Sequence[Sequence[float]], size: tuple[int, int]) -> list[QueryPoint]:
    """Query pixels at given x and y, clamped to a frame of the given height and width."""
    return [_clamped(f"({x:g}, {y:g})", x, y, size) for x, y in points]


def _clamped(name: str, x: float, y: float, size: tuple[int, ...]) -> QueryPoint:
    rows, columns = size
    return QueryPoint(name, min(max(round(y), 0), rows - 1), min(max(round(x), 0), columns - 1))


def _innermost_pixel(mask: Bool[np.ndarray, "height width"]) -> tuple[int, int]:
    """Row and column of the pixel that is farthest from the boundary of a non-empty mask."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(row), int(column)
