"""SigLIP (arXiv 2303.15343), and the checkpoints of SigLIP 2 (arXiv 2502.14786) for one image size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import SiglipVisionModel

from drift.backbones.image_encoders import ImageEncoder

__all__ = ["SigLIP", "from_checkpoint"]

CHECKPOINTS = {"model_type siglip": "siglip2"}


class SigLIP(ImageEncoder):
    """See `ImageEncoder`. The vision model alone; it interpolates its position embeddings to the frames' size."""

    architecture = SiglipVisionModel
    layer_list = "encoder.layers"
    attention = "self_attn"
    mean = std = (0.5, 0.5, 0.5)
    unused = ("text_model.", "logit_")

    def _encode(self, pixels: Tensor) -> None:
        self.model(pixels, interpolate_pos_encoding=True)


def from_checkpoint(
    path: Path, *, source: str, dtype: torch.dtype, layers: Sequence[str] | None = None
) -> SigLIP:
    """See `ImageEncoder.from_checkpoint`."""
    return SigLIP.from_checkpoint(path, source=source, dtype=dtype, layers=layers)
