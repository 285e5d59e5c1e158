"""DAVIS region similarity J, boundary accuracy F and their statistics, as pure functions.

J is the intersection over union of two masks. F is the harmonic mean of boundary precision and recall,
where boundary pixels match within a small disk. `region_counts` and `boundary_counts` return the integer
pixel counts behind both, which are exact on every device and can be summed without rounding.

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
    """DAVIS statistics of J or F over the frames of one object.

    Attributes:
        mean: mean over frames, in [0, 1].
        recall: fraction of frames with a value above 0.5.
        decay: mean over the first quarter of the frames minus mean over the last; positive if quality drops.
    """

    mean: float
    recall: float
    decay: float


def jaccard(
    prediction: Bool[Tensor, "*batch height width"], truth: Bool[Tensor, "*batch height width"]
) -> Float[Tensor, "*batch"]:
    """Intersection over union (J) of two masks; 1 if both are empty.

    Args:
        prediction: predicted mask, True on the object.
        truth: ground-truth mask of the same shape.

    Returns:
        J in [0, 1], one value per mask; float64 (float32 on MPS).

    Raises:
        TypeError: a mask is not boolean.
        ValueError: the shapes differ, or the masks have no pixels.
    """
    return jaccard_of_counts(region_counts(prediction, truth))


def region_counts(
    prediction: Bool[Tensor, "*batch height width"], truth: Bool[Tensor, "*batch height width"]
) -> Int[Tensor, "*batch 2"]:
    """Pixel counts of the intersection and the union of two masks. Arguments and errors as for `jaccard`."""
    _check_masks(prediction, truth)
    return torch.stack([_count(prediction & truth), _count(prediction | truth)], dim=-1)


def jaccard_of_counts(counts: Int[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
    """J from the counts returned by `region_counts`."""
    intersection, union = counts.unbind(-1)
    return _ratio(intersection, union)


def mask_boundary(mask: Bool[Tensor, "*batch height width"]) -> Bool[Tensor, "*batch height width"]:
    """One-pixel boundary of a mask.

    A pixel is on the boundary if its value differs from its right, lower or lower-right neighbour. Pixels in
    the last row are compared only with their right neighbour, pixels in the last column only with their lower
    one. The frame border is not a boundary: a mask that fills the frame has none.
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
    """Boundary F-measure of two masks; 1 if neither mask has a boundary, 0 if only one has.

    Args:
        prediction: predicted mask, True on the object.
        truth: ground-truth mask of the same shape.
        tolerance: maximum distance between matching boundary pixels. Values below 1 are a fraction of the
            frame diagonal, rounded up to whole pixels; values of 1 or more are in pixels.

    Returns:
        F in [0, 1], one value per mask; float64 (float32 on MPS).

    Raises:
        OptionError: the tolerance is negative.
        TypeError: a mask is not boolean.
        ValueError: the shapes differ, or the masks have no pixels.
    """
    return boundary_f_of_counts(boundary_counts(prediction, truth, tolerance))


def boundary_counts(
    prediction: Bool[Tensor, "*batch height width"],
    truth: Bool[Tensor, "*batch height width"],
    tolerance: float = 0.008,
) -> Int[Tensor, "*batch 4"]:
    """Boundary pixel counts: prediction matched, prediction total, truth matched, truth total.

    Arguments and errors as for `boundary_f`.
    """
    non_negative("tolerance", tolerance)
    _check_masks(prediction, truth)
    height, width = truth.shape[-2:]
    radius = tolerance if tolerance >= 1 else float(math.ceil(tolerance * math.sqrt(height**2 + width**2)))
    predicted, true = _crop(mask_boundary(prediction), mask_boundary(truth))
    near_predicted, near_true = _dilate(torch.stack([predicted, true]), radius)
    masks = (predicted & near_true, predicted, true & near_predicted, true)
    return torch.stack([_count(mask) for mask in masks], dim=-1)


