"""Functions that build refiners: the `_target_` of each file in `configs/refinement/`."""

from __future__ import annotations

import torch

from drift.precision import resolved_precision
from drift.refinement.gates import Gates
from drift.refinement.grabcut import GrabCutProposer
from drift.refinement.refinement import Refinement
from drift.refinement.sam import SamProposer
from drift.refinement.sam_checkpoints import load_sam
from drift.refinement.sam_prompts import PromptSettings
from drift.refinement.tiny_proposer import TinySamProposer
from drift.refinement.tiny_sam import TinySam
from drift.refinement.transformers_sam import FAMILIES, TransformersSamProposer, load_transformers_sam

__all__ = ["grabcut_refiner", "load_refiner", "load_transformers_refiner", "no_refiner"]


def no_refiner(*, device: torch.device | str = "cpu") -> None:
    """No refinement: masks stay as propagated. `device` is ignored."""


def load_refiner(
    checkpoint: str = "embedded:sam_tiny",
    *,
    size: str | None = None,
    download: bool = False,
    device: torch.device | str = "cpu",
    precision: str = "auto",
    box: bool = True,
    margin: float = 0.05,
    positive_points: int = 0,
    negative_points: int = 0,
    mask: bool = True,
    mask_limit: float = 8.0,
    min_iou: float = 0.3,
    max_area_change: float = 3.0,
    score_weight: float = 0.0,
    trust: float = 0.5,
    feedback: bool = False,
    seed: int = 0,
) -> Refinement:
    """Refinement by Segment Anything ("SAM-guided mask refinement" in `docs/method.md`, arXiv 2511.19936).

    The defaults are those of `configs/refinement/sam_tiny.yaml`. For the official models, `sam.yaml` sets
    `positive_points=4`, `negative_points=4`, `min_iou=0.5`, `max_area_change=2.0`, `score_weight=0.5` and
    `trust=1.0`.

    Args:
        checkpoint, size, download: see `load_sam`.
        device, precision: see `SamProposer` and, for the embedded model, `TinySamProposer`.
        box, margin, positive_points, negative_points, mask, mask_limit, seed: see `PromptSettings`.
        min_iou, max_area_change, score_weight: see `Gates`.
        trust, feedback: see `Refinement`.

    Raises:
        InputError: the checkpoint is missing, corrupt, or of another layout.
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
    proposer_of = TinySamProposer if isinstance(sam, TinySam) else SamProposer
    proposer = proposer_of(sam, prompts=prompts, device=device, precision=precision)
    return Refinement(proposer, gates=gates, trust=trust, feedback=feedback)


def load_transformers_refiner(
    family: str,
    checkpoint: str,
    *,
    revision: str | None = None,
    device: torch.device | str = "cpu",
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
    """Refinement by SAM-HQ, SAM 2 or EdgeTAM. The defaults are those of `configs/refinement/sam.yaml`.

    Args:
        family, checkpoint, revision: see `load_transformers_sam`.
        device: where the model computes.
        precision: of the image encoder, one of `drift.precision.PRECISIONS`.
        box, margin, positive_points, negative_points, mask, mask_limit, seed: see `PromptSettings`.
        min_iou, max_area_change, score_weight: see `Gates`.
        trust, feedback: see `Refinement`.

    Raises:
        InputError: the checkpoint is missing, incomplete, corrupt or of another family.
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
    dtype = resolved_precision(precision, device)
    model = load_transformers_sam(family, checkpoint, precision=dtype, revision=revision)
    keeps_aspect = FAMILIES[family].keeps_aspect
    proposer = TransformersSamProposer(model, keeps_aspect=keeps_aspect, prompts=prompts, device=device)
    return Refinement(proposer, gates=gates, trust=trust, feedback=feedback)


def grabcut_refiner(
    *,
    device: torch.device | str = "cpu",
    side: int = 428,
    iterations: int = 2,
    min_iou: float = 0.5,
    max_area_change: float = 2.0,
    trust: float = 0.3,
    feedback: bool = False,
) -> Refinement:
    """Refinement by GrabCut, which needs no weights. The defaults are those of `configs/refinement/grabcut.yaml`.

    Args:
        device: ignored, as OpenCV computes on the CPU; masks are returned on the device of the labels.
        side, iterations: see `GrabCutProposer`.
        min_iou, max_area_change: see `Gates`.
        trust, feedback: see `Refinement`.

    Raises:
        OptionError: an option is not allowed.
    """
    gates = Gates(min_iou=min_iou, max_area_change=max_area_change)
    proposer = GrabCutProposer(side=side, iterations=iterations)
    return Refinement(proposer, gates=gates, trust=trust, feedback=feedback)
