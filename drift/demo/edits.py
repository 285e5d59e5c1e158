"""Objects, prompts and masks that a user has given for a clip, with undo."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from drift.clip import MaskFiles, ObjectPrompt
from drift.errors import InputError
from drift.image_files import write_mask

__all__ = ["MAX_OBJECTS", "Edits", "History", "prompt_of_mask", "with_box", "with_click", "with_object"]

MAX_OBJECTS = 254  # 255 means void
_UNDOS = 100


@dataclass(frozen=True)
class Edits:
    """Immutable state of a user's edits. Mask files are never overwritten, so earlier states stay valid.

    Attributes:
        names: names by object id.
        masks: mask files (object ids) by frame index.
        prompts: box and clicks by (frame index, object id), from which the mask was segmented.
    """

    names: Mapping[int, str] = field(default_factory=dict)
    masks: Mapping[int, Path] = field(default_factory=dict)
    prompts: Mapping[tuple[int, int], ObjectPrompt] = field(default_factory=dict)

    @property
    def given(self) -> MaskFiles:
        """The masks by frame index, read on access."""
        return MaskFiles(self.masks)

    def with_new_object(self, name: str | None = None) -> tuple[Edits, int]:
        """A copy with a new object, and the id of the object.

        Raises:
            InputError: there are 254 objects.
        """
        object_id = next((i for i in range(1, MAX_OBJECTS + 1) if i not in self.names), None)
        if object_id is None:
            raise InputError(f"a clip can have at most {MAX_OBJECTS} objects; remove one first")
        names = {**self.names, object_id: name or f"object {object_id}"}
        return replace(self, names=names), object_id

    def with_mask(self, frame: int, mask: UInt8[np.ndarray, "height width"] | None, folder: Path) -> Edits:
        """A copy with `mask` on a frame, written to `folder`; None or an empty mask removes the frame's mask."""
        masks = {index: path for index, path in self.masks.items() if index != frame}
        if mask is not None and mask.any():
            path = folder / f"{hashlib.sha256(mask.tobytes()).hexdigest()[:20]}.png"
            if not path.exists():
                write_mask(path, mask)
            masks[frame] = path
        return replace(self, masks=dict(sorted(masks.items())))

    def with_prompt(self, frame: int, prompt: ObjectPrompt) -> Edits:
        """A copy with the prompt of an object on a frame."""
        return replace(self, prompts={**self.prompts, (frame, prompt.object_id): prompt})

    def without_prompts(self, frame: int, objects: Collection[int]) -> Edits:
        """A copy without the prompts of `objects` on a frame."""
        kept = {k: v for k, v in self.prompts.items() if k[0] != frame or k[1] not in objects}
        return replace(self, prompts=kept)

    def without_object(self, object_id: int, folder: Path) -> Edits:
        """A copy without an object; changed masks are written to `folder`."""
        edits = replace(
            self,
            names={i: name for i, name in self.names.items() if i != object_id},
            prompts={key: prompt for key, prompt in self.prompts.items() if key[1] != object_id},
        )
        for index, mask in self.given.items():
            if (mask == object_id).any():
                edits = edits.with_mask(index, np.where(mask == object_id, np.uint8(0), mask), folder)
        return edits


class History:
    """Current and previous edits.

    Attributes:
        now: the current edits.
    """

    def __init__(self) -> None:
        self.now = Edits()
        self._before: list[Edits] = []

    def change(self, edits: Edits) -> None:
        """Replaces the current edits."""
        self._before = [*self._before, self.now][-_UNDOS:]
        self.now = edits

    def undo(self) -> bool:
        """Restores the previous edits; returns False if there are none."""
        if not self._before:
            return False
        self.now = self._before.pop()
        return True


def prompt_of_mask(object_id: int, mask: Bool[np.ndarray, "height width"]) -> ObjectPrompt:
    """Prompt with the box and the innermost point of a mask, without both for an empty mask."""
    if not mask.any():
        return ObjectPrompt(object_id)
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    box = (float(left), float(top), float(left + width), float(top + height))
    return ObjectPrompt(object_id, box, ((float(column), float(row)),), (True,))


def with_click(prompt: ObjectPrompt, x: float, y: float, *, inside: bool) -> ObjectPrompt:
    """A copy with a further click; a click inside the object extends the box.

    Raises:
        InputError: the first click is outside the object.
    """
    if not inside and prompt.box is None and not any(prompt.inside):
        raise InputError("nothing to take away from here; click on the object first")
    box = prompt.box
    if box is not None and inside:
        box = (min(box[0], x), min(box[1], y), max(box[2], x + 1), max(box[3], y + 1))
    return replace(prompt, box=box, points=(*prompt.points, (x, y)), inside=(*prompt.inside, inside))


def with_box(prompt: ObjectPrompt, corners: tuple[float, float, float, float]) -> ObjectPrompt:
    """A copy with the box between two corners.

    Raises:
        InputError: the box is empty.
    """
    x0, x1 = sorted((corners[0], corners[2]))
    y0, y1 = sorted((corners[1], corners[3]))
    if x1 - x0 < 2 or y1 - y0 < 2:
        raise InputError("the box is too small; drag from one corner of the object to the opposite one")
    return replace(prompt, box=(x0, y0, x1, y1))


def with_object(
    mask: UInt8[np.ndarray, "height width"], object_id: int, pixels: Bool[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width"]:
    """A copy of `mask` in which the object covers exactly `pixels`."""
    return np.where(pixels, np.uint8(object_id), np.where(mask == object_id, np.uint8(0), mask))
