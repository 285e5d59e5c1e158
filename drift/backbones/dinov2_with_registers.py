"""DINOv2 with register tokens (arXiv 2309.16588)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import Dinov2WithRegistersModel

from drift.backbones.image_encoders import ImageEncoder

__all__ = ["DINOv2WithRegisters", "from_checkpoint"]


class DINOv2WithRegisters(ImageEncoder):
    """See `ImageEncoder`. The model interpolates its position embeddings to the frames' size."""

    architecture = Dinov2WithRegistersModel


def from_checkpoint(
    path: Path, *, source: str, dtype: torch.dtype, layers: Sequence[str] | None = None
) -> DINOv2WithRegisters:
    """See `ImageEncoder.from_checkpoint`."""
    return DINOv2WithRegisters.from_checkpoint(path, source=source, dtype=dtype, layers=layers)
