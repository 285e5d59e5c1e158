"""DINOv2 with register tokens (arXiv 2309.16588)."""

from __future__ import annotations

from transformers import Dinov2WithRegistersModel

from drift.backbones.image_encoders import ImageEncoder

__all__ = ["DINOv2WithRegisters", "from_checkpoint"]


class DINOv2WithRegisters(ImageEncoder):
    """See `ImageEncoder`. The model interpolates its position embeddings to the frames' size."""

    architecture = Dinov2WithRegistersModel


from_checkpoint = DINOv2WithRegisters.from_checkpoint
