"""The vision transformers of DINOv3 (arXiv 2508.10104)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import DINOv3ViTModel

from drift.backbones.image_encoders import ImageEncoder

__all__ = ["DINOv3", "from_checkpoint"]

CHECKPOINTS = {"model_type dinov3_vit": "dinov3"}


class DINOv3(ImageEncoder):
    """See `ImageEncoder`. Queries and keys include the rotary position embedding."""

    architecture = DINOv3ViTModel
    layer_list = "model.layer"


def from_checkpoint(
    path: Path, *, source: str, dtype: torch.dtype, layers: Sequence[str] | None = None
) -> DINOv3:
    """See `ImageEncoder.from_checkpoint`."""
    return DINOv3.from_checkpoint(path, source=source, dtype=dtype, layers=layers)
