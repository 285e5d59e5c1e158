"""The pixels whose attention is shown: of each object, of each point that is followed, and of the background."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from drift.propagation.keypoints import TrackedPoint

__all__ = ["QueryPoint", "chosen_points", "default_points"]

_MOST = 5  # objects and points; a figure of more rows cannot be read


class QueryPoint(NamedTuple):
    """A pixel whose attention is shown.

    Attributes:
        name: what it is on.
        row, column: in pixels.
    """

    name: str
    row: int
    column: int


def default_points(
    mask: UInt8[np.ndarray, "height width"], points: Sequence[TrackedPoint] = ()
) -> list[QueryPoint]:
    """The inmost pixel of each visible object, the points that are followed, and the background's inmost pixel.

    Args:
        mask: object ids.
        points: in pixels of the mask.
    """
    rows, columns = mask.shape
    found = []
    for object_id in np.unique(mask[mask > 0]):
        if (pixel := _inmost_pixel(mask == object_id)) is not None:
            found.append(QueryPoint(f"object {object_id}", *pixel))
    for point in points:
        row, column = min(max(round(point.y), 0), rows - 1), min(max(round(point.x), 0), columns - 1)
        found.append(QueryPoint(f"point {point.name}", row, column))
    background = _inmost_pixel(mask == 0)
    return found[:_MOST] + ([] if background is None else [QueryPoint("background", *background)])


def chosen_points(places: Sequence[Sequence[float]], size: tuple[int, int]) -> list[QueryPoint]:
    """Points that the user names as x and y, moved into a frame of this height and width where they lie outside."""
    rows, columns = size
    return [
        QueryPoint(f"({x:g}, {y:g})", min(max(round(y), 0), rows - 1), min(max(round(x), 0), columns - 1))
        for x, y in places
    ]


def _inmost_pixel(visible: Bool[np.ndarray, "height width"]) -> tuple[int, int] | None:
    """The pixel that is farthest from the edge, row and column; None where nothing is visible."""
    if not visible.any():
        return None
    depth = cv2.distanceTransform(np.pad(visible, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(row), int(column)
