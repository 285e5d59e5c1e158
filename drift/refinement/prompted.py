"""Masks of objects that are shown by boxes and clicks, by the model that refines masks."""

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
    """Finds one object in a picture."""

    def segment(
        self, frame: UInt8[Tensor, "height width 3"], prompt: ObjectPrompt
    ) -> Bool[Tensor, "height width"]:
        """The object that a prompt shows.

        Raises:
            InputError: it cannot be found by prompts of this kind.
        """
        ...


def mask_of_prompts(
    segmenter: Segmenter, frame: UInt8[np.ndarray, "height width 3"], prompts: Sequence[ObjectPrompt]
) -> UInt8[np.ndarray, "height width"]:
    """The object ids that prompts show in a frame; where two objects meet, the smaller one has the pixel.

    Raises:
        InputError: an object is not found; says which.
    """
    picture = torch.from_numpy(frame)
    found = []
    for prompt in prompts:
        mask = segmenter.segment(picture, prompt).cpu().numpy()
        if not mask.any():
            raise InputError(
                f"nothing was found where object {prompt.object_id} is shown; "
                "give a box around it, more points, or a mask"
            )
        found.append((int(mask.sum()), prompt.object_id, mask))
    ids = np.zeros(frame.shape[:2], dtype=np.uint8)
    for _, object_id, mask in sorted(found, key=lambda one: -one[0]):
        ids[mask] = object_id
    return ids
