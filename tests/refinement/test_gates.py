"""Gates accept masks that agree with the propagated mask, and reject others."""

from __future__ import annotations

import pytest
import torch

from drift.errors import OptionError
from drift.refinement.gates import Gates, select


def square(top: int, left: int, side: int = 10) -> torch.Tensor:
    mask = torch.zeros(40, 60, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def selected(*proposals: torch.Tensor, scores: list[float] | None = None, **gates: float) -> tuple[int, str]:
    """Index of the best proposal for a square at 10, 10, and its outcome."""
    best, outcomes = select(
        torch.stack(proposals)[None],
        torch.tensor([scores or [0.0] * len(proposals)]),
        square(10, 10)[None],
        Gates(**gates),
    )
    return best[0], outcomes[0]


def test_the_proposal_with_the_highest_iou_is_selected():
    assert selected(square(20, 10), square(11, 10), square(14, 10)) == (1, "refined")


def test_the_score_decides_between_proposals_of_equal_iou():
    two = (square(11, 10), square(10, 11))
    assert selected(*two, scores=[0.2, 0.9])[0] == 1
    assert selected(*two, scores=[0.9, 0.2])[0] == 0
    assert selected(square(10, 10), square(13, 10), scores=[0.2, 0.9], score_weight=0.0)[0] == 0


@pytest.mark.parametrize(
    ("proposal", "outcome"),
    [
        (torch.ones(40, 60, dtype=torch.bool), "jumps"),
        (torch.zeros(40, 60, dtype=torch.bool), "jumps"),
        (square(10, 10, 15), "jumps"),
        (square(15, 12), "disagrees"),
        (square(30, 45), "disagrees"),
        (square(12, 11), "refined"),
    ],
)
def test_masks_of_low_iou_or_another_area_are_rejected(proposal, outcome):
    assert selected(proposal, min_iou=0.5, max_area_change=2.0)[1] == outcome


def test_open_gates_accept_any_mask_that_intersects_the_object():
    assert selected(square(15, 15, 30), min_iou=0.0, max_area_change=100.0)[1] == "refined"
    assert selected(square(30, 45), min_iou=0.0, max_area_change=100.0)[1] == "disagrees"


@pytest.mark.parametrize("option", [{"min_iou": 1.5}, {"max_area_change": 0.5}, {"score_weight": -0.1}])
def test_options_out_of_range_are_named(option):
    with pytest.raises(OptionError, match=next(iter(option))):
        Gates(**option)
