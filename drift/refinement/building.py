"""Refinements as configurations name them."""

from __future__ import annotations

from drift.refinement.checkpoints import load_sam
from drift.refinement.gates import Gates
from drift.refinement.grabcut import GrabCutProposer
from drift.refinement.prompts import PromptSettings
from drift.refinement.refinement import Refinement
from drift.refinement.sam import SamProposer

__all__ = ["grabcut_refinement", "no_refinement", "sam_refinement"]


def no_refinement() -> None:
    """Leaves masks as they were propagated."""


def sam_refinement(
    *,
    checkpoint: str,
    size: str | None = None,
    download: bool = False,
    precision: str = "auto",
    box: bool = True,
    margin: float = 0.05,
    positive_points: int = 4,
    negative_points: int = 4,
    mask: bool = True,
    mask_limit: float = 8.0,
    min_iou: float = 0.5,
    max_area_change: float = 2.0,
    score_weight: float = 0.5,
    trust: float = 1.0,
    feedback: bool = False,
    seed: int = 0,
) -> Refinement:
    """Masks sharpened by Segment Anything (design 2.7).

    Args:
        checkpoint, size, download: see `load_sam`.
        precision: see `SamProposer`.
        box, margin, positive_points, negative_points, mask, mask_limit, seed: see `PromptSettings`.
        min_iou, max_area_change, score_weight: see `Gates`.
        trust, feedback: see `Refinement`.

    Raises:
        InputError: the weights cannot be used.
        OptionError: an option is not allowed.
    """
    prompts = PromptSettings(
        box=box,
        margin=margin,
        positive_points=positive_points,
        negative_points=negative_points,
        mask=mask,
        mask_limit=mask_limit,
        seed=seed,
    )
    gates = Gates(min_iou=min_iou, max_area_change=max_area_change, score_weight=score_weight)
    sam = load_sam(checkpoint, size=size, download=download)
    return Refinement(
        SamProposer(sam, prompts=prompts, precision=precision), gates=gates, trust=trust, feedback=feedback
    )


def grabcut_refinement(
    *,
    side: int = 428,
    iterations: int = 2,
    min_iou: float = 0.5,
    max_area_change: float = 2.0,
    trust: float = 1.0,
    feedback: bool = False,
) -> Refinement:
    """Masks sharpened by GrabCut.

    Args:
        side, iterations: see `GrabCutProposer`.
        min_iou, max_area_change: see `Gates`.
        trust, feedback: see `Refinement`.

    Raises:
        OptionError: an option is not allowed.
    """
    gates = Gates(min_iou=min_iou, max_area_change=max_area_change)
    return Refinement(
        GrabCutProposer(side=side, iterations=iterations), gates=gates, trust=trust, feedback=feedback
    )
