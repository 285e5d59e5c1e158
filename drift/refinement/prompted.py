"""Segments objects that a user marks by boxes and points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from drift.clip import ObjectPrompt
from drift.errors import InputError

__all__ = ["Segmenter", "mask_of_prompts"]


class Segmenter(Protocol):
    """Segments an object from a prompt."""

    def segment(
        self, frame: UInt8[Tensor, "height width 3"], prompt: ObjectPrompt
    ) -> Bool[Tensor, "height width"]:
        """The mask of the prompted object, which may be empty; on any device.

        Args:
            frame: RGB, on any device.
            prompt: box and points, in pixels of the frame.
        """
        ...


def mask_of_prompts(
    segmenter: Segmenter, frame: UInt8[np.ndarray, "height width 3"], prompts: Sequence[ObjectPrompt]
) -> UInt8[np.ndarray, "height width"]:
    """Object ids of the prompted objects, 0 for the background. Where masks overlap, the smaller object is in front.

    Args:
        segmenter: segments each object.
        frame: RGB.
        prompts: boxes and points, in pixels of the frame.

    Raises:
        InputError: the mask of an object is empty.
    """
    picture = torch.from_numpy(frame)
    masks = []
    for prompt in prompts:
        mask = segmenter.segment(picture, prompt).cpu().numpy()
        if not mask.any():
            raise InputError(
                f"the prompt of object {prompt.object_id} gives an empty mask; give a box around the object, more "
                "points, or a mask"
            )
        masks.append((int(mask.sum()), prompt.object_id, mask))
    ids = np.zeros(frame.shape[:2], dtype=np.uint8)
    for _, object_id, mask in sorted(masks, key=lambda area_id_mask: -area_id_mask[0]):
        ids[mask] = object_id
    return ids
