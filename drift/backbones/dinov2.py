"""DINOv2 (arXiv 2304.07193), without registers."""

from __future__ import annotations

from transformers import Dinov2Model

from drift.backbones.image_encoders import ImageEncoder

__all__ = ["DINOv2", "from_checkpoint"]


class DINOv2(ImageEncoder):
    """See `ImageEncoder`. The model interpolates its position embeddings to the frames' size."""

    architecture = Dinov2Model


from_checkpoint = DINOv2.from_checkpoint
