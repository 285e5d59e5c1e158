"""Simulated clicks: the next point after a prediction."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool

__all__ = ["next_point"]


def next_point(
    truth: Bool[np.ndarray, "rows columns"],
    mask: Bool[np.ndarray, "rows columns"],
    random: np.random.Generator | None = None,
) -> tuple[int, int, bool]:
    """Column and row of a point in the largest error region, and whether it is inside the object.

    Args:
        truth: mask of the object.
        mask: predicted mask.
        random: draws a point deep inside errors of that kind; None for the deepest point.
    """
    depths = [
        cv2.distanceTransform(np.pad(error, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
        for error in (truth & ~mask, ~truth & mask)
    ]
    missing = depths[0].max() >= depths[1].max()
    depth = depths[0] if missing else depths[1]
    if random is None:
        row, column = np.unravel_index(depth.argmax(), depth.shape)
    else:
        places = np.argwhere(depth >= random.uniform(0.3, 1) * depth.max())
        row, column = places[random.integers(len(places))]
    return int(column), int(row), bool(missing)
