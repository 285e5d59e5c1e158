"""Masks of objects given by boxes and clicks, and an image to check them."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import cv2
import numpy as np
from PIL import Image

from drift.clip import Clip, ObjectPrompt
from drift.errors import InputError
from drift.formats.overlay import draw_overlay
from drift.image_files import DAVIS_PALETTE
from drift.refinement.prompted import mask_of_prompts
from drift.refinement.refinement import Refinement

__all__ = ["draw_prompts", "with_shown_objects"]


def with_shown_objects(clip: Clip, refiner: Refinement | None, path: Path) -> Clip:
    """Returns the clip with masks predicted from its box and click prompts added to `given`.

    Args:
        clip: clip; returned unchanged if it has no prompts.
        refiner: predicts the masks.
        path: path of the image of prompts and masks, saved for inspection.

    Raises:
        InputError: `refiner` is None, or no mask is found for an object.
    """
    if not clip.prompts:
        return clip
    if refiner is None:
        raise InputError(
            f"{clip.name}: boxes and points require a refinement model; set refinement=sam_tiny or give a mask"
        )
    predicted: dict[int, np.ndarray] = {}
    for index, prompts in clip.prompts.items():
        frame = clip.frames[index]
        size = frame.shape[0], frame.shape[1]
        reduced = clip.reduced_prompts(index, size)
        try:
            mask = mask_of_prompts(refiner.proposer, clip.reduced_frame(frame), reduced)
        except InputError as error:
            raise InputError(f"{clip.name}, frame {clip.frame_names[index]}: {error}") from None
        mask = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_prompts(frame, mask, prompts)).save(path)
        given = clip.given_mask(index, size)
        predicted[index] = mask if given is None else np.where(mask > 0, mask, given)
    return replace(clip, given=ChainMap(predicted, cast(dict[int, np.ndarray], clip.given)))


def draw_prompts(frame: np.ndarray, mask: np.ndarray, prompts: Sequence[ObjectPrompt]) -> np.ndarray:
    """Draws masks with their prompts: boxes, positive clicks as discs, negative clicks as crosses.

    Args:
        frame: `(height, width, 3)` uint8 RGB.
        mask: `(height, width)` uint8 object ids.
        prompts: prompts of this frame.

    Returns:
        `(height, width, 3)` uint8 RGB.
    """
    drawn = np.ascontiguousarray(draw_overlay(frame, mask))
    unit = max(1, round(min(mask.shape) / 240))
    for prompt in prompts:
        colour = [int(c) for c in DAVIS_PALETTE[prompt.object_id] // 2 + 127]
        if prompt.box is not None:
            left, top, right, bottom = (round(side) for side in prompt.box)
            cv2.rectangle(drawn, (left, top), (right, bottom), colour, unit)
        for index, ((x, y), inside) in enumerate(zip(prompt.points, prompt.inside, strict=True)):
            centre = (round(x), round(y))
            if inside:
                cv2.circle(drawn, centre, 4 * unit, (255, 255, 255), -1, cv2.LINE_AA)
                cv2.circle(drawn, centre, 3 * unit, colour, -1, cv2.LINE_AA)
            elif not any(other.inside[index] for other in prompts):
                cv2.drawMarker(drawn, centre, (255, 255, 255), cv2.MARKER_TILTED_CROSS, 9 * unit, 2 * unit)
    return drawn
