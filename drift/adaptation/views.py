"""Augmented views of the given frame with known warps: what a clip's adapter is learned on (design 2.4)."""

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

_TURN, _ZOOM, _BRIGHTNESS, _TINT = 10.0, 0.15, 0.2, 0.1  # degrees, then shares of 1
_SHIFT = 0.6  # of the reach: the rest of it is left for what turning and zooming move


@dataclass(frozen=True)
class View:
    """One picture of the given frame's scene.

    Attributes:
        image: RGB in [0, 1], padded to the backbone's stride.
        mask: object ids, of the frame's size; as in the frame, warped with it.
        reachable: pixels whose place in the frame is at most `reach` away and inside it.
        flipped: whether `image` is mirrored. Mask and reachable pixels are not: what is read of such a view
            has to be mirrored back.
    """

    image: Float[Tensor, "3 rows columns"]
    mask: UInt8[Tensor, "height width"]
    reachable: Bool[Tensor, "height width"]
    flipped: bool = False

    def labels(
        self, object_ids: Sequence[int], stride: int
    ) -> Float[Tensor, "channels token_rows token_columns"]:
        """The share of each token's pixels that is none of these objects, then each one's; not mirrored."""
        shares = labels_of_mask(self.mask, object_ids, stride)
        return torch.cat([1 - shares.sum(0, keepdim=True), shares])


def augmented_views(
    frame: UInt8[np.ndarray, "height width 3"],
    mask: UInt8[np.ndarray, "height width"],
    *,
    count: int,
    reach: float,
    stride: int,
    seed: int,
) -> list[View]:
    """The frame itself, then `count` views: turned, zoomed, shifted, of another light, every second one mirrored.

    Args:
        frame: RGB.
        mask: object ids; the warps' centre is the middle of the objects.
        count: of augmented views; 0 for the frame alone.
        reach: in pixels: how far a place may move.
        stride: the backbone's.
        seed: of the warps.
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
    """An affine map, `(2, 3)`, from the frame's pixels (x, y) to the view's."""
    rows, columns = np.nonzero(mask)
    centre = (float(columns.mean()), float(rows.mean())) if len(rows) else (0.0, 0.0)
    matrix = cv2.getRotationMatrix2D(centre, random.uniform(-_TURN, _TURN), 1 + random.uniform(-_ZOOM, _ZOOM))
    matrix[:, 2] = matrix[:, 2] + random.uniform(-reach, reach, 2) * _SHIFT
    return matrix


def _reachable(matrix: np.ndarray, size: tuple[int, ...], reach: float) -> np.ndarray:
    """Of every pixel of the view, whether its place in the frame is inside it and near."""
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
