"""Augmented views of the given frame: warped by known maps, so that their masks are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from drift.propagation.labels import labels_of_mask, pad_to_stride

__all__ = ["View", "augmented_views"]

_ROTATION, _ZOOM, _BRIGHTNESS, _TINT = 10.0, 0.15, 0.2, 0.1  # degrees, then fractions
_SHIFT = 0.6  # of the reach: the rest is left for displacement by rotation and zoom


@dataclass(frozen=True)
class View:
    """An augmented view of the given frame.

    Attributes:
        image: RGB in [0, 1], padded to the backbone's stride.
        mask: object ids at the frame's size, warped with the frame.
        reachable: pixels whose position in the frame lies inside it and at most `reach` away.
        flipped: whether `image` is mirrored. `mask` and `reachable` are not, so features of a mirrored view have to be
            mirrored back.
    """

    image: Float[Tensor, "3 rows columns"]
    mask: UInt8[Tensor, "height width"]
    reachable: Bool[Tensor, "height width"]
    flipped: bool = False

    def labels(
        self, object_ids: Sequence[int], stride: int
    ) -> Float[Tensor, "channels token_rows token_columns"]:
        """Fraction of each token's pixels that is background, then of each object; not mirrored."""
        objects = labels_of_mask(self.mask, object_ids, stride)
        return torch.cat([1 - objects.sum(0, keepdim=True), objects])


def augmented_views(
    frame: UInt8[np.ndarray, "height width 3"],
    mask: UInt8[np.ndarray, "height width"],
    *,
    count: int,
    reach: float,
    stride: int,
    seed: int,
) -> list[View]:
    """The frame itself, then `count` views of it: rotated, zoomed, shifted, relit, and every second one mirrored.

    Args:
        frame: RGB.
        mask: object ids; warps are centred on the objects.
        count: number of augmented views; 0 for the frame alone.
        reach: largest displacement in pixels.
        stride: stride of the backbone.
        seed: seed of the warps.
    """
    random = np.random.default_rng(seed)
    everywhere = np.ones(mask.shape, dtype=bool)
    views = [_view(frame, mask, everywhere, stride, flipped=False)]
    for number in range(count):
        matrix = _warp(mask, reach, random)
        size = mask.shape[::-1]
        warped = cv2.warpAffine(frame, matrix, size, borderMode=cv2.BORDER_REFLECT_101)
        moved = cv2.warpAffine(mask, matrix, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101)
        views.append(
            _view(
                _relit(warped, random),
                moved,
                _reachable(matrix, mask.shape, reach),
                stride,
                flipped=number % 2 == 1,
            )
        )
    return views


def _view(
    picture: np.ndarray, mask: np.ndarray, reachable: np.ndarray, stride: int, *, flipped: bool
) -> View:
    image = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float() / 255
    padded = pad_to_stride(image[None], stride)[0]
    return View(
        padded.flip(-1) if flipped else padded,
        torch.from_numpy(np.ascontiguousarray(mask)),
        torch.from_numpy(reachable),
        flipped,
    )


def _warp(mask: np.ndarray, reach: float, random: np.random.Generator) -> np.ndarray:
    """An affine map `(2, 3)` from pixels (x, y) of the frame to those of the view."""
    rows, columns = np.nonzero(mask)
    centre = (float(columns.mean()), float(rows.mean())) if len(rows) else (0.0, 0.0)
    matrix = cv2.getRotationMatrix2D(
        centre, random.uniform(-_ROTATION, _ROTATION), 1 + random.uniform(-_ZOOM, _ZOOM)
    )
    matrix[:, 2] = matrix[:, 2] + random.uniform(-reach, reach, 2) * _SHIFT
    return matrix


def _reachable(matrix: np.ndarray, size: tuple[int, ...], reach: float) -> np.ndarray:
    """Whether the position of each pixel of the view in the frame lies inside it and within `reach`."""
    height, width = size
    inverse = cv2.invertAffineTransform(matrix)
    y, x = np.mgrid[:height, :width]
    source_x = inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]
    source_y = inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2]
    near = np.maximum(np.abs(source_x - x), np.abs(source_y - y)) <= reach
    inside = (source_x >= 0) & (source_x <= width - 1) & (source_y >= 0) & (source_y <= height - 1)
    return near & inside


def _relit(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    gain = 1 + random.uniform(-_BRIGHTNESS, _BRIGHTNESS) + random.uniform(-_TINT, _TINT, 3)
    return np.clip(picture * gain, 0, 255).astype(np.uint8)
