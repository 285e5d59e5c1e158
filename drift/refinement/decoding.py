"""Prompt tensors and mask prediction of `segment_anything.modeling.Sam` for several objects of a frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from drift.refinement.sam_prompts import Prompts

__all__ = [
    "MASK_STRIDE",
    "Kinds",
    "PromptTensors",
    "candidates",
    "content_size",
    "embed",
    "padded_square",
    "stacked",
]

MASK_STRIDE = 4
"""Pixels of Segment Anything's input per pixel of its mask prompts and predicted masks."""


class PromptTensors(NamedTuple):
    """Prompts of several objects, in pixels of Segment Anything's input.

    Attributes:
        boxes: left, top, right, bottom.
        points: x, y.
        labels: 1 for points inside the object, 0 outside, -1 for padding.
        logits: of the soft masks, on a square whose side is a quarter of the input's; low on the padding.
    """

    boxes: Float[Tensor, "objects 4"]
    points: Float[Tensor, "objects points 2"]
    labels: Int[Tensor, "objects points"]
    logits: Float[Tensor, "objects 1 side side"]

    def to(self, device: torch.device) -> PromptTensors:
        """A copy on `device`."""
        return PromptTensors(*(tensor.to(device) for tensor in self))


@dataclass(frozen=True)
class Kinds:
    """Kinds of prompts that are passed to the prompt encoder."""

    boxes: bool = True
    points: bool = True
    masks: bool = True


def content_size(frame: tuple[int, int], side: int) -> tuple[int, int]:
    """Height and width of a frame resized to a longer side of `side` pixels, in multiples of `MASK_STRIDE`."""
    scale = side / max(frame) / MASK_STRIDE
    return max(round(frame[0] * scale), 1) * MASK_STRIDE, max(round(frame[1] * scale), 1) * MASK_STRIDE


def embed(sam: Any, frame: Float[Tensor, "3 height width"]) -> Float[Tensor, "1 width rows columns"]:
    """The image embedding of an RGB frame in [0, 255], computed in the encoder's data type, returned in float32."""
    encoder = sam.image_encoder
    size = content_size((frame.shape[-2], frame.shape[-1]), encoder.img_size)
    resized = F.interpolate(frame[None], size, mode="bilinear", align_corners=False, antialias=True)
    inputs = sam.preprocess(resized).to(next(encoder.parameters()).dtype)
    embedding: Tensor = encoder(inputs).float()
    return embedding


def stacked(prompts: Sequence[Prompts], side: int) -> PromptTensors:
    """Stacks the prompts of several objects on the CPU.

    Args:
        prompts: per object, with equal numbers of points, padding included.
        side: of Segment Anything's square input, in pixels.
    """
    logits = torch.from_numpy(np.stack([prompt.logits for prompt in prompts]))
    return PromptTensors(
        _input_pixels(np.stack([prompt.box for prompt in prompts])),
        _input_pixels(np.stack([prompt.points for prompt in prompts])),
        torch.from_numpy(np.stack([prompt.labels for prompt in prompts])),
        padded_square(logits[:, None], side // MASK_STRIDE, value=float(logits.amin())),
    )


def padded_square(maps: Tensor, side: int, *, value: float = 0.0) -> Tensor:
    """Pads `(..., rows, columns)` at the bottom and on the right to `(..., side, side)`."""
    return F.pad(maps, (0, side - maps.shape[-1], 0, side - maps.shape[-2]), value=value)


def _input_pixels(coordinates: np.ndarray) -> Tensor:
    """Converts coordinates on the mask grid to pixels of the input; SAM adds 0.5 for the pixel centre."""
    return torch.from_numpy((coordinates.astype(np.float32) + 0.5) * MASK_STRIDE - 0.5)


def candidates(
    sam: Any, embedding: Float[Tensor, "1 width rows columns"], prompts: PromptTensors, kinds: Kinds
) -> tuple[Float[Tensor, "objects 4 mask_rows mask_columns"], Float[Tensor, "objects 4"]]:
    """Logits and predicted IoU of the four masks per object: one for unambiguous prompts, three for ambiguous ones."""
    has_points = prompts.points.shape[1] and kinds.points
    sparse, dense = sam.prompt_encoder(
        points=(prompts.points, prompts.labels) if has_points else None,
        boxes=prompts.boxes if kinds.boxes else None,
        masks=prompts.logits if kinds.masks else None,
    )
    masks, scores = sam.mask_decoder.predict_masks(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
    )
    return masks, scores
