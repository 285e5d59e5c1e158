"""J (region), F (boundary) and their statistics, as DAVIS defines them; pure functions.

J is intersection over union. F is the harmonic mean of the precision and the recall of one-pixel
boundaries, matched within a small disk. Both compare whole counts of pixels, which are also offered
(`region_counts`, `boundary_counts`): counts are exact, whatever the device, and merge without rounding.

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from drift.options import non_negative

__all__ = [
    "Statistics",
    "boundary_counts",
    "boundary_f",
    "boundary_f_of_counts",
    "decay",
    "jaccard",
    "jaccard_of_counts",
    "mask_boundary",
    "recall",
    "region_counts",
    "statistics",
]


@dataclass(frozen=True)
class Statistics:
    """What DAVIS reports of one object's values over time.

    Attributes:
        mean: the mean over frames.
        recall: the share of frames above 0.5.
        decay: the mean of the first quarter of the frames less that of the last; above 0 where it got worse.
    """

    mean: float
    recall: float
    decay: float


def jaccard(
    prediction: Bool[Tensor, "*batch height width"], truth: Bool[Tensor, "*batch height width"]
) -> Float[Tensor, "*batch"]:
    """Intersection over union of two masks, in [0, 1]; 1 where both are empty.

    Args:
        prediction: True on the object.
        truth: likewise, of the same shape.

    Returns:
        One value per mask: float64 (float32 on devices that lack it).

    Raises:
        TypeError: a mask is not boolean.
        ValueError: the shapes differ, or a mask has no pixel.
    """
    return jaccard_of_counts(region_counts(prediction, truth))


def region_counts(
    prediction: Bool[Tensor, "*batch height width"], truth: Bool[Tensor, "*batch height width"]
) -> Int[Tensor, "*batch 2"]:
    """Pixels in the intersection and in the union of two masks. Arguments and errors as for `jaccard`."""
    _check_masks(prediction, truth)
    return torch.stack([_count(prediction & truth), _count(prediction | truth)], dim=-1)


def jaccard_of_counts(counts: Int[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
    """J from the counts that `region_counts` gives."""
    intersection, union = counts.unbind(-1)
    return _ratio(intersection, union)


def mask_boundary(mask: Bool[Tensor, "*batch height width"]) -> Bool[Tensor, "*batch height width"]:
    """The one-pixel boundary between a mask and its surroundings.

    A pixel is on it where the mask differs at its right, lower or lower-right neighbour. In the last row
    only the right neighbour counts, in the last column only the lower one; the corner is never on it.
    What lies outside the frame is no surroundings: a mask that fills the frame has no boundary.
    """
    boundary = torch.zeros_like(mask)
    inner = mask[..., :-1, :-1]
    right, lower, lower_right = mask[..., :-1, 1:], mask[..., 1:, :-1], mask[..., 1:, 1:]
    boundary[..., :-1, :-1] = (inner ^ right) | (inner ^ lower) | (inner ^ lower_right)
    boundary[..., -1, :-1] = mask[..., -1, :-1] ^ mask[..., -1, 1:]
    boundary[..., :-1, -1] = mask[..., :-1, -1] ^ mask[..., 1:, -1]
    return boundary


def boundary_f(
    prediction: Bool[Tensor, "*batch height width"],
    truth: Bool[Tensor, "*batch height width"],
    tolerance: float = 0.008,
) -> Float[Tensor, "*batch"]:
    """The boundary measure F, in [0, 1]; 1 where neither mask has a boundary, 0 where only one has.

    Args:
        prediction: True on the object.
        truth: likewise, of the same shape.
        tolerance: how far apart matching boundary pixels may lie. Below 1 it is a share of the frame's
            diagonal, rounded up to whole pixels; from 1 on it is in pixels.

    Returns:
        One value per mask: float64 (float32 on devices that lack it).

    Raises:
        OptionError: the tolerance is negative.
        TypeError: a mask is not boolean.
        ValueError: the shapes differ, or a mask has no pixel.
    """
    return boundary_f_of_counts(boundary_counts(prediction, truth, tolerance))


def boundary_counts(
    prediction: Bool[Tensor, "*batch height width"],
    truth: Bool[Tensor, "*batch height width"],
    tolerance: float = 0.008,
) -> Int[Tensor, "*batch 4"]:
    """Boundary pixels: matched ones and all of the prediction, then matched ones and all of the truth.

    Arguments and errors as for `boundary_f`.
    """
    non_negative("tolerance", tolerance)
    _check_masks(prediction, truth)
    height, width = truth.shape[-2:]
    radius = tolerance if tolerance >= 1 else float(math.ceil(tolerance * math.sqrt(height**2 + width**2)))
    predicted, true = _crop(mask_boundary(prediction), mask_boundary(truth))
    near_predicted, near_true = _dilate(torch.stack([predicted, true]), radius)
    parts = (predicted & near_true, predicted, true & near_predicted, true)
    return torch.stack([_count(part) for part in parts], dim=-1)


def boundary_f_of_counts(counts: Int[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """F from the counts that `boundary_counts` gives."""
    predicted_matched, predicted, true_matched, true = counts.unbind(-1)
    # DAVIS' conventions for empty boundaries all follow from "the share of nothing is 1".
    precision, recalled = _ratio(predicted_matched, predicted), _ratio(true_matched, true)
    total = precision + recalled
    return torch.where(total > 0, 2 * precision * recalled / total, torch.zeros_like(total))


def recall(values: Float[Tensor, "*batch frames"], threshold: float = 0.5) -> Float[Tensor, "*batch"]:
    """The share of frames whose value is above `threshold`; a NaN is not. NaN for no frames."""
    return (values > threshold).to(values.dtype).mean(-1)


def decay(values: Float[Tensor, "*batch frames"]) -> Float[Tensor, "*batch"]:
    """The mean over the first quarter of the frames less that over the last; NaNs are left out.

    The quarters are those of DAVIS, which share their border frames. (The official code keeps frame
    numbers in 8 bits and so is wrong from 257 frames on; here clips may have any length.) NaN for no frames.
    """
    frames = values.shape[-1]
    first, last = values[..., : _quarter(1, frames) + 1], values[..., max(_quarter(3, frames), 0) :]
    return first.nanmean(-1) - last.nanmean(-1)


def statistics(values: Float[Tensor, " frames"]) -> Statistics:
    """Mean, recall and decay of one object's values by frame; NaNs are left out of the means."""
    return Statistics(mean=values.nanmean().item(), recall=recall(values).item(), decay=decay(values).item())


