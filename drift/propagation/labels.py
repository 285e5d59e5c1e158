"""Soft labels on the token grid, and the way between them and a mask of object ids."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from drift.masks import with_given
from drift.propagation.keypoints import TrackedPoint, positions

__all__ = [
    "SoftLabels",
    "downsampling",
    "finest",
    "labels_of_mask",
    "merge_given",
    "on_tokens",
    "pad_to_stride",
    "pooled",
    "unpooled",
]


@dataclass(frozen=True)
class SoftLabels:
    """What the tracker says of one frame.

    Attributes:
        probabilities: background first, then one channel per object; each token's channels sum to 1.
        object_ids: the id of each object channel.
        frame_size: height and width of the frame in pixels.
        stride: pixels per token.
        min_confidence: an object that is nowhere at least this probable is absent.
        given: the mask given for this frame, `(height, width)` object ids, or None.
        refined: probabilities at the frame's size, where a refiner has sharpened them, or None.
        points: on the token grid, the heat of each point that is followed.
        point_names: of those points.
    """

    probabilities: Float[Tensor, "channels rows columns"]
    object_ids: tuple[int, ...]
    frame_size: tuple[int, int]
    stride: int
    min_confidence: float = 0.0
    given: UInt8[Tensor, "height width"] | None = None
    refined: Float[Tensor, "channels height width"] | None = None
    points: Float[Tensor, "points rows columns"] | None = None
    point_names: tuple[str, ...] = ()

    def upsampled(self) -> Float[Tensor, "channels height width"]:
        """The probabilities at the frame's size: the refined ones, or bilinear between tokens."""
        if self.refined is not None:
            return self.refined.clone()
        height, width = self.frame_size
        full = F.interpolate(
            self.probabilities[None], scale_factor=self.stride, mode="bilinear", align_corners=False
        )
        return full[0, :, :height, :width]

    def present(self, upsampled: Float[Tensor, "channels height width"]) -> Bool[Tensor, " objects"]:
        """Of each object in `upsampled()`, whether it is anywhere as probable as `min_confidence`."""
        return upsampled[1:].flatten(1).amax(1) >= self.min_confidence

    def mask(self, size: tuple[int, int] | None = None) -> UInt8[Tensor, "height width"]:
        """The most probable object of every pixel, 0 for the background, on the CPU.

        Objects whose mask was given for this frame have just that mask.

        Args:
            size: height and width of the mask, where they are not those of the frame that the tracker saw.
        """
        probabilities = self.upsampled()
        absent = ~self.present(probabilities)
        probabilities[1:].masked_fill_(absent[:, None, None], -1.0)
        if size is not None and size != self.frame_size:
            probabilities = F.interpolate(probabilities[None], size, mode="bilinear", align_corners=False)[0]
        best = probabilities[0].clone()
        mask = torch.zeros(best.shape, dtype=torch.uint8, device=best.device)
        for object_id, channel in zip(self.object_ids, probabilities[1:], strict=True):
            mask.masked_fill_(channel > best, object_id)  # argmax over few channels is many times slower
            torch.maximum(best, channel, out=best)
        if self.given is not None and mask.shape == self.given.shape:
            return torch.from_numpy(with_given(mask.cpu().numpy(), self.given.cpu().numpy()))
        return mask.cpu()

    def tracked_points(self, size: tuple[int, int] | None = None) -> list[TrackedPoint]:
        """Where each point is that is followed, in pixels of a frame of `size`, the tracker's own by default."""
        if self.points is None:
            return []
        height, width = size or self.frame_size
        down, right = height / self.frame_size[0], width / self.frame_size[1]
        found = positions(self.points, self.stride)
        return [
            TrackedPoint(name, (x + 0.5) * right - 0.5, (y + 0.5) * down - 0.5, confidence)
            for name, (x, y, confidence) in zip(self.point_names, found, strict=True)
        ]


def pad_to_stride(images: Float[Tensor, "batch channels height width"], stride: int) -> Tensor:
    """Repeats the last row and column until both sides are multiples of `stride`."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % stride, 0, -height % stride), mode="replicate")


def on_tokens(
    probabilities: Float[Tensor, "channels height width"], stride: int
) -> Float[Tensor, "channels rows columns"]:
    """What the frame's pixels hold, averaged over tokens of `stride` pixels."""
    return F.avg_pool2d(pad_to_stride(probabilities[None], stride), stride)[0]


def labels_of_mask(
    mask: UInt8[Tensor, "height width"], object_ids: Sequence[int], stride: int
) -> Float[Tensor, "objects rows columns"]:
    """The share of each token's pixels that belongs to each object."""
    ids = torch.tensor(object_ids, dtype=torch.uint8, device=mask.device)
    one_hot = (mask[None] == ids[:, None, None]).float()
    return on_tokens(one_hot, stride)


def merge_given(
    propagated: Float[Tensor, "channels rows columns"],
    given: Float[Tensor, "given rows columns"],
    channels: Sequence[int],
) -> Float[Tensor, "channels rows columns"]:
    """Labels in which the objects of `channels` are as `given`, the others as propagated where room is left.

    Objects that were not given keep their share of what the given ones leave, the background too.
    """
    merged = propagated.clone()
    merged[list(channels)] = 0
    left = (1 - given.sum(0)).clamp(min=0)
    rest = merged.sum(0)
    merged = torch.where(rest > 0, merged * (left / rest.clamp(min=1e-12)), merged)
    merged[0] += torch.where(rest > 0, torch.zeros_like(left), left)
    merged[list(channels)] = given
    return merged


def downsampling(fine: int, coarse: int) -> int:
    """How many fine tokens a coarse one covers along an axis, given both lengths.

    Layers halve the grid, rounding up each time, so the ratio of the lengths lies below a power of two.
    """
    return 2 ** math.ceil(math.log2(fine / coarse)) if coarse < fine else 1


def pooled(labels: Float[Tensor, "channels rows columns"], grid: tuple[int, int]) -> Tensor:
    """Labels on a coarser grid whose tokens each cover a square of the finer one, `(channels, *grid)`.

    Downsampling layers round up, so the last coarse row may reach past the fine grid: it takes the mean
    of what it covers.
    """
    factor = downsampling(labels.shape[-2], grid[0])
    if factor == 1:
        return labels
    return F.avg_pool2d(labels[None], factor, ceil_mode=True, count_include_pad=False)[0]


def unpooled(
    coarse: Float[Tensor, "batch channels coarse_rows coarse_columns"], grid: tuple[int, int]
) -> Float[Tensor, "batch channels rows columns"]:
    """What lies on a coarser grid, between its tokens on the finer `grid`, bilinear; of equal grids as it is."""
    factor = downsampling(grid[0], coarse.shape[-2])
    if factor > 1:
        coarse = F.interpolate(coarse, scale_factor=factor, mode="bilinear", align_corners=False)
    return coarse[..., : grid[0], : grid[1]]


def finest(grids: Iterable[Sequence[int]]) -> tuple[int, int]:
    """The largest of several layers' grids, each of rows and columns."""
    rows, columns = max(grids, key=math.prod)
    return rows, columns
