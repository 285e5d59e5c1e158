"""The embedded Segment Anything model, prompted by any combination of points, boxes and masks."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from drift.efficientnet import COARSEST_STRIDE
from drift.refinement.tiny_decoder import (
    PLANES,
    STRIDE,
    TinyMaskDecoder,
    draw_boxes,
    draw_masks,
    draw_points,
)
from drift.refinement.tiny_encoder import Embedding, TinyImageEncoder

__all__ = ["COARSE_SIDE", "FINE_SIDE", "MASK_STRIDE", "TinySam"]

MASK_STRIDE = 2
"""Pixels of the input per pixel of predicted masks."""
FINE_SIDE, COARSE_SIDE = 640, 384
"""Longer side of the input in pixels: by default, and for the first predictions from points (the size in training)."""
_MEAN, _STD = 127.0, 128.0  # of pixels in [0, 255]


class TinySam(nn.Module):
    """Image encoder and mask decoder of 3.6 million parameters.

    Frames are resized to multiples of 32 pixels with their aspect ratio, and not padded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = TinyImageEncoder()
        self.mask_decoder = TinyMaskDecoder()

    @staticmethod
    def input_size(frame: tuple[int, int], side: int = FINE_SIDE) -> tuple[int, int]:
        """Height and width of the input for a frame `(height, width)`; `side` is the longer one, in pixels."""
        scale = side / max(frame) / COARSEST_STRIDE
        return max(round(frame[0] * scale), 1) * COARSEST_STRIDE, max(
            round(frame[1] * scale), 1
        ) * COARSEST_STRIDE

    @staticmethod
    def preprocess(images: Float[Tensor, "batch 3 height width"]) -> Tensor:
        """Normalizes RGB images in [0, 255]."""
        return (images - _MEAN) / _STD

    def embed(self, frame: Float[Tensor, "3 height width"], side: int = FINE_SIDE) -> Embedding:
        """Embedding of an RGB frame in [0, 255], in float32."""
        size = self.input_size((frame.shape[-2], frame.shape[-1]), side)
        resized = F.interpolate(frame[None], size, mode="bilinear", align_corners=False, antialias=True)
        inputs = self.preprocess(resized).to(self.image_encoder.stem.weight.dtype)
        strides = self.image_encoder.strides(inputs.contiguous(memory_format=torch.channels_last))
        return self.image_encoder.joined([each.float() for each in strides])

    def predict(
        self,
        embedding: Embedding,
        *,
        boxes: Float[Tensor, "objects 4"] | None = None,
        points: Float[Tensor, "objects points 2"] | None = None,
        labels: Int[Tensor, "objects points"] | None = None,
        logits: Float[Tensor, "objects 1 rows columns"] | None = None,
    ) -> Float[Tensor, "objects 1 rows columns"]:
        """Logits of one mask per object, at a stride of `MASK_STRIDE`.

        Args:
            embedding: embedding of one frame.
            boxes: left, top, right, bottom in pixels of the input, or None.
            points, labels: x, y in pixels of the input; 1 inside the object, 0 outside, -1 for padding.
            logits: mask prompts at a stride of `MASK_STRIDE`, such as propagated masks or the last prediction.
        """
        size = (embedding.quarter.shape[-2], embedding.quarter.shape[-1])
        count = next(len(each) for each in (boxes, points, logits) if each is not None)
        planes = embedding.quarter.new_zeros(count, PLANES, *size)
        if points is not None and labels is not None and points.shape[1]:
            planes[:, :4] = draw_points(size, points, labels)
        if boxes is not None:
            planes[:, 4:6] = draw_boxes(size, boxes)
        if logits is not None:
            planes[:, 6:] = draw_masks(F.avg_pool2d(logits, STRIDE // MASK_STRIDE))
        masks: Tensor = self.mask_decoder(embedding, planes.contiguous(memory_format=torch.channels_last))
        return masks
