"""Sharper masks from propagated ones, by Segment Anything or by GrabCut."""

from drift.refinement.building import grabcut_refinement, no_refinement, sam_refinement

__all__ = ["grabcut_refinement", "no_refinement", "sam_refinement"]
