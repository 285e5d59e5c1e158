"""DINOv2 (arXiv 2304.07193), without registers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import Dinov2Model

from drift.backbones.image_encoders import ImageEncoder

__all__ = ["DINOv2", "from_checkpoint"]


class DINOv2(ImageEncoder):
    """See `ImageEncoder`. The model interpolates its position embeddings to the frames' size."""

    architecture = Dinov2Model


def from_checkpoint(
    path: Path, *, source: str, dtype: torch.dtype, layers: Sequence[str] | None = None
) -> DINOv2:
    """See `ImageEncoder.from_checkpoint`."""
    return DINOv2.from_checkpoint(path, source=source, dtype=dtype, layers=layers)
