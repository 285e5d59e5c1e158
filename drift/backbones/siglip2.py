"""SigLIP 2 (arXiv 2502.14786), its checkpoints for any aspect ratio (NaFlex)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import Siglip2VisionModel

from drift.backbones.image_encoders import ImageEncoder

__all__ = ["SigLIP2", "from_checkpoint"]


class SigLIP2(ImageEncoder):
    """See `ImageEncoder`. The vision model alone; it interpolates its position embeddings to the frames' size."""

    architecture = Siglip2VisionModel
    layer_list = "encoder.layers"
    attention = "self_attn"
    mean = std = (0.5, 0.5, 0.5)
    unused = ("text_model.", "logit_")

    def _encode(self, pixels: Tensor) -> None:
        size = self.stride
        patches = pixels.unfold(2, size, size).unfold(3, size, size)  # batch, channels, rows, columns, y, x
        shapes = torch.tensor([patches.shape[2:4]], device="cpu").expand(len(pixels), 2)
        patches = (
            patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        )  # the channels of a pixel lie together
        self.model(patches, pixel_attention_mask=None, spatial_shapes=shapes)  # None: no patch is padding


def from_checkpoint(
    path: Path, *, source: str, dtype: torch.dtype, layers: Sequence[str] | None = None
) -> SigLIP2:
    """See `ImageEncoder.from_checkpoint`."""
    return SigLIP2.from_checkpoint(path, source=source, dtype=dtype, layers=layers)