def boundary_f_of_counts(counts: Int[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """F from the counts returned by `boundary_counts`."""
    predicted_matched, predicted, true_matched, true = counts.unbind(-1)
    # Defining 0 / 0 as 1 reproduces all of DAVIS' conventions for empty boundaries.
    boundary_precision, boundary_recall = _ratio(predicted_matched, predicted), _ratio(true_matched, true)
    total = boundary_precision + boundary_recall
    return torch.where(total > 0, 2 * boundary_precision * boundary_recall / total, torch.zeros_like(total))


def recall(values: Float[Tensor, "*batch frames"], threshold: float = 0.5) -> Float[Tensor, "*batch"]:
    """Fraction of frames with a value above `threshold`; NaN counts as below. NaN if there are no frames."""
    return (values > threshold).to(values.dtype).mean(-1)


def decay(values: Float[Tensor, "*batch frames"]) -> Float[Tensor, "*batch"]:
    """Mean over the first quarter of the frames minus mean over the last, ignoring NaN.

    The quarters are those of the official DAVIS code; adjacent quarters share a frame. (The official code
    stores frame indices in 8 bits and is wrong above 256 frames; this function is not limited.) NaN if there
    are no frames.
    """
    frames = values.shape[-1]
    first, last = values[..., : _quarter(1, frames) + 1], values[..., max(_quarter(3, frames), 0) :]
    return first.nanmean(-1) - last.nanmean(-1)


def statistics(values: Float[Tensor, " frames"]) -> Statistics:
    """Mean, recall and decay of one object's per-frame values; means ignore NaN."""
    return Statistics(mean=values.nanmean().item(), recall=recall(values).item(), decay=decay(values).item())


def _check_masks(prediction: Tensor, truth: Tensor) -> None:
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if mask.dtype != torch.bool:
            raise TypeError(f"{name} must be a boolean mask, not {mask.dtype}")
    if prediction.shape != truth.shape or truth.ndim < 2 or 0 in truth.shape[-2:]:
        shapes = f"{tuple(prediction.shape)} and {tuple(truth.shape)}"
        raise ValueError(f"prediction and truth must be (..., height, width) of the same shape, not {shapes}")


def _count(mask: Tensor) -> Tensor:
    return mask.sum(dim=(-2, -1))


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """`part / whole`, 1 where `whole` is 0."""
    dtype = torch.float32 if whole.device.type == "mps" else torch.float64
    return torch.where(whole > 0, part.to(dtype) / whole.clamp(min=1), 1.0)


def _quarter(index: int, frames: int) -> int:
    """First frame of DAVIS' bin `index` of four; the small constant makes `round` round halves up."""
    return round(1 + index * (frames - 1) / 4 + 1e-10) - 1


def _crop(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Crops both boundaries to the smallest box around their union; the pixels outside cannot match."""
    union = first | second
    if not union.any():
        return first[..., :0, :0], second[..., :0, :0]
    union = union.flatten(0, -3) if union.ndim > 2 else union[None]
    # `amax` of bytes is several times faster than `any` of booleans along one dimension.
    union = union.view(torch.uint8).amax(0)
    rows, columns = union.amax(1).nonzero(), union.amax(0).nonzero()
    box = (..., slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    return first[box], second[box]


def _dilate(mask: Tensor, radius: float) -> Tensor:
    """Exact dilation by the disk `x² + y² <= radius²`.

    The disk is a union of horizontal runs, one per row. The dilation by each run extends that by the next
    narrower run, so the total cost is about four OR passes per unit of radius.
    """
    reach = math.floor(radius)
    half_widths = [math.isqrt(math.floor(radius * radius) - y * y) for y in range(reach + 1)]
    dilated = torch.zeros_like(mask)
    run, half_width = mask, 0
    for y in range(reach, -1, -1):  # from the narrow ends of the disk to its middle
        while half_width < half_widths[y]:
            # Runs are clipped at the frame border; a step above half_width + 1 could leave a gap there.
            step = min(half_width + 1, half_widths[y] - half_width)
            run, half_width = _spread(run, step), half_width + step
        if y == 0:
            dilated |= run
        else:  # slices are empty for shifts beyond the frame
            dilated[..., y:, :] |= run[..., :-y, :]
            dilated[..., :-y, :] |= run[..., y:, :]
    return dilated


def _spread(mask: Tensor, step: int) -> Tensor:
    """Union of the mask and its copies shifted by `step` columns to the left and to the right."""
    spread = mask.clone()
    spread[..., step:] |= mask[..., :-step]
    spread[..., :-step] |= mask[..., step:]
    return spread
