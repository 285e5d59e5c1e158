"""Which of several proposed masks is taken, if any: what agrees with the propagated one and has not jumped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from drift.errors import OptionError
from drift.metrics.functional import jaccard
from drift.options import non_negative, share

__all__ = ["OUTCOMES", "Gates", "chosen"]

OUTCOMES = ("refined", "disagrees", "jumps", "lost")
"""What became of an object: its mask was taken, or not, as it has too little in common with the propagated one
or is too much larger or smaller; or there was no propagated mask to refine."""


@dataclass(frozen=True)
class Gates:
    """Past which a proposed mask is taken.

    Attributes:
        min_iou: with the propagated mask, from 0 to 1.
        max_area_change: how many times as large, or as small, it may be; 1 or more.
        score_weight: how much of a proposal's worth is the score that its maker gives it, from 0 to 1; the rest
            is its IoU with the propagated mask.

    Raises:
        OptionError: a value is out of range.
    """

    min_iou: float = 0.5
    max_area_change: float = 2.0
    score_weight: float = 0.5

    def __post_init__(self) -> None:
        share("min_iou", self.min_iou)
        share("score_weight", self.score_weight)
        non_negative("max_area_change", self.max_area_change)
        if self.max_area_change < 1:
            raise OptionError("max_area_change", self.max_area_change, "a number, 1 or more")


def chosen(
    proposals: Bool[Tensor, "objects proposals rows columns"],
    scores: Float[Tensor, "objects proposals"],
    propagated: Bool[Tensor, "objects rows columns"],
    gates: Gates,
) -> tuple[list[int], list[str]]:
    """Of each object's proposals the worthiest, and what becomes of it (one of `OUTCOMES`).

    Args:
        proposals: masks.
        scores: what their maker thinks of each, in [0, 1].
        propagated: the masks that they are to sharpen.
        gates: see `Gates`.
    """
    ious = jaccard(proposals, propagated[:, None].expand(proposals.shape))
    worth = (1 - gates.score_weight) * ious + gates.score_weight * scores.to(ious).clamp(0, 1)
    places = worth.argmax(1)
    rows = torch.arange(len(places), device=places.device)
    change = proposals[rows, places].sum((-2, -1)) / propagated.sum((-2, -1)).clamp(min=1)
    outcomes = [
        _outcome(float(iou), float(factor), gates)
        for iou, factor in zip(ious[rows, places], change, strict=True)
    ]
    return places.tolist(), outcomes


def _outcome(iou: float, change: float, gates: Gates) -> str:
    if not 1 / gates.max_area_change <= change <= gates.max_area_change:
        return "jumps"
    return "refined" if iou >= gates.min_iou and iou > 0 else "disagrees"
