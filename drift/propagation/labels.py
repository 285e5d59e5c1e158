"""Soft labels on the grid of tokens, and their conversion from and to masks of object ids."""

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
    "hardened",
    "labels_of_mask",
    "merge_given",
    "on_tokens",
    "pad_to_stride",
    "pooled",
    "reweighted",
    "unpooled",
]


@dataclass(frozen=True)
class SoftLabels:
    """Labels of a frame, as the tracker returns them.

    Attributes:
        probabilities: background, then one channel per object; sums to 1 over channels.
        object_ids: object of each channel after the background.
        frame_size: height and width of the frame in pixels.
        stride: pixels per token.
        min_confidence: an object whose probability is below this everywhere is absent.
        given: the mask given for the frame, object ids, or None.
        refined: probabilities at the frame's size, if they were refined, or None.
        points: heat of each point on the grid of tokens.
        point_names: names of the points.
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
        """Probabilities at the frame's size: refined, or interpolated bilinearly between tokens."""
        if self.refined is not None:
            return self.refined.clone()
        height, width = self.frame_size
        full = F.interpolate(
            self.probabilities[None], scale_factor=self.stride, mode="bilinear", align_corners=False
        )
        return full[0, :, :height, :width]

    def present(self, upsampled: Float[Tensor, "channels height width"]) -> Bool[Tensor, " objects"]:
        """Whether the probability of each object reaches `min_confidence` anywhere in `upsampled()`."""
        return upsampled[1:].flatten(1).amax(1) >= self.min_confidence

    def mask(self, size: tuple[int, int] | None = None) -> UInt8[Tensor, "height width"]:
        """The most probable object of every pixel, 0 for the background, on the CPU.

        Objects whose mask was given for this frame keep exactly that mask.

        Args:
            size: height and width of the mask; None for those of the frame.
        """
        probabilities = self.upsampled()
        absent = ~self.present(probabilities)
        probabilities[1:].masked_fill_(absent[:, None, None], -1.0)
        if size is not None and size != self.frame_size:
            probabilities = F.interpolate(probabilities[None], size, mode="bilinear", align_corners=False)[0]
        best = probabilities[0].clone()
        mask = torch.zeros(best.shape, dtype=torch.uint8, device=best.device)
        for object_id, channel in zip(self.object_ids, probabilities[1:], strict=True):
            mask.masked_fill_(channel > best, object_id)  # many times faster than argmax over few channels
            torch.maximum(best, channel, out=best)
        if self.given is not None and mask.shape == self.given.shape:
            return torch.from_numpy(with_given(mask.cpu().numpy(), self.given.cpu().numpy()))
        return mask.cpu()

    def tracked_points(self, size: tuple[int, int] | None = None) -> list[TrackedPoint]:
        """Positions of the points in pixels of a frame of `size`; None for the size of the frame."""
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
    """Pads height and width to multiples of `stride` by repeating the last row and column."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % stride, 0, -height % stride), mode="replicate")


def on_tokens(
    probabilities: Float[Tensor, "channels height width"], stride: int
) -> Float[Tensor, "channels rows columns"]:
    """Probabilities of pixels averaged over tokens of `stride` x `stride` pixels."""
    return F.avg_pool2d(pad_to_stride(probabilities[None], stride), stride)[0]


def labels_of_mask(
    mask: UInt8[Tensor, "height width"], object_ids: Sequence[int], stride: int
) -> Float[Tensor, "objects rows columns"]:
    """Fraction of each token's pixels that belongs to each object, in [0, 1]."""
    ids = torch.tensor(object_ids, dtype=torch.uint8, device=mask.device)
    one_hot = (mask[None] == ids[:, None, None]).float()
    return on_tokens(one_hot, stride)


def merge_given(
    propagated: Float[Tensor, "channels rows columns"],
    given: Float[Tensor, "given rows columns"],
    channels: Sequence[int],
) -> Float[Tensor, "channels rows columns"]:
    """Propagated labels with those of some objects replaced by given ones; sums to 1 over channels.

    The background and the other objects are scaled to the probability that the given objects leave.

    Args:
        propagated: propagated labels, background first.
        given: labels of the given objects.
        channels: channels of the given objects in `propagated`.
    """
    merged = propagated.clone()
    merged[list(channels)] = 0
    left = (1 - given.sum(0)).clamp(min=0)
    rest = merged.sum(0)
    merged = torch.where(rest > 0, merged * (left / rest.clamp(min=1e-12)), merged)
    merged[0] += torch.where(rest > 0, torch.zeros_like(left), left)
    merged[list(channels)] = given
    return merged


def reweighted(
    labels: Float[Tensor, "channels rows columns"], weights: Float[Tensor, "channels ..."]
) -> Float[Tensor, "channels rows columns"]:
    """Labels multiplied by `weights`, which are broadcast over rows and columns, and normalised over channels."""
    weighted = labels * weights
    return weighted / weighted.sum(0, keepdim=True).clamp(min=1e-12)


def hardened(labels: Float[Tensor, "channels rows columns"]) -> Float[Tensor, "channels rows columns"]:
    """One-hot labels of the most probable channel; the first of equal ones."""
    return F.one_hot(labels.argmax(0), len(labels)).permute(2, 0, 1).to(labels)


def downsampling(fine: int, coarse: int) -> int:
    """Number of fine tokens that a coarse token covers along an axis, given the lengths of both grids.

    Layers halve the grid and round up, so that the ratio of the lengths lies below a power of two.
    """
    return 2 ** math.ceil(math.log2(fine / coarse)) if coarse < fine else 1


def pooled(labels: Float[Tensor, "channels rows columns"], grid: tuple[int, int]) -> Tensor:
    """Labels averaged to a coarser grid, `(channels, *grid)`.

    Downsampling layers round up, so that the last coarse row and column may reach past the fine grid; they are the mean
    of the tokens that they cover.
    """
    factor = downsampling(labels.shape[-2], grid[0])
    if factor == 1:
        return labels
    return F.avg_pool2d(labels[None], factor, ceil_mode=True, count_include_pad=False)[0]


def unpooled(
    coarse: Float[Tensor, "batch channels coarse_rows coarse_columns"], grid: tuple[int, int]
) -> Float[Tensor, "batch channels rows columns"]:
    """Interpolates from a coarser grid to `grid` bilinearly; unchanged if the grids are equal."""
    factor = downsampling(grid[0], coarse.shape[-2])
    if factor > 1:
        coarse = F.interpolate(coarse, scale_factor=factor, mode="bilinear", align_corners=False)
    return coarse[..., : grid[0], : grid[1]]


def finest(grids: Iterable[Sequence[int]]) -> tuple[int, int]:
    """The largest of several grids, given as rows and columns."""
    rows, columns = max(grids, key=math.prod)
    return rows, columns
