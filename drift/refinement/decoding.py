"""Asking a `Sam` for several objects of one frame at once: prompts to tensors, tensors to candidate masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from drift.refinement.prompts import Prompts

__all__ = [
    "MASK_STRIDE",
    "Kinds",
    "PromptTensors",
    "candidates",
    "content_size",
    "embed",
    "stacked",
    "without_padding",
]

MASK_STRIDE = 4
"""Pixels of a Sam's input to one of its mask prompts and masks."""


class PromptTensors(NamedTuple):
    """The prompts for several objects, in pixels of the Sam's input.

    Attributes:
        boxes: left, top, right, bottom.
        points, labels: x, y of each, and 1 inside, 0 outside, -1 for a place that holds no point.
        logits: of the soft masks, on a square a quarter as large as the input; as if surely outside on its
            padding.
    """

    boxes: Float[Tensor, "objects 4"]
    points: Float[Tensor, "objects points 2"]
    labels: Int[Tensor, "objects points"]
    logits: Float[Tensor, "objects 1 side side"]

    def to(self, device: torch.device) -> PromptTensors:
        """The same on a device."""
        return PromptTensors(*(one.to(device) for one in self))


@dataclass(frozen=True)
class Kinds:
    """Which prompts are given."""

    boxes: bool = True
    points: bool = True
    masks: bool = True


def content_size(frame: tuple[int, int], side: int) -> tuple[int, int]:
    """Height and width of a frame whose longer side is made `side` pixels long, in whole pixels of its masks."""
    scale = side / max(frame) / MASK_STRIDE
    return max(round(frame[0] * scale), 1) * MASK_STRIDE, max(round(frame[1] * scale), 1) * MASK_STRIDE


def embed(sam: Any, frame: Float[Tensor, "3 height width"]) -> Float[Tensor, "1 width rows columns"]:
    """The image embedding of an RGB frame in [0, 255], which serves all its objects."""
    size = content_size((frame.shape[-2], frame.shape[-1]), sam.image_encoder.img_size)
    resized = F.interpolate(frame[None], size, mode="bilinear", align_corners=False, antialias=True)
    return without_padding(sam.image_encoder, sam.image_encoder(sam.preprocess(resized)), size)


def without_padding(
    encoder: Any, embeddings: Float[Tensor, "batch width rows columns"], content: tuple[int, int]
) -> Float[Tensor, "batch width used_rows used_columns"]:
    """Embeddings of the picture's own tokens, where an encoder sees nothing of the padding; else as they are.

    Args:
        encoder: a Sam's image encoder, which may say that it `ignores_padding`.
        embeddings: what it gave for padded pictures.
        content: the pictures' height and width before they were padded.
    """
    if not getattr(encoder, "ignores_padding", False):
        return embeddings
    stride = encoder.img_size // embeddings.shape[-1]
    rows, columns = (-(-length // stride) for length in content)
    return embeddings[..., :rows, :columns]


def stacked(prompts: Sequence[Prompts], side: int) -> PromptTensors:
    """Several objects' prompts as tensors.

    Args:
        prompts: each object's, with equally many places for points.
        side: of the Sam's input in pixels.
    """
    logits = torch.from_numpy(np.stack([one.logits for one in prompts]))
    rows, columns = logits.shape[-2:]
    square = side // MASK_STRIDE
    padded = F.pad(logits, (0, square - columns, 0, square - rows), value=float(logits.amin()))
    return PromptTensors(
        _finer(np.stack([one.box for one in prompts])),
        _finer(np.stack([one.points for one in prompts])),
        torch.from_numpy(np.stack([one.labels for one in prompts])),
        padded[:, None],
    )


def _finer(places: np.ndarray) -> Tensor:
    """Places on the masks' grid as pixels of the input; Sam adds the half pixel of a centre itself."""
    return torch.from_numpy((places.astype(np.float32) + 0.5) * MASK_STRIDE - 0.5)


def candidates(
    sam: Any, embedding: Float[Tensor, "1 width rows columns"], prompts: PromptTensors, kinds: Kinds
) -> tuple[Float[Tensor, "objects four mask_rows mask_columns"], Float[Tensor, "objects four"]]:
    """The logits of a Sam's four masks for each object, and the IoU that it expects of each.

    The first is the one that it gives where a prompt is taken to be clear, the others are its guesses where not.
    """
    given = prompts.points.shape[1] and kinds.points
    sparse, dense = sam.prompt_encoder(
        points=(prompts.points, prompts.labels) if given else None,
        boxes=prompts.boxes if kinds.boxes else None,
        masks=prompts.logits if kinds.masks else None,
    )
    rows, columns = embedding.shape[-2:]  # fewer than the prompts have, where padding is left out
    masks, scores = sam.mask_decoder.predict_masks(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe()[..., :rows, :columns],
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense[..., :rows, :columns],
    )
    return masks, scores
