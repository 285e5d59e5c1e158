"""The vision transformers of DINOv3 (arXiv 2508.10104)."""

from __future__ import annotations

from transformers import DINOv3ViTModel

from drift.backbones.image_encoders import ImageEncoder

__all__ = ["DINOv3", "from_checkpoint"]


class DINOv3(ImageEncoder):
    """See `ImageEncoder`. Queries and keys include the rotary position embedding."""

    architecture = DINOv3ViTModel
    layer_list = "model.layer"


from_checkpoint = DINOv3.from_checkpoint
