"""The gates take what agrees, and nothing that has jumped."""

from __future__ import annotations

import pytest
import torch

from drift.errors import OptionError
from drift.refinement.gates import Gates, chosen


def square(top: int, left: int, side: int = 10) -> torch.Tensor:
    mask = torch.zeros(40, 60, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def judged(*proposals: torch.Tensor, scores: list[float] | None = None, **gates: float) -> tuple[int, str]:
    """Of proposals for a square at 10, 10: the place of the chosen one, and what becomes of it."""
    places, outcomes = chosen(
        torch.stack(proposals)[None],
        torch.tensor([scores or [0.0] * len(proposals)]),
        square(10, 10)[None],
        Gates(**gates),
    )
    return places[0], outcomes[0]


def test_the_proposal_that_agrees_most_is_taken():
    assert judged(square(20, 10), square(11, 10), square(14, 10)) == (1, "refined")


def test_the_makers_score_decides_between_proposals_that_agree_alike():
    two = (square(11, 10), square(10, 11))
    assert judged(*two, scores=[0.2, 0.9])[0] == 1
    assert judged(*two, scores=[0.9, 0.2])[0] == 0
    assert judged(square(10, 10), square(13, 10), scores=[0.2, 0.9], score_weight=0.0)[0] == 0


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
def test_what_jumps_or_disagrees_is_refused(proposal, outcome):
    assert judged(proposal, min_iou=0.5, max_area_change=2.0)[1] == outcome


def test_open_gates_take_whatever_touches_the_object():
    assert judged(square(15, 15, 30), min_iou=0.0, max_area_change=100.0)[1] == "refined"
    assert judged(square(30, 45), min_iou=0.0, max_area_change=100.0)[1] == "disagrees"


@pytest.mark.parametrize("option", [{"min_iou": 1.5}, {"max_area_change": 0.5}, {"score_weight": -0.1}])
def test_options_out_of_range_are_named(option):
    with pytest.raises(OptionError, match=next(iter(option))):
        Gates(**option)
