"""Objects that are shown by boxes and clicks: their masks, and a picture of them for approval."""

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

__all__ = ["draw_shown", "with_shown_objects"]


def with_shown_objects(clip: Clip, refiner: Refinement | None, path: Path) -> Clip:
    """The clip with masks of its objects that are shown by boxes and clicks; others stay as they are.

    Args:
        clip: with prompts or without.
        refiner: makes the masks.
        path: of the picture that is left of what was made of the prompts.

    Raises:
        InputError: there is no refiner, or an object is not found.
    """
    if not clip.prompts:
        return clip
    if refiner is None:
        raise InputError(
            f"{clip.name}: it takes a refinement to make masks of boxes and points; give refinement=sam_tiny, or a mask"
        )
    made: dict[int, np.ndarray] = {}
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
        Image.fromarray(draw_shown(frame, mask, prompts)).save(path)
        drawn = clip.given_mask(index, size)
        made[index] = mask if drawn is None else np.where(mask > 0, mask, drawn)
    return replace(clip, given=ChainMap(made, cast(dict[int, np.ndarray], clip.given)))


def draw_shown(frame: np.ndarray, mask: np.ndarray, prompts: Sequence[ObjectPrompt]) -> np.ndarray:
    """A frame with its masks, and the boxes and clicks that they were made of: clicks off an object are crosses.

    Args:
        frame: `(height, width, 3)` uint8 RGB.
        mask: `(height, width)` uint8 object ids.
        prompts: what was shown.
    """
    drawn = np.ascontiguousarray(draw_overlay(frame, mask))
    unit = max(1, round(min(mask.shape) / 240))
    for prompt in prompts:
        colour = [int(c) for c in DAVIS_PALETTE[prompt.object_id] // 2 + 127]
        if prompt.box is not None:
            left, top, right, bottom = (round(side) for side in prompt.box)
            cv2.rectangle(drawn, (left, top), (right, bottom), colour, unit)
        for place_of, ((x, y), inside) in enumerate(zip(prompt.points, prompt.inside, strict=True)):
            place = (round(x), round(y))
            if inside:
                cv2.circle(drawn, place, 4 * unit, (255, 255, 255), -1, cv2.LINE_AA)
                cv2.circle(drawn, place, 3 * unit, colour, -1, cv2.LINE_AA)
            elif not any(one.inside[place_of] for one in prompts):
                cv2.drawMarker(drawn, place, (255, 255, 255), cv2.MARKER_TILTED_CROSS, 9 * unit, 2 * unit)
    return drawn
