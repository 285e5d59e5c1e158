"""Geometric transforms that place pictures in scenes: similarities and smooth deformations."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

__all__ = ["Bend", "Placement", "bend", "similarity", "warp"]


@dataclass(frozen=True)
class Placement:
    """Placement of a picture in a square image: centre (x, y) and size as fractions of the image side."""

    centre: tuple[float, float]
    size: float
    degrees: float
    mirrored: bool


@dataclass(frozen=True)
class Bend:
    """Smooth deformation: displacements of a coarse lattice of points, as fractions of the side."""

    shifts: np.ndarray

    @staticmethod
    def drawn(random: np.random.Generator, strength: float) -> Bend:
        """Random displacements with standard deviation up to `strength` on a lattice of 5 x 5 points."""
        shifts = random.normal(0, random.uniform(0.2, 1) * strength, (5, 5, 2))
        return Bend(shifts.astype(np.float32))


def similarity(source: tuple[int, int], placement: Placement, side: int, *, longest: bool) -> np.ndarray:
    """The 2 x 3 map of a `(height, width)` picture to its placement in a square of `side` pixels.

    The placement's size is that of the picture's longest side, or of its shortest.
    """
    height, width = source
    scale = placement.size * side / (max(source) if longest else min(source))
    matrix = np.asarray(
        cv2.getRotationMatrix2D((width / 2, height / 2), placement.degrees, scale), dtype=np.float64
    )
    matrix[:, 2] += np.asarray(placement.centre) * side - (width / 2, height / 2)
    if placement.mirrored:
        matrix = matrix @ np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1]], dtype=np.float64)
    return matrix


def warp(picture: np.ndarray, matrix: np.ndarray, side: int, border: int) -> np.ndarray:
    """Warps `picture` by a 2 x 3 matrix onto a square of `side` pixels, bilinearly."""
    shrink = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if shrink < 0.5:  # warpAffine has no prefilter: reduce first, so that nothing aliases
        factor = 2 ** int(np.floor(-np.log2(shrink)))
        size = (max(picture.shape[1] // factor, 1), max(picture.shape[0] // factor, 1))
        matrix = matrix.copy()
        matrix[:, 0] *= picture.shape[1] / size[0]
        matrix[:, 1] *= picture.shape[0] / size[1]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return cv2.warpAffine(picture, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=border)


def bend(layer: np.ndarray, by: Bend) -> np.ndarray:
    """Deforms a square layer `(side, side, channels)` float32; parts that leave it are cropped."""
    side = len(layer)
    field = cv2.resize(by.shifts, (side, side), interpolation=cv2.INTER_CUBIC) * side
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    return cv2.remap(layer, columns + field[..., 0], rows + field[..., 1], cv2.INTER_LINEAR)
