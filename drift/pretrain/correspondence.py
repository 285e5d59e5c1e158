"""Where what one view of a scene shows is seen in the other: known, since both were composed."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from drift.pretrain.scenes import Scene
from drift.pretrain.warping import Bend, bend_shifts, similarity

__all__ = ["seen_again"]


def seen_again(
    first: Scene,
    second: Scene,
    first_covers: Sequence[np.ndarray],
    second_covers: Sequence[np.ndarray],
    *,
    grid: int,
) -> np.ndarray:
    """For each cell of the first view the point of the second view that shows the same.

    Only geometry is told, not what belongs to one object.

    Args:
        first: a scene.
        second: the same objects on the same ground, in the same order, moved.
        first_covers: of each object how much of each pixel it covers, `(side, side)`, as `render` gives it.
        second_covers: the same of the second view.
        grid: cells along a side.

    Returns:
        `(grid, grid, 2)` float32, x and y in parts of the side; NaN where the second view does not show
        it, or where the first one shows a mixture.
    """
    side = first_covers[0].shape[0] if first_covers else 16 * grid
    centres = (np.arange(grid) + 0.5) / grid * side - 0.5
    points = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    shown = _at(_topmost(first_covers, side), points)
    found = np.full_like(points, np.nan)
    for layer, matrix, bent in _motions(first, second, side):
        own = shown == layer
        found[own] = _bent_back(_moved(points[own], matrix), bent, side)
    with np.errstate(invalid="ignore"):
        inside = ((found > -0.5) & (found < side - 0.5)).all(-1)
    again = np.full(len(points), -2)
    again[inside] = _at(_topmost(second_covers, side), found[inside])
    found[again != shown] = np.nan
    return ((found + 0.5) / side).astype(np.float32).reshape(grid, grid, 2)


def _topmost(covers: Sequence[np.ndarray], side: int) -> np.ndarray:
    """Of each pixel the object that is seen, -1 for the ground, -3 where it is a mixture."""
    if not covers:
        return np.full((side, side), -1)
    stacked = np.stack([1 - np.sum(covers, axis=0), *covers])
    return np.where(stacked.max(0) > 0.8, stacked.argmax(0) - 1, -3)


def _at(values: np.ndarray, points: np.ndarray) -> np.ndarray:
    columns, rows = np.rint(points).astype(int).T
    last = len(values) - 1
    return values[rows.clip(0, last), columns.clip(0, last)]


def _motions(first: Scene, second: Scene, side: int) -> list[tuple[int, np.ndarray, Bend | None]]:
    """Of the ground (-1) and each object: the 2 x 3 map from view to view in pixels, and the bend after it."""
    shape = first.ground.shape[:2]
    motions: list[tuple[int, np.ndarray, Bend | None]] = [
        (
            -1,
            _between(
                similarity(shape, first.ground_placement, side, longest=False),
                similarity(shape, second.ground_placement, side, longest=False),
            ),
            None,
        )
    ]
    for index, (before, after) in enumerate(zip(first.objects, second.objects, strict=True)):
        if before.bend is not None:
            raise ValueError("objects of the first view have to be unbent")
        shape = before.cutout.rgba.shape[:2]
        matrix = _between(
            similarity(shape, before.placement, side, longest=True),
            similarity(shape, after.placement, side, longest=True),
        )
        motions.append((index, matrix, after.bend))
    return motions


def _between(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (_square(after) @ np.linalg.inv(_square(before)))[:2]


def _square(matrix: np.ndarray) -> np.ndarray:
    return np.vstack([matrix, (0, 0, 1)])


def _moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def _bent_back(points: np.ndarray, by: Bend | None, side: int) -> np.ndarray:
    """Where `bend` takes what lies at `points`: it fetches pixel p from p + shift(p), so p is iterated for."""
    if by is None or not len(points):
        return points
    shifts = bend_shifts(by, side)
    found = points
    for _ in range(8):
        at = found.astype(np.float32)
        shift = cv2.remap(
            shifts, at[:, None, 0], at[:, None, 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        found = points - shift[:, 0]
    return found
