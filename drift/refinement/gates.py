"""Selects a proposed mask for each object, or rejects them all: by IoU with the propagated mask and change of area."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from drift.configuration import groups
from drift.configuration.checking import check_fields
from drift.metrics.functional import jaccard

__all__ = ["OUTCOMES", "Gates", "select"]

OUTCOMES = ("refined", "disagrees", "jumps", "lost")
"""Outcome of the refinement of an object: the proposed mask is accepted; rejected by `min_iou`; rejected by
`max_area_change`; or the propagated mask is empty and nothing is proposed."""


@dataclass(frozen=True)
class Gates:
    """Thresholds at which a proposed mask is accepted.

    Attributes:
        min_iou: minimum IoU with the propagated mask, in [0, 1].
        max_area_change: maximum ratio between the areas of the proposed and the propagated mask, in either
            direction; at least 1.
        score_weight: weight of the proposer's own score in the choice between proposals, in [0, 1]; the IoU with
            the propagated mask has the rest.

    Raises:
        OptionError: a value is out of range.
    """

    min_iou: float = 0.5
    max_area_change: float = 2.0
    score_weight: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self, groups.Prompted)


def select(
    proposals: Bool[Tensor, "objects proposals rows columns"],
    scores: Float[Tensor, "objects proposals"],
    propagated: Bool[Tensor, "objects rows columns"],
    gates: Gates,
) -> tuple[list[int], list[str]]:
    """The best proposal for each object and its outcome.

    Args:
        proposals: masks.
        scores: the proposer's scores, in [0, 1].
        propagated: the masks to refine, on the device of `proposals`.
        gates: see `Gates`.

    Returns:
        The index of the proposal with the highest weighted sum of IoU and score, and one of `OUTCOMES`, per object.
    """
    ious = jaccard(proposals, propagated[:, None].expand(proposals.shape))
    ranking = (1 - gates.score_weight) * ious + gates.score_weight * scores.to(ious).clamp(0, 1)
    best = ranking.argmax(1)
    rows = torch.arange(len(best), device=best.device)
    change = proposals[rows, best].sum((-2, -1)) / propagated.sum((-2, -1)).clamp(min=1)
    outcomes = [
        _outcome(iou, ratio, gates)
        for iou, ratio in zip(ious[rows, best].tolist(), change.tolist(), strict=True)
    ]
    return best.tolist(), outcomes


def _outcome(iou: float, area_change: float, gates: Gates) -> str:
    if not 1 / gates.max_area_change <= area_change <= gates.max_area_change:
        return "jumps"
    return "refined" if iou >= gates.min_iou and iou > 0 else "disagrees"