def _check_masks(prediction: Tensor, truth: Tensor) -> None:
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if mask.dtype != torch.bool:
            raise TypeError(f"{name} must be a boolean mask, not {mask.dtype}")
    if prediction.shape != truth.shape or truth.ndim < 2 or 0 in truth.shape[-2:]:
        shapes = f"{tuple(prediction.shape)} and {tuple(truth.shape)}"
        raise ValueError(f"prediction and truth must be (..., height, width) of one shape, not {shapes}")


def _count(mask: Tensor) -> Tensor:
    return mask.sum(dim=(-2, -1))


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """`part / whole`, 1 where `whole` is 0."""
    real = torch.float32 if whole.device.type == "mps" else torch.float64
    return torch.where(
        whole > 0, part.to(real) / whole.clamp(min=1), torch.ones((), dtype=real, device=whole.device)
    )


def _quarter(index: int, frames: int) -> int:
    """The frame at which DAVIS' bin `index` of four begins; halves are rounded up, hence the small addend."""
    return round(1 + index * (frames - 1) / 4 + 1e-10) - 1


def _crop(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both boundaries on the smallest box that holds them: no pixel outside it can match or be matched."""
    touched = first | second
    if not touched.any():
        return first[..., :0, :0], second[..., :0, :0]
    touched = touched.flatten(0, -3) if touched.ndim > 2 else touched[None]
    # As bytes: their maximum is several times faster than `any` of booleans along one dimension.
    any_touched = touched.view(torch.uint8).amax(0)
    rows, columns = any_touched.amax(1).nonzero(), any_touched.amax(0).nonzero()
    box = (..., slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    return first[box], second[box]


def _dilate(mask: Tensor, radius: float) -> Tensor:
    """True where a True pixel lies within the disk `x² + y² <= radius²`; exact.

    The disk is a union of horizontal runs, one per row. Each run's dilation grows out of the next
    narrower one's, so that the whole costs about four passes of OR per unit of radius.
    """
    reach = math.floor(radius)
    half_widths = [math.isqrt(math.floor(radius * radius) - y * y) for y in range(reach + 1)]
    dilated = torch.zeros_like(mask)
    run, half_width = mask, 0
    for y in range(reach, -1, -1):  # the disk's rows from its narrow ends to its middle
        while half_width < half_widths[y]:
            # What is shifted out of the frame is lost; a longer step would need it to fill the gap.
            step = min(half_width + 1, half_widths[y] - half_width)
            run, half_width = _spread(run, step), half_width + step
        if y == 0:
            dilated |= run
        else:  # shifts beyond the frame are of no rows
            dilated[..., y:, :] |= run[..., :-y, :]
            dilated[..., :-y, :] |= run[..., y:, :]
    return dilated


def _spread(mask: Tensor, step: int) -> Tensor:
    """The mask together with itself shifted by `step` columns to either side."""
    spread = mask.clone()
    spread[..., step:] |= mask[..., :-step]
    spread[..., :-step] |= mask[..., step:]
    return spread
